"""The Python API: export, verify and bench, like the command line. Imports no torch until a job needs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from smp3d_export import backends
from smp3d_export.architectures import ARCHITECTURES, architecture_class
from smp3d_export.device import AUTO, checked
from smp3d_export.errors import UsageError
from smp3d_export.precision import Precision
from smp3d_export.progress import Reporter
from smp3d_export.runtime.calibration import Calibration
from smp3d_export.runtime.volumes import Normalisation
from smp3d_export.sources.foreign import UserModule
from smp3d_export.sources.kinds import source_from
from smp3d_export.sources.named import NamedNetwork
from smp3d_export.sources.request import Optimise, Request, Source, optimise_named
from smp3d_export.sources.saved import ModelInMemory

if TYPE_CHECKING:
    from torch import nn

    from smp3d_export.contract import ShapeContract
    from smp3d_export.validators.bench import Bench
    from smp3d_export.validators.verdict import Report

File = str | Path
SPELLED = {"factory_arg": "arguments", "keep_output": "keep_outputs", "fold": "folds"}
"""What messages call arguments, if not as the command line does."""


def export(
    model: File | nn.Module,
    encoder: str | None = None,
    *,
    shape: Sequence[int] | None = None,
    min: Sequence[int] | None = None,
    max: Sequence[int] | None = None,
    multiple: Sequence[int] | None = None,
    static: bool = False,
    contract: ShapeContract | None = None,
    to: str | Sequence[str] = "onnx",
    precision: str | None = None,
    keep_fp32: Sequence[str] = (),
    calibration: File | None = None,
    optimise: Optimise | None = None,
    opset: int | None = None,
    gpus: Sequence[str] = (),
    device: str = AUTO,
    threads: int | None = None,
    samples: Sequence[File] = (),
    normalize: Literal["zscore"] | tuple[float, float] | None = None,
    output: File | None = None,
    force: bool = False,
    bench: bool = True,
    min_speedup: float | None = None,
    arguments: Mapping[str, Any] | None = None,
    checkpoint: File | None = None,
    weights_key: str | None = None,
    keep_outputs: Sequence[str] = (),
    name: str | None = None,
    folds: Sequence[int | str] | None = None,
    configuration: str | None = None,
    checkpoint_name: str | None = None,
    revision: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Report:
    """Export a network, prove every artifact equal to it, and measure it.

    Args:
        model: an architecture by name, with `encoder`; any `torch.nn.Module` with one input; `package.module:factory`
            or `file.py:factory`, code of yours that returns one; a MONAI bundle, as a folder or a zip file; a folder
            that `save_pretrained` wrote, or `OWNER/NAME` of a repository on the Hugging Face hub; or an ONNX file that
            an export wrote.
        encoder: the encoder's name, if `model` names an architecture.
        shape: the shape to optimise for, (N, C, H, W, D).
        min: the smallest shape.
        max: the largest shape.
        multiple: what (H, W, D) are multiples of.
        static: freeze every axis at `shape`.
        contract: the shapes for a model in memory, instead of the five arguments above.
        to: a target, or several.
        precision: fp32, tf32, fp16, bf16 or int8; by default fp32, or the ONNX file's.
        keep_fp32: patterns of layers or operators that stay in fp32 in fp16 and bf16.
        calibration: a folder of volumes that int8 is calibrated on.
        optimise: which exact rewrites are applied: `on` (the default), `off`, `cpu` or `auto`.
        opset: the ONNX operator set, 13 to 25; by default 20, or the ONNX file's.
        gpus: compute capabilities to build a TensorRT-RTX engine for, such as `8.6`.
        device: `cpu`, `cuda` or `cuda:N` to capture, compare and measure on; `auto` is the GPU for engines, if there is
            one, and otherwise the CPU.
        threads: CPU threads; by default all cores.
        samples: volumes to compare on besides the seeded ones: `.npy`, `.npz` or NIfTI.
        normalize: how samples and calibration volumes are normalised: (mean, standard deviation) or `zscore`.
        output: the artifact's folder; by default one in the working directory, named after the network.
        force: replace the artifact of another network in that folder.
        bench: whether to measure speed.
        min_speedup: the smallest acceptable ratio of eager time to the artifact's.
        arguments: constructor arguments of a network by name, or arguments of a factory.
        checkpoint: trained weights for a network by name, from a factory, or of a MONAI bundle.
        weights_key: which weights to use if the checkpoint holds several, such as `state_dict_ema`.
        keep_outputs: the outputs of a network of your own to export, by name; by default all of them.
        name: the name of a network of your own; by default that of its class.
        folds: the folds of nnU-Net, which are averaged; by default every one that was trained.
        configuration: the configuration of nnU-Net, such as `3d_fullres`.
        checkpoint_name: the checkpoint of nnU-Net in each fold's folder, by default `checkpoint_final.pth`.
        revision: a branch, tag or commit of the repository on the hub.
        seed: the seed for random weights and inputs.
        progress: print stages to stderr, as the command line does.

    Returns:
        A verdict for each target. A target that failed does not raise: see `Report.raise_for_failure`.

    Raises:
        UsageError: an argument is wrong.
        TargetUnavailableError: none of the targets can be exported to on this machine.
        ExportError: the network cannot be captured.
    """
    from smp3d_export.pipeline import run

    source = source_of(
        model,
        encoder,
        arguments=arguments,
        checkpoint=checkpoint,
        weights_key=weights_key,
        revision=revision,
        contract=contract,
        keep_outputs=tuple(keep_outputs),
        name=name,
        nnunet={
            "folds": None if folds is None else tuple(map(str, folds)),
            "configuration": configuration,
            "checkpoint_name": checkpoint_name,
        },
        seed=seed,
    )
    normalisation = normalisation_of(normalize)
    request = Request(
        source=source,
        shape=sizes(shape),
        min=sizes(min),
        max=sizes(max),
        multiple=sizes(multiple),
        static=static,
        targets=targets_of(to),
        samples=tuple(Path(sample) for sample in samples),
        normalisation=normalisation,
        precision=None if precision is None else Precision.named(precision),
        keep_fp32=tuple(keep_fp32),
        calibration=None if calibration is None else Calibration(Path(calibration), normalisation),
        gpus=tuple(gpus),
        device=checked(device, auto=True),
        threads=threads,
        opset=opset,
        optimise=None if optimise is None else optimise_named(optimise),
        output=None if output is None else Path(output),
        force=force,
        bench=bench,
        min_speedup=min_speedup,
    )
    return run(request, reporter(progress))


def verify(folder: File, *, threads: int | None = None, device: str = "cpu", progress: bool = False) -> Report:
    """Prove an artifact, or each artifact in a folder, again on this machine: its hashes, then its golden input.

    Args:
        folder: the artifact's folder, or one with several of them, at any level.
        threads: CPU threads; by default the backend chooses.
        device: `cpu`, `cuda` or `cuda:N`.
        progress: print stages to stderr.

    Returns:
        A verdict for each artifact. One that is damaged, cannot run or differs does not raise: see
        `Report.raise_for_failure`.

    Raises:
        UsageError: there is no artifact.
    """
    from smp3d_export.validators import verify as job

    return job.verify(Path(folder), reporter(progress), threads=threads, device=checked(device))


def bench(
    artifacts: File | Sequence[File],
    against: File = "eager",
    *,
    shapes: Sequence[Sequence[int]] | None = None,
    threads: int | None = None,
    device: str = "cpu",
    seconds: float = 15.0,
    memory: bool = False,
    force: bool = False,
    progress: bool = False,
) -> Bench:
    """Time artifacts side by side, in alternating rounds, at several shapes.

    Args:
        artifacts: folders of artifacts, or folders with several of them.
        against: what they are measured against: `eager`, or an artifact's folder.
        shapes: (N, C, H, W, D) each; by default the optimum, the minimum, and twice the optimum's volume axes.
        threads: CPU threads; by default all cores.
        device: `cpu`, `cuda` or `cuda:N`.
        seconds: how long the rounds at one shape may take; there are at least five.
        memory: measure the peak memory of each artifact at each shape too, in a process of its own.
        force: compare artifacts of different networks too.
        progress: print stages to stderr.

    Raises:
        UsageError: a folder holds no artifact, or the artifacts are of different networks.
        ShapeError: a shape is outside a contract.
    """
    from smp3d_export.validators import bench as job

    several = [artifacts] if isinstance(artifacts, str | Path) else artifacts
    return job.bench(
        [Path(artifact) for artifact in several],
        str(against),
        shapes,
        threads=threads,
        device=checked(device),
        seconds=seconds,
        memory=memory,
        force=force,
        reporter=reporter(progress),
    )


def source_of(
    model: File | nn.Module,
    encoder: str | None,
    *,
    arguments: Mapping[str, Any] | None,
    checkpoint: File | None,
    weights_key: str | None,
    revision: str | None,
    contract: ShapeContract | None,
    keep_outputs: tuple[str, ...],
    name: str | None,
    nnunet: Mapping[str, Any],
    seed: int,
) -> Source:
    """The source that `model` and its arguments name.

    Raises:
        UsageError: an argument does not go with this kind of source.
    """
    if isinstance(model, str) and encoder is not None:
        refuse("a network by name", revision=revision, contract=contract, **nnunet)
        refuse("a network by name", keep_outputs=keep_outputs or None, name=name)
        return NamedNetwork(
            architecture=model,
            encoder=encoder,
            arguments=dict(arguments or {}),
            checkpoint=None if checkpoint is None else Path(checkpoint),
            weights_key=weights_key,
            seed=seed,
        )
    if isinstance(model, str | Path):
        refuse("a folder or a file", encoder=encoder, contract=contract)
        return source_from(
            str(model),
            arguments=arguments,
            checkpoint=None if checkpoint is None else Path(checkpoint),
            weights_key=weights_key,
            keep_outputs=keep_outputs,
            name=name,
            revision=revision,
            seed=seed,
            spelled=lambda argument: {"factory_arg": "arguments", "keep_output": "keep_outputs"}.get(
                argument, argument
            ),
        )
    refuse("a module", encoder=encoder, arguments=arguments, checkpoint=checkpoint, revision=revision)
    refuse("a module", weights_key=weights_key, **nnunet)
    from torch import nn

    from smp3d_export.architectures.base import SegmentationModel

    if not isinstance(model, nn.Module):
        raise UsageError(
            f"model is a {type(model).__name__}; give a torch.nn.Module, the name of an architecture with an encoder, "
            "a folder that save_pretrained wrote, an ONNX file, or package.module:factory"
        )
    kind = type(model).__name__
    ours = kind in ARCHITECTURES and type(model) is architecture_class(kind)
    if ours and isinstance(model, SegmentationModel) and not keep_outputs:
        return ModelInMemory(model=model, name=name, contract=contract, seed=seed)
    refuse("a module of your own", contract=contract)
    return UserModule(module=model, name=name, keep_outputs=keep_outputs, seed=seed)


def refuse(source: str, **given: Any) -> None:
    """Refuse arguments that do not go with a kind of source.

    Raises:
        UsageError: one of them is given.
    """
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"{name} does not go with {source}: leave it out")


def sizes(shape: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if shape is None else tuple(int(size) for size in shape)


def targets_of(to: str | Sequence[str]) -> tuple[str, ...]:
    """The names of targets, without duplicates.

    Raises:
        UsageError: there is no such target, or none is given.
    """
    names = to.split(",") if isinstance(to, str) else to
    found = tuple(dict.fromkeys(backends.find(name.strip()).name for name in names))
    if not found:
        raise UsageError(f"no target is given; there are {', '.join(backends.names())}")
    return found


def normalisation_of(given: Literal["zscore"] | tuple[float, float] | None) -> Normalisation | None:
    """How volumes are normalised.

    Raises:
        UsageError: it is neither `zscore` nor a mean and a standard deviation above 0.
    """
    if given is None:
        return None
    if given == "zscore":
        return Normalisation()
    try:
        mean, std = (float(part) for part in given)
    except (TypeError, ValueError):
        raise UsageError(f"normalize is {given!r}; it takes (mean, standard deviation) or 'zscore'") from None
    return Normalisation(mean, std)


def reporter(progress: bool) -> Reporter:
    return Reporter(Console(stderr=True)) if progress else Reporter()

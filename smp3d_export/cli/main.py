"""The jobs of the command line: parse, call, print. They hold no logic, and import torch only if they need it."""

from __future__ import annotations

import functools
import inspect
import json
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console

from smp3d_export import __version__, backends
from smp3d_export.architectures import architecture_spec
from smp3d_export.cli import options, parsing
from smp3d_export.cli.group import SETTINGS, Job, Jobs, MainJob
from smp3d_export.cli.help import MAIN
from smp3d_export.cli.outcome import deliver, print_tracebacks, reporting
from smp3d_export.device import checked
from smp3d_export.encoders import encoder_spec
from smp3d_export.errors import UsageError
from smp3d_export.progress import Reporter
from smp3d_export.runtime.calibration import Calibration
from smp3d_export.sources.kinds import source_from
from smp3d_export.sources.named import NamedNetwork
from smp3d_export.sources.request import Request, Source, optimise_named

app = typer.Typer(cls=Jobs, context_settings=SETTINGS, rich_markup_mode=None, pretty_exceptions_enable=False)


def main() -> None:
    """The console script."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that temporary folders are removed
    app()


def print_version(value: bool) -> None:
    if value:
        print(f"smp3d-export {__version__}")
        raise typer.Exit


@app.callback()
def group(
    version: Annotated[bool, typer.Option("--version", "-V", callback=print_version, is_eager=True)] = False,
) -> None:
    """Export 3D segmentation networks."""


def exporting(source: Callable[..., Source]) -> Callable[..., None]:
    """A job that exports what `source` makes from its own options. The options of every export are added."""
    own = inspect.signature(source, eval_str=True).parameters
    _, *others = inspect.signature(run_export, eval_str=True).parameters.values()

    @functools.wraps(source)
    def job(**given: Any) -> None:
        network = source(**{name: given.pop(name) for name in own})
        run_export(network, **given)

    job.__signature__ = inspect.Signature([*own.values(), *others])  # pyright: ignore[reportAttributeAccessIssue]
    return job


def run_export(
    network: Source,
    shape: options.Shape = None,
    smallest: options.Smallest = None,
    largest: options.Largest = None,
    multiple: options.Multiple = None,
    static: options.Static = False,
    to: options.To = "onnx",
    precision: options.PrecisionName = None,
    keep_fp32: options.KeepFp32 = None,
    calibration: options.CalibrationFolder = None,
    gpu: options.Gpu = None,
    device: options.Device = "auto",
    output: options.Folder = None,
    force: options.Force = False,
    opset: options.Opset = None,
    optimise: options.Optimise = None,
    sample: options.Sample = None,
    normalize: options.Normalize = None,
    threads: options.Threads = None,
    no_bench: options.NoBench = False,
    min_speedup: options.MinSpeedup = None,
    report: options.Reports = None,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Export a network with the options common to all exports, print its report, and exit with its code."""
    reports = parsing.reports(report)
    normalisation = parsing.normalisation(normalize)
    request = Request(
        source=network,
        shape=parsing.shape("--shape", shape),
        min=parsing.shape("--min", smallest),
        max=parsing.shape("--max", largest),
        multiple=parsing.multiple(multiple),
        static=static,
        targets=tuple(dict.fromkeys(backends.find(name.strip()).name for name in to.split(","))),
        samples=tuple(sample or ()),
        normalisation=normalisation,
        precision=parsing.precision(precision),
        keep_fp32=tuple(keep_fp32 or ()),
        calibration=None if calibration is None else Calibration(calibration, normalisation),
        gpus=parsing.capabilities(gpu),
        device=checked(device, auto=True),
        threads=threads,
        opset=opset,
        optimise=None if optimise is None else optimise_named(optimise),
        output=output,
        force=force,
        bench=not no_bench,
        min_speedup=min_speedup,
    )
    reporter = Reporter(Console(stderr=True))
    with reporter.working("loading"):
        from smp3d_export.pipeline import run
        from smp3d_export.report import console

    result = run(request, reporter)
    print_tracebacks(result, debug)
    deliver(result, reports, as_json, lambda out: console.show(result, out, speed=request.bench))


@app.command(MAIN, cls=MainJob, hidden=True)
@reporting
@exporting
def export(
    arch: options.Arch,
    encoder: options.Encoder,
    checkpoint: options.Checkpoint = None,
    weights_key: options.WeightsKey = None,
    encoder_weights: options.EncoderWeights = None,
    seed: options.Seed = 0,
    in_channels: options.InChannels = None,
    classes: options.Classes = None,
    encoder_depth: options.EncoderDepth = None,
    strides: options.Strides = None,
    decoder_channels: options.DecoderChannels = None,
    no_decoder_batchnorm: options.NoDecoderBatchnorm = False,
    decoder_use_norm: options.DecoderUseNorm = None,
    decoder_attention: options.DecoderAttention = None,
    activation: options.Activation = None,
    aux_params: options.AuxParams = None,
    arg: options.Arg = None,
) -> NamedNetwork:
    """Export a 3D segmentation network, prove it equal to eager PyTorch, and time it.

    The artifact is a folder with the model, a manifest and a golden input. The batch and all volume axes are dynamic.
    """
    if no_decoder_batchnorm and decoder_use_norm is not None:
        raise UsageError("--decoder-use-norm and --no-decoder-use-batchnorm say the same thing: give one of the two")
    named = {
        "encoder_name": encoder_spec(encoder).name,
        "in_channels": in_channels,
        "classes": classes,
        "encoder_depth": encoder_depth,
        "strides": None if strides is None else parsing.strides(strides),
        "decoder_channels": None if decoder_channels is None else parsing.values(decoder_channels),
        "decoder_use_batchnorm": False if no_decoder_batchnorm else None,
        "decoder_use_norm": None if decoder_use_norm is None else parsing.norm(decoder_use_norm),
        "decoder_attention_type": decoder_attention,
        "activation": activation,
        "aux_params": None if aux_params is None else parsing.pairs("--aux-params", aux_params),
        "encoder_weights": encoder_weights,
    }
    arguments = parsing.arguments(named, arg or ())
    return NamedNetwork(
        architecture=architecture_spec(arch).name,
        encoder=arguments.pop("encoder_name"),
        arguments=arguments,
        checkpoint=checkpoint,
        weights_key=weights_key,
        seed=seed,
    )


@app.command("from", cls=Job)
@reporting
@exporting
def export_from(
    source: options.From,
    factory_arg: options.FactoryArg = None,
    checkpoint: options.Checkpoint = None,
    weights_key: options.WeightsKey = None,
    keep_output: options.KeepOutput = None,
    name: options.Name = None,
    fold: options.FoldNumbers = None,
    configuration: options.Configuration = None,
    checkpoint_name: options.CheckpointName = None,
    revision: options.Revision = None,
    seed: options.Seed = 0,
) -> Source:
    """Export your own network, one of nnU-Net or MONAI, or an ONNX file.

    A network of your own is what a function or class returns: package.module:factory or file.py:factory. This runs your
    code. The network's outputs, and the sizes that it takes, are found by running it.

    Results of nnU-Net are the folder that it trained into, the folder of the data set, or the zip file of a model.

    A MONAI bundle is a folder or a zip file. Its network is what its configuration defines, which runs the code named
    there.

    A model that save_pretrained wrote is exported for the shapes saved with it, unless you give others. An ONNX file
    that an export wrote is turned into other targets' artifacts, without PyTorch.

    Examples:
      smp3d-export from net.py:build --checkpoint best.pth --shape 1,1,96,96,96
      smp3d-export from monai.networks.nets:VNet --shape 1,1,64,64,64 --to openvino
      smp3d-export from nnUNet_results/Dataset001_Liver --fold 0
      smp3d-export from spleen_ct_segmentation --to onnx,openvino
      smp3d-export from runs/best --to onnx
      smp3d-export from unet-resnet34/model.onnx --to trt-rtx
    """
    return source_from(
        source,
        arguments=parsing.arguments({}, factory_arg or (), "--factory-arg") or None,
        checkpoint=checkpoint,
        weights_key=weights_key,
        keep_outputs=tuple(keep_output or ()),
        name=name,
        folds=None if fold is None else tuple(part.strip() for part in fold.split(",")),
        configuration=configuration,
        checkpoint_name=checkpoint_name,
        revision=revision,
        seed=seed,
        spelled=lambda argument: f"--{argument.replace('_', '-')}",
    )


@app.command(cls=Job)
@reporting
def verify(
    folder: options.Artifact,
    device: options.RunDevice = "cpu",
    threads: options.Threads = None,
    report: options.Reports = None,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Prove an artifact again on this machine.

    The hashes of its files are checked against its manifest. Then it runs on its golden input, and its outputs are
    compared with the golden outputs. In a folder with several artifacts, at any level, each has its own verdict.

    Exit codes: 2 if a file is not what the manifest says, 3 if the artifact cannot run on this machine, 4 if it fails,
    5 if its outputs differ.

    Example:
      smp3d-export verify unet-resnet34
    """
    from smp3d_export.report import console
    from smp3d_export.validators import verify as job

    reports = parsing.reports(report)
    reporter = Reporter(Console(stderr=True))
    result = job.verify(folder, reporter, threads=threads, device=checked(device))
    print_tracebacks(result, debug)
    deliver(result, reports, as_json, lambda out: console.show(result, out, speed=False))


@app.command(cls=Job)
@reporting
def bench(
    artifacts: options.Artifacts,
    against: options.Against = "eager",
    shape: options.BenchShapes = None,
    seconds: options.Seconds = 15.0,
    memory: options.Memory = False,
    force: options.ForceBench = False,
    device: options.RunDevice = "cpu",
    threads: options.Threads = None,
    report: options.Reports = None,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Time artifacts side by side.

    They run in alternating rounds in one process, at several shapes.

    Example:
      smp3d-export bench unet-resnet34/onnx unet-resnet34/openvino
    """
    from smp3d_export.report import timings
    from smp3d_export.validators import bench as job

    reports = parsing.reports(report)
    shapes = [sizes for text in shape or () if (sizes := parsing.shape("--shape", text))]
    result = job.bench(
        artifacts,
        against,
        shapes,
        threads=threads,
        device=checked(device),
        seconds=seconds,
        memory=memory,
        force=force,
        reporter=Reporter(Console(stderr=True)),
    )
    deliver(result, reports, as_json, lambda out: timings.show(result, out))


@app.command("list", cls=Job)
@reporting
def list_names(
    what: options.What = "encoders",
    family: options.Family = None,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """List the architectures, encoders or targets.

    Examples:
      smp3d-export list targets
      smp3d-export list encoders --family resnet
    """
    from smp3d_export.cli import listing

    rows = listing.rows(what, family)
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        listing.show(what, rows, Console())


@app.command(cls=Job)
@reporting
def doctor(as_json: options.AsJson = False, debug: options.Debug = False) -> None:
    """Show what this machine can export, and how to get the rest."""
    from smp3d_export.cli import doctor as job

    findings = job.examine()
    if as_json:
        print(json.dumps(findings, indent=2))
    else:
        job.show(findings, Console())

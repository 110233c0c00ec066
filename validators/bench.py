"""Artifacts side by side at several shapes: time, memory, and how close they come to the machine's limit.

Imports torch only if they are measured against eager.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from smp3d_export import hardware, runtime
from smp3d_export.arrays import volume
from smp3d_export.artifact import folder as artifact
from smp3d_export.artifact.manifest import Manifest, read
from smp3d_export.contract import Shape, ShapeContract, written
from smp3d_export.errors import UsageError
from smp3d_export.onnxgraph.session import session
from smp3d_export.progress import Reporter
from smp3d_export.validators.memory import Peak, peak_memory
from smp3d_export.validators.throughput import Ratio, Side, Timing, ratio, rounds, timing

EAGER = "eager"
BEST_EAGER = "best eager"
MATRIX = "matrix product"
MATRIX_SIZE = 2048


# Runs a volume (N, C, H, W, D), and returns its own measure of the seconds that it took, or None.
Run = Callable[[Any], float | None]


@dataclass(frozen=True)
class Row:
    """One side at one shape.

    Attributes:
        gflops: the work of the captured network over the time taken, in GFLOP/s. An artifact that reaches the same
            result with less work may exceed a matrix product.
        of_matrix_product: the same as a fraction of the matrix product's.
        ratio: against the baseline, whose own is None.
        peak_memory, device_peak: bytes, by `memory.peak_memory`; None if they were not asked for.
    """

    name: str
    shape: Shape
    timing: Timing
    rounds: int
    gflops: float | None
    of_matrix_product: float | None
    ratio: Ratio | None
    peak_memory: int | None = None
    device_peak: int | None = None


@dataclass(frozen=True)
class Bench:
    """What was measured, on what, by how many threads."""

    against: str
    threads: int
    precisions: Mapping[str, str]
    matrix_gflops: float
    rows: tuple[Row, ...]

    @property
    def exit_code(self) -> int:
        return 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"hardware": hardware.describe(), "versions": hardware.versions()}


def bench(
    folders: Sequence[Path] | Mapping[str, Path],
    against: str = EAGER,
    shapes: Sequence[Sequence[int]] | None = None,
    *,
    threads: int | None = None,
    device: str = "cpu",
    seconds: float = 15.0,
    memory: bool = False,
    force: bool = False,
    extra: Mapping[str, Run] | None = None,
    reporter: Reporter | None = None,
) -> Bench:
    """Time artifacts in alternating rounds with what they are measured against.

    Args:
        folders: folders of artifacts, or folders that hold several; or artifacts by the names of their rows.
        against: the baseline: `eager`, an artifact's folder, or a name in `extra`. `eager` is the network built anew
            from the manifest, with random weights because speed does not depend on them, and its best form beside it.
        shapes: (N, C, H, W, D); by default the contract's optimum, its smallest volume, and twice the optimum's volume
            axes as far as the contract allows.
        threads: all cores by default.
        seconds: how long the rounds at one shape may take; there are at least five.
        memory: measure the peak memory of each artifact at each shape too. It takes a process for each artifact, which
            loads it once more and runs before anything is timed; so it is done only if it is asked for.
        force: compare artifacts of different networks too.
        extra: anything else to time beside the artifacts, by name.

    Raises:
        UsageError: there is no artifact, a folder holds none, or the artifacts are of networks that differ.
        ShapeError: a shape is outside a contract.
    """
    reporter = reporter or Reporter()
    threads = threads or hardware.cores()
    if isinstance(folders, Mapping):
        names = dict(folders)
    else:
        names = named([place for folder in folders for place in artifact.find(folder)])
    extra = extra or {}
    if against != EAGER and against not in extra:
        (baseline,) = one(Path(against))
        names = {against: baseline} | {name: place for name, place in names.items() if not same(place, baseline)}
    manifests = {name: read(place) for name, place in names.items()}
    if not manifests:
        raise UsageError("there is no artifact to time")
    first = next(iter(manifests.values()))
    for name, manifest in manifests.items():
        difference = first.model.difference(manifest.model)
        if difference is not None and not force:
            ours, theirs = difference
            raise UsageError(
                f"{next(iter(manifests))} is {ours}, and {name} is {theirs}: times of different networks do not "
                "compare. --force compares them all the same"
            )
    contract = first.contract
    for shape in shapes or ():
        contract.check(shape)
    chosen = [(n, c, h, w, d) for n, c, h, w, d in shapes] if shapes else default_shapes(contract)
    peaks: dict[str, dict[Shape, Peak]] = {}
    if memory:
        with reporter.stage("memory") as stage:
            for number, (name, place) in enumerate(names.items()):
                stage.step(number, len(names), name)
                peaks[name] = peak_memory(place, chosen, threads, device)
            failed = [name for name, found in peaks.items() if len(found) < len(chosen)]
            stage.detail = f"not measured at every shape: {', '.join(failed)}" if failed else "at its peak, by shape"
    with reporter.stage("load"):
        sides: dict[str, Run] = eager(first, contract, threads, device) if against == EAGER else {}
        sides |= extra
        sides |= {name: runtime.load(place, threads=threads, device=device).seconds for name, place in names.items()}
    sides = {against: sides[against]} | sides
    work = None if first.gflop is None else first.gflop / prod(contract.opt)
    rows, best_matrix = alternate(sides, chosen, work, peaks, threads, seconds, reporter)
    precisions = {name: str(manifest.precision) for name, manifest in manifests.items()}
    return Bench(against, threads, precisions, best_matrix, rows)


def alternate(
    sides: Mapping[str, Run],
    shapes: Sequence[Shape],
    work: float | None,
    peaks: Mapping[str, Mapping[Shape, Peak]],
    threads: int,
    seconds: float,
    reporter: Reporter,
) -> tuple[tuple[Row, ...], float]:
    """The rows of sides that take turns with a matrix product, the first one the baseline, and the product's GFLOP/s.

    `work` is the network's GFLOP per voxel of its input.
    """
    matrix = matrix_product(threads)
    rows: list[Row] = []
    best_matrix = 0.0
    for shape in shapes:
        image = volume(shape, seed=0)
        with reporter.stage("speed") as stage:
            parts: list[Side] = [partial(side, image) for side in sides.values()]
            times = rounds([*parts, matrix], step=stage.step, budget=seconds)
            stage.detail = f"{written(shape)}, {len(times[0].seconds)} alternating rounds"
        product = 2 * MATRIX_SIZE**3 / 1e9 / float(np.median(times[-1].seconds))
        best_matrix = max(best_matrix, product)
        for number, name in enumerate(sides):
            peak = peaks.get(name, {}).get(shape, Peak())
            measured = timing(times[number].first, times[number].seconds, prod(shape) // shape[1])
            gflops = None if work is None else work * prod(shape) / measured.p50
            rows.append(
                Row(
                    name=name,
                    shape=shape,
                    timing=measured,
                    rounds=len(times[number].seconds),
                    gflops=gflops,
                    of_matrix_product=None if gflops is None else gflops / product,
                    ratio=None if number == 0 else ratio(times[0].seconds, times[number].seconds),
                    peak_memory=peak.memory,
                    device_peak=peak.device,
                )
            )
    return tuple(rows), best_matrix


def one(folder: Path) -> list[Path]:
    """The artifact that a folder is.

    Raises:
        UsageError: it is not an artifact, or holds several.
    """
    found = artifact.find(folder)
    if len(found) > 1:
        raise UsageError(f"--against {str(folder)!r} holds {len(found)} artifacts: name one of them")
    return found


def same(place: Path, other: Path) -> bool:
    return place.resolve() == other.resolve()


def named(places: Sequence[Path]) -> dict[str, Path]:
    """Folders by the shortest names that tell them apart."""
    short = {place: place.name for place in places}
    if len(set(short.values())) < len(places):
        short = {place: str(place) for place in places}
    return {name: place for place, name in short.items()}


def default_shapes(contract: ShapeContract) -> list[Shape]:
    """The optimum, the smallest volume, and twice the optimum's volume axes as far as the contract goes; none twice."""
    n, c, *volume_axes = contract.opt
    h, w, d = (min(2 * size, axis.max) for size, axis in zip(volume_axes, contract.axes[2:], strict=True))
    smallest = (n, c, *contract.min[2:])
    return list(dict.fromkeys([contract.opt, smallest, (n, c, h, w, d)]))


def eager(manifest: Manifest, contract: ShapeContract, threads: int, device: str) -> dict[str, Run]:
    """An artifact's network in eager PyTorch with random weights: as published, and in its best form.

    The best form is rewritten and in channels-last-3d, as it is given to AOTInductor and TorchScript.
    """
    import torch

    from smp3d_export.optimise import optimise
    from smp3d_export.program.capture import capture
    from smp3d_export.program.memory_format import channels_last
    from smp3d_export.sources.named import NamedNetwork, build

    model = manifest.model
    if not model.encoder:
        raise UsageError(
            f"{model.name} is a network of your own, which cannot be built from its artifact: give another artifact by "
            "--against"
        )
    torch.set_num_threads(threads)
    arguments = {name: value for name, value in model.arguments.items() if name != "encoder_name"}
    arguments["encoder_weights"] = None
    source = NamedNetwork(architecture=model.architecture, encoder=model.encoder, arguments=arguments)
    network = build(source).to(device)
    best: Any = channels_last(optimise(capture(network.model, contract)).captured)
    return {EAGER: network.seconds, BEST_EAGER: replace(network, model=best).seconds}


def matrix_product(threads: int) -> Side:
    """A dense fp32 product of two square matrices in ONNX Runtime, which is about what a processor can reach."""
    from onnx import TensorProto, helper

    size = [MATRIX_SIZE, MATRIX_SIZE]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name in "ab"]
    output = helper.make_tensor_value_info("c", TensorProto.FLOAT, size)
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    run = session(model.SerializeToString(), threads)
    a, b = np.random.default_rng(0).standard_normal((2, *size), dtype=np.float32)

    def side() -> None:
        run.run(None, {"a": a, "b": b})

    return side

"""Artifact -> verdict: prove it equal to its reference, time it, complete its manifest. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from smp3d_export import backends, hardware, runtime
from smp3d_export.arrays import volume
from smp3d_export.artifact import folder as artifact
from smp3d_export.artifact import manifest
from smp3d_export.artifact.manifest import Manifest
from smp3d_export.backends.exporter import Exported
from smp3d_export.contract import ShapeContract
from smp3d_export.errors import (
    ParityError,
    Smp3dExportError,
    TargetUnavailableError,
    TooSlowError,
    out_of_memory,
    summary,
)
from smp3d_export.precision import Precision
from smp3d_export.progress import Reporter
from smp3d_export.runtime import Runner
from smp3d_export.sources.request import Request, Timed
from smp3d_export.validators.memory import Peak, peak_memory
from smp3d_export.validators.parity import Parity, Reference, Run, Step, compare
from smp3d_export.validators.throughput import SECONDS, Side, Throughput, alternate
from smp3d_export.validators.tolerances import Tolerance, tolerance
from smp3d_export.validators.verdict import Verdict

if TYPE_CHECKING:
    from onnx import ModelProto

# For the rounds of each target if there are several. At least five rounds run.
SECONDS_OF_SEVERAL = 8.0

ROUNDED = "rounded"
"""Added to the name of a case that was compared a second time, with every value rounded."""
FEW = 8
"""How many layers an error names one by one."""
BEYOND_FP16 = (
    "fp16 holds numbers up to 65504: if values are larger, normalise the volumes (--normalize), or use "
    "--precision bf16 or fp32"
)


@dataclass(frozen=True)
class Proof:
    """What the artifacts of one export are compared with.

    They are timed against `baselines`, and judged by the first. `compared` are graphs that were emulated
    already, with their parity: engines of several targets are made from one.
    """

    request: Request
    reference: Reference
    baselines: Mapping[str, Timed]
    threads: int
    reporter: Reporter
    compared: list[tuple[ModelProto, Tolerance, Parity]] = field(default_factory=list)

    def of(self, folder: Path, exported: Exported, description: Manifest, build_seconds: float) -> Verdict:
        """The verdict on an artifact. Its golden input and complete manifest are written to its folder."""
        request, target, contract = self.request, description.target, description.contract
        runner, not_run = self._load(folder)
        write_golden(self._golden(runner, exported), contract, request.source.seed, folder)
        parity = self._parity(runner, exported, target)
        overflow = self._overflow(exported.graph, parity)
        throughput = self._throughput(runner) if request.bench and runner is not None else None
        if throughput is not None:
            optimum = contract.opt
            peak = peak_memory(folder, [optimum], self.threads, request.device).get(optimum, Peak())
            throughput = throughput.with_costs(build_seconds, peak.memory, hardware.cores(), peak.device)
        files = artifact.describe_files(folder)
        complete = replace(
            description,
            files=files,
            run="here" if not_run is None else f"not run: {not_run}",
            parity=parity.to_dict(),
            throughput=throughput.to_dict() if throughput else manifest.NOT_RUN,
        )
        manifest.write(folder, complete)
        return Verdict(
            target=target,
            precision=description.precision,
            folder=folder,
            files=tuple(sorted([*files, manifest.FILE])),
            parity=parity,
            throughput=throughput,
            not_run=not_run,
            error=shortfall(parity, throughput, request.min_speedup, overflow),
        )

    def _load(self, folder: Path) -> tuple[Runner | None, str | None]:
        """The artifact's runner, or why it cannot run on this machine."""
        try:
            return runtime.load(folder, threads=self.threads, device=self.request.device), None
        except TargetUnavailableError as error:
            return None, str(error)

    def _golden(self, runner: Runner | None, exported: Exported) -> Run:
        """What computes the golden outputs: the eager network, but in int8 the artifact itself, or its graph.

        The golden input is unlike the calibration volumes, so in int8 it can only prove that another machine computes
        the same.
        """
        if self.request.settings.precision is not Precision.INT8:
            return self.reference.eager
        if runner is not None:
            return runner
        return self.reference.eager if exported.graph is None else self._emulated(exported.graph)

    def _parity(self, runner: Runner | None, exported: Exported, target: str) -> Parity:
        """The parity of the artifact, or of the graph that it was made from if it cannot run on this machine.

        A CPU that computes half precision in fp32 hides overflow. Then the graph is compared too, with every value
        rounded.
        """
        with self.reporter.stage("parity") as stage:
            precision, graph = self.request.settings.precision, exported.graph
            bounds = tolerance(precision, target)
            what = ""
            if runner is not None:
                parity = compare(runner, self.reference, bounds, stage.step)
                on_cpu = self.request.device == "cpu" and not backends.find(target).gpu
                if graph is not None and precision.is_half and on_cpu:
                    parity = parity.with_cases(self._parity_of(graph, bounds, stage.step), ROUNDED)
                    what = ", as they are and rounded"
            elif graph is not None:
                parity = replace(self._parity_of(graph, bounds, stage.step), of="graph")
                what = " of its graph"
            else:
                parity = Parity(
                    (),
                    tuple((case.name, "the artifact cannot run on this machine") for case in self.reference.cases),
                    bounds,
                )
            compared = len(self.reference.cases) - len(parity.not_run)
            stage.detail = f"{compared} inputs{what}" + (f", {len(parity.not_run)} not run" if parity.not_run else "")
        return parity

    def _parity_of(self, graph: ModelProto, bounds: Tolerance, step: Step) -> Parity:
        """The parity of a graph in ONNX Runtime with every value rounded to its type, computed once per graph."""
        for known, tolerated, parity in self.compared:
            if known is graph and tolerated == bounds:
                return parity
        parity = compare(self._emulated(graph), self.reference, bounds, step)
        self.compared.append((graph, bounds, parity))
        return parity

    def _overflow(self, graph: ModelProto | None, parity: Parity) -> str:
        """What may have overflowed if an fp16 artifact misses parity, and how to avoid it; otherwise empty.

        An overflow gives outputs that are not finite, except in OpenVINO, which clips values.
        """
        if self.request.settings.precision is not Precision.FP16 or parity.passed:
            return ""
        if graph is None:
            return f". {BEYOND_FP16}"
        from smp3d_export.onnxgraph.emulation import overflowing

        failed = {measurement.case for measurement in parity.measurements if measurement.problem is not None}
        for case in self.reference.cases:
            if failed.isdisjoint((case.name, f"{case.name}, {ROUNDED}")):
                continue
            layers = overflowing(graph, case.make(), self.threads)
            if layers:
                return f". {advice(layers)}"
        return ""

    def _emulated(self, graph: ModelProto) -> Run:
        from smp3d_export.onnxgraph.emulation import Emulation

        return Emulation(graph, self.threads)

    def _throughput(self, runner: Runner) -> Throughput | None:
        """The speed of an artifact; None if there is not enough memory for it and its baselines."""
        try:
            return self._timed(runner)
        except Exception as error:
            if not out_of_memory(error) or self.request.min_speedup is not None:
                raise
            self.reporter.say(f"speed was not measured: {summary(error)}", style="yellow")
            return None

    def _timed(self, runner: Runner) -> Throughput:
        shape = runner.contract.opt
        image = volume(shape, self.request.source.seed)
        with self.reporter.stage("speed") as stage:
            sides: dict[str, Side] = {name: partial(side.seconds, image) for name, side in self.baselines.items()}
            budget = SECONDS_OF_SEVERAL if self.request.several else SECONDS
            side = partial(runner.seconds, image)
            throughput = alternate(sides, side, shape, threads=self.threads, step=stage.step, budget=budget)
            stage.detail = f"{throughput.rounds} alternating rounds"
        return throughput


def write_golden(run: Run, contract: ShapeContract, seed: int, folder: Path) -> None:
    """Write the contract's smallest input with its outputs, to prove the artifact again on other machines.

    It is always a seeded volume: an artifact contains nothing of the user's volumes.
    """
    image = volume(contract.min, seed)
    np.savez_compressed(folder / artifact.GOLDEN, allow_pickle=False, image=image, **run(image))


def advice(layers: Sequence[str]) -> str:
    """How to export layers that overflow in fp16; they are named if they are few."""
    if len(layers) > FEW:
        return f"{len(layers)} layers overflow fp16, the first of them {layers[0]}: {BEYOND_FP16}"
    options = " ".join(f"--keep-fp32 {layer}" for layer in layers)
    return f"{', '.join(layers)} overflow{'s' * (len(layers) == 1)} fp16: export the network with {options}"


def shortfall(
    parity: Parity, throughput: Throughput | None, min_speedup: float | None, overflow: str = ""
) -> Smp3dExportError | None:
    """The error of a verdict, parity before speed; None if it is good. `overflow` is added to a parity error."""
    if not parity.passed:
        return ParityError(parity.shortfall() + overflow)
    if min_speedup is not None and throughput is not None and throughput.speedup < min_speedup:
        return TooSlowError(
            f"{throughput.speedup:.2f} times as fast as {throughput.against}; --min-speedup asks for {min_speedup:g}"
        )
    return None

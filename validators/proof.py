"""Artifact -> verdict: proved equal to its reference, measured, its manifest completed. Imports no torch."""

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

# For the rounds of each target if there are several; there are five at least.
SECONDS_OF_SEVERAL = 8.0

ROUNDED = "rounded"
"""What is added to the name of a case that was compared a second time, every value rounded."""
FEW = 8
"""Layers that an error names one by one."""
BEYOND_FP16 = (
    "fp16 holds numbers up to 65504: if values are larger, normalise the volumes (--normalize), or use "
    "--precision bf16 or fp32"
)


@dataclass(frozen=True)
class Proof:
    """What the artifacts of one export are held against.

    `baselines` are what they are timed against; they are judged by the first. `compared` are graphs that were emulated
    already, with their parity: engines of several targets are made from one.
    """

    request: Request
    reference: Reference
    baselines: Mapping[str, Timed]
    threads: int
    reporter: Reporter
    compared: list[tuple[ModelProto, Tolerance, Parity]] = field(default_factory=list)

    def of(self, folder: Path, exported: Exported, description: Manifest, build_seconds: float) -> Verdict:
        """The verdict on an artifact, whose golden input and whole manifest are written beside it."""
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
        """The artifact's runner, or why it cannot run here."""
        try:
            return runtime.load(folder, threads=self.threads, device=self.request.device), None
        except TargetUnavailableError as error:
            return None, str(error)

    def _golden(self, runner: Runner | None, exported: Exported) -> Run:
        """What gives the golden outputs: the eager network.

        In int8 it is the artifact itself, or its graph. The golden input is not like the volumes that the ranges are
        from, so what it can prove is that another machine computes the same.
        """
        if self.request.settings.precision is not Precision.INT8:
            return self.reference.eager
        if runner is not None:
            return runner
        return self.reference.eager if exported.graph is None else self._emulated(exported.graph)

    def _parity(self, runner: Runner | None, exported: Exported, target: str) -> Parity:
        """The parity of the artifact; of the graph that it was made from, if it cannot run here.

        A CPU that computes half precision in fp32 hides what overflows elsewhere: then the graph is compared too, every
        value rounded.
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
        """The parity of a graph in ONNX Runtime, every value rounded to its type; computed once for each graph."""
        for known, tolerated, parity in self.compared:
            if known is graph and tolerated == bounds:
                return parity
        parity = compare(self._emulated(graph), self.reference, bounds, step)
        self.compared.append((graph, bounds, parity))
        return parity

    def _overflow(self, graph: ModelProto | None, parity: Parity) -> str:
        """What may have overflowed, if an artifact in fp16 misses parity, and how to export without; else empty.

        Outputs of an overflow are not finite, except in OpenVINO, which clips values.
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
        """The speed of an artifact; None if there is not enough memory for it and for what it is timed against."""
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
    """The smallest input of the contract with its outputs, to prove the artifact again elsewhere.

    It is a seeded volume in every case: an artifact carries nothing of the user's volumes.
    """
    image = volume(contract.min, seed)
    np.savez_compressed(folder / artifact.GOLDEN, allow_pickle=False, image=image, **run(image))


def advice(layers: Sequence[str]) -> str:
    """How to export layers that overflow in fp16: each by its name, if they are few."""
    if len(layers) > FEW:
        return f"{len(layers)} layers overflow fp16, the first of them {layers[0]}: {BEYOND_FP16}"
    options = " ".join(f"--keep-fp32 {layer}" for layer in layers)
    return f"{', '.join(layers)} overflow{'s' * (len(layers) == 1)} fp16: export the network with {options}"


def shortfall(
    parity: Parity, throughput: Throughput | None, min_speedup: float | None, overflow: str = ""
) -> Smp3dExportError | None:
    """What the verdict falls short of: parity before speed. `overflow` is added to what parity says."""
    if not parity.passed:
        return ParityError(parity.shortfall() + overflow)
    if min_speedup is not None and throughput is not None and throughput.speedup < min_speedup:
        return TooSlowError(
            f"{throughput.speedup:.2f} times as fast as {throughput.against}; --min-speedup asks for {min_speedup:g}"
        )
    return None

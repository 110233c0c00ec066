"""Artifact -> verdict: proved equal to its reference, measured, its manifest completed. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from smp3d_export import hardware, runtime
from smp3d_export.arrays import volume
from smp3d_export.artifact import folder as artifact
from smp3d_export.artifact import manifest
from smp3d_export.artifact.manifest import Manifest
from smp3d_export.backends.exporter import Exported
from smp3d_export.contract import ShapeContract
from smp3d_export.errors import ParityError, Smp3dExportError, TargetUnavailableError, TooSlowError
from smp3d_export.precision import Precision
from smp3d_export.progress import Reporter
from smp3d_export.runtime import Runner
from smp3d_export.sources.request import Request, Timed
from smp3d_export.validators.memory import peak_memory
from smp3d_export.validators.parity import Parity, Reference, Run, compare
from smp3d_export.validators.throughput import SECONDS, Side, Throughput, alternate
from smp3d_export.validators.tolerances import tolerance
from smp3d_export.validators.verdict import Verdict

if TYPE_CHECKING:
    from onnx import ModelProto

# For the rounds of each target if there are several; there are five at least.
SECONDS_OF_SEVERAL = 8.0


@dataclass(frozen=True)
class Proof:
    """What the artifacts of one export are held against.

    `baselines` are what they are timed against; they are judged by the first. `compared` are graphs that were run in
    ONNX Runtime already, with their parity.
    """

    request: Request
    reference: Reference
    baselines: Mapping[str, Timed]
    threads: int
    reporter: Reporter
    compared: list[tuple[ModelProto, Parity]] = field(default_factory=list)

    def of(self, folder: Path, exported: Exported, description: Manifest, build_seconds: float) -> Verdict:
        """The verdict on an artifact, whose golden input and whole manifest are written beside it."""
        request, target, contract = self.request, description.target, description.contract
        runner, not_run = self._load(folder)
        write_golden(self._golden(runner, exported), contract, request.source.seed, folder)
        parity = self._parity(runner, exported, target)
        throughput = None
        if request.bench and runner is not None:
            throughput = self._throughput(runner).with_costs(
                build_seconds, peak_memory(folder, self.threads, request.device), hardware.cores()
            )
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
            error=shortfall(parity, throughput, request.min_speedup),
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

        A CPU that computes half precision in fp32 hides what overflows elsewhere: then the graph is compared too, at
        one shape, every value rounded.
        """
        with self.reporter.stage("parity") as stage:
            precision = self.request.settings.precision
            bounds = tolerance(precision, target)
            if runner is not None:
                parity = compare(runner, self.reference, bounds, stage.step)
                if target == "onnx" and exported.graph is not None:
                    self.compared.append((exported.graph, parity))
                if exported.graph is not None and precision.is_half and self.request.device == "cpu":
                    optimum = self.reference.cases[0]
                    rounded = compare(self._emulated(exported.graph), self.reference, bounds, cases=[optimum])
                    parity = parity.with_case(rounded, "rounded")
            elif exported.graph is not None:
                known = [parity for graph, parity in self.compared if graph is exported.graph]
                if not known:  # by the target onnx, whose artifact it is
                    known = [compare(self._emulated(exported.graph), self.reference, bounds, stage.step)]
                parity = replace(known[0], of="graph")
            else:
                parity = Parity((), tuple((case.name, "the artifact cannot") for case in self.reference.cases), bounds)
            compared = len(self.reference.cases) - len(parity.not_run)
            what = " of its graph" if parity.of == "graph" else ""
            stage.detail = f"{compared} inputs{what}" + (f", {len(parity.not_run)} not run" if parity.not_run else "")
        return parity

    def _emulated(self, graph: ModelProto) -> Run:
        from smp3d_export.onnxgraph.emulation import Emulation

        return Emulation(graph, self.threads)

    def _throughput(self, runner: Runner) -> Throughput:
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


def shortfall(parity: Parity, throughput: Throughput | None, min_speedup: float | None) -> Smp3dExportError | None:
    """What the verdict falls short of: parity before speed."""
    if not parity.passed:
        return ParityError(parity.shortfall())
    if min_speedup is not None and throughput is not None and throughput.speedup < min_speedup:
        return TooSlowError(
            f"{throughput.speedup:.2f} times as fast as {throughput.against}; --min-speedup asks for {min_speedup:g}"
        )
    return None

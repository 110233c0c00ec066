"""What is exported -> one target's artifact, whole: exported, described, proved and measured. Imports no torch."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from smp3d_export import artifact, hardware, manifest, runtime, targets, validate
from smp3d_export.errors import ParityError, Smp3dExportError, TargetUnavailableError, TooSlowError
from smp3d_export.progress import Reporter
from smp3d_export.report import Verdict
from smp3d_export.request import Request
from smp3d_export.runtime.stand_in import StandIn
from smp3d_export.runtime.volumes import Volume
from smp3d_export.targets import Exported, Precision
from smp3d_export.validators.inputs import volume
from smp3d_export.validators.parity import Parity, Reference, Run, compare
from smp3d_export.validators.throughput import Side, Throughput, alternate
from smp3d_export.validators.tolerances import tolerance

if TYPE_CHECKING:
    from smp3d_export.targets import Exportable


class Timed(Protocol):
    """A network, or an artifact: it runs, and may time itself."""

    def seconds(self, image: Volume) -> float | None: ...


@dataclass(frozen=True)
class Delivery:
    """What the artifacts of one export share.

    `description` is what their manifests say of the network; `baselines` are what they are timed against, the one that
    they are judged by first.
    """

    request: Request
    source: Exportable
    description: Mapping[str, Any]
    reference: Reference
    baselines: Mapping[str, Timed]
    threads: int
    staging: artifact.Staging
    reporter: Reporter

    def of(self, target: str) -> Verdict:
        """Export to one target; an error of ours ends in its verdict, and what it made is dropped."""
        try:
            return self._deliver(target)
        except Smp3dExportError as error:
            self.staging.discard(target)
            return Verdict(target=target, precision=self.request.options.precision, folder=None, error=error)

    def _deliver(self, target: str) -> Verdict:
        request, precision = self.request, self.request.options.precision
        module = targets.ready(target, precision, request.device)
        folder = self.staging.folder(target)
        description = {**self.description, "target": target, "precision": str(precision)}
        started = time.perf_counter()
        with self.reporter.stage(target) as stage:
            options = replace(request.options, metadata=embedded(description))
            exported = module.export(self.source, options, folder)
            stage.detail = exported.summary
        build_seconds = time.perf_counter() - started
        description |= {**exported.facts, "build_seconds": round(build_seconds, 3)}
        artifact.write_manifest(folder, description)

        runner, not_run = self._load(folder)
        golden = self._golden(runner, exported)
        validate.write_golden(golden, self.source.contract, request.network.seed, folder)
        parity = self._parity(runner, exported, target)
        throughput = None
        if request.bench and isinstance(runner, runtime.Runner):
            throughput = self._throughput(runner).with_costs(
                build_seconds, validate.peak_memory(folder, self.threads, request.device), hardware.cores()
            )
        files = artifact.describe_files(folder)
        artifact.write_manifest(folder, manifest.complete(description, files, parity, throughput, not_run))
        place = request.folder / target if self.staging.several else request.folder
        error = shortfall(parity, throughput, request.min_speedup)
        if not parity.passed:
            self.staging.set_aside(target)
            place = artifact.failed_place(request.folder) / (target if self.staging.several else "")
        return Verdict(
            target=target,
            precision=precision,
            folder=place,
            files=tuple(sorted([*files, artifact.MANIFEST])),
            parity=parity,
            throughput=throughput,
            not_run=not_run,
            error=error,
        )

    def _load(self, folder: Path) -> tuple[runtime.Runner | None, str | None]:
        """The artifact's runner, or why it cannot run here."""
        try:
            return runtime.load(folder, threads=self.threads, device=self.request.device), None
        except TargetUnavailableError as error:
            return None, str(error)

    def _golden(self, runner: runtime.Runner | None, exported: Exported) -> Run:
        """What gives the golden outputs: the eager network.

        In int8 it is the artifact itself, or its graph: the golden input is not like the volumes that the ranges are
        from, so what can be proved by it is that another machine computes the same.
        """
        if self.request.options.precision is not Precision.INT8:
            return self.reference.eager
        if runner is not None:
            return runner
        return self.reference.eager if exported.graph is None else StandIn(exported.graph, self.threads)

    def _parity(self, runner: runtime.Runner | None, exported: Exported, target: str) -> Parity:
        """Of the artifact; of the graph that it was made of, where it cannot run here.

        A processor that computes half precision in fp32 hides what overflows elsewhere: then the graph is compared too,
        at one shape, every value rounded.
        """
        with self.reporter.stage("parity") as stage:
            bounds = tolerance(self.request.options.precision, target)
            if runner is not None:
                parity = compare(runner, self.reference, bounds, stage.step)
                if exported.graph is not None and self.request.device == "cpu":
                    optimum = self.reference.cases[0]
                    rounded = compare(StandIn(exported.graph, self.threads), self.reference, bounds, cases=[optimum])
                    parity = parity.with_case(rounded, "rounded")
            elif exported.graph is not None:
                stand_in = StandIn(exported.graph, self.threads)
                parity = replace(compare(stand_in, self.reference, bounds, stage.step), of="graph")
            else:
                parity = Parity((), tuple((case.name, "the artifact cannot") for case in self.reference.cases), bounds)
            compared = len(self.reference.cases) - len(parity.not_run)
            what = " of its graph" if parity.of == "graph" else ""
            stage.detail = f"{compared} inputs{what}" + (f", {len(parity.not_run)} not run" if parity.not_run else "")
        return parity

    def _throughput(self, runner: runtime.Runner) -> Throughput:
        shape = self.source.contract.opt
        image = volume(shape, self.request.network.seed)
        with self.reporter.stage("speed") as stage:
            sides: dict[str, Side] = {name: partial(side.seconds, image) for name, side in self.baselines.items()}
            throughput = alternate(sides, partial(runner.seconds, image), shape, threads=self.threads, step=stage.step)
            stage.detail = f"{throughput.rounds} alternating rounds"
        return throughput


def embedded(description: Mapping[str, Any]) -> dict[str, str]:
    """The manifest's description as an ONNX file carries it: text under names of ours."""
    return {f"smp3d-export.{name}": json.dumps(value, ensure_ascii=False) for name, value in description.items()}


def shortfall(parity: Parity, throughput: Throughput | None, min_speedup: float | None) -> Smp3dExportError | None:
    """What the verdict falls short of: parity before speed."""
    if not parity.passed:
        return ParityError(parity.shortfall())
    if min_speedup is not None and throughput is not None and throughput.speedup < min_speedup:
        return TooSlowError(
            f"{throughput.speedup:.2f} times as fast as {throughput.against}; --min-speedup asks for {min_speedup:g}"
        )
    return None

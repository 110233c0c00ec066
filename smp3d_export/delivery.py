"""A captured program -> one target's artifact, whole: exported, described, proved and measured."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from smp3d_export import artifact, manifest, runtime, targets, validate
from smp3d_export.capture import Captured
from smp3d_export.errors import ParityError, Smp3dExportError, TooSlowError
from smp3d_export.network import Network
from smp3d_export.progress import Reporter
from smp3d_export.report import Verdict
from smp3d_export.request import Request
from smp3d_export.targets import Precision
from smp3d_export.validators.inputs import volume
from smp3d_export.validators.parity import Parity, Reference, compare
from smp3d_export.validators.throughput import Throughput, alternate
from smp3d_export.validators.tolerances import tolerance


@dataclass(frozen=True)
class Delivery:
    """What the artifacts of one export share."""

    request: Request
    network: Network
    captured: Captured
    reference: Reference
    staging: artifact.Staging
    reporter: Reporter

    def of(self, target: str, precision: Precision = Precision.FP32) -> Verdict:
        """Export to one target; an error of ours ends in its verdict, and what it made is dropped."""
        try:
            return self._deliver(target, precision)
        except Smp3dExportError as error:
            self.staging.discard(target)
            return Verdict(target=target, precision=precision, folder=None, error=error)

    def _deliver(self, target: str, precision: Precision) -> Verdict:
        module = targets.ready(target, precision)
        folder = self.staging.folder(target)
        description = manifest.describe(self.network, self.captured, self.request, target, precision)
        started = time.perf_counter()
        with self.reporter.stage(target) as stage:
            options = replace(self.request.options, precision=precision, metadata=embedded(description))
            exported = module.export(self.captured, options, folder)
            stage.detail = exported.summary
        build_seconds = time.perf_counter() - started
        description |= {**exported.facts, "build_seconds": round(build_seconds, 3)}
        validate.write_golden(self.network, self.captured.contract, self.request.network.seed, folder)
        artifact.write_manifest(folder, description)

        threads = torch.get_num_threads()
        runner = runtime.load(folder, threads=threads)
        parity = self._parity(runner, target, precision)
        throughput = self._throughput(runner, folder, threads, build_seconds) if self.request.bench else None
        files = artifact.describe_files(folder)
        artifact.write_manifest(folder, manifest.complete(description, files, parity, throughput))
        place = self.request.folder / target if self.staging.several else self.request.folder
        error = shortfall(parity, throughput, self.request.min_speedup)
        if not parity.passed:
            self.staging.set_aside(target)
            place = artifact.failed_place(self.request.folder) / (target if self.staging.several else "")
        return Verdict(
            target=target,
            precision=precision,
            folder=place,
            files=tuple(sorted([*files, artifact.MANIFEST])),
            parity=parity,
            throughput=throughput,
            error=error,
        )

    def _parity(self, runner: runtime.Runner, target: str, precision: Precision) -> Parity:
        with self.reporter.stage("parity") as stage:
            parity = compare(runner, self.reference, tolerance(precision, target), stage.step)
            compared = len(self.reference.cases) - len(parity.not_run)
            stage.detail = f"{compared} inputs" + (f", {len(parity.not_run)} not run" if parity.not_run else "")
        return parity

    def _throughput(self, runner: runtime.Runner, folder: Path, threads: int, build_seconds: float) -> Throughput:
        shape = self.captured.contract.opt
        image = volume(shape, self.request.network.seed)
        with self.reporter.stage("speed") as stage:
            throughput = alternate(
                lambda: self.network(image), lambda: runner(image), shape, threads=threads, step=stage.step
            )
            stage.detail = f"{throughput.rounds} alternating rounds"
        return throughput.with_costs(build_seconds, validate.peak_memory(folder, threads))


def embedded(description: dict[str, Any]) -> dict[str, str]:
    """The manifest's description as an ONNX file carries it: text under names of ours."""
    return {f"smp3d-export.{name}": json.dumps(value, ensure_ascii=False) for name, value in description.items()}


def shortfall(parity: Parity, throughput: Throughput | None, min_speedup: float | None) -> Smp3dExportError | None:
    """What the verdict falls short of: parity before speed."""
    if not parity.passed:
        worst = max(parity.measurements, key=lambda m: (not m.passed, m.relative))
        labels = "" if worst.labels is None else f" and {worst.labels:.4%} of the labels equal"
        return ParityError(
            f"{worst.output} differs from eager by {worst.relative:.1e} of its range{labels} at the {worst.case} shape "
            f"{worst.shape}; allowed are {parity.tolerance.relative:.0e} and {parity.tolerance.labels:.2%}"
        )
    if min_speedup is not None and throughput is not None and throughput.speedup < min_speedup:
        return TooSlowError(f"{throughput.speedup:.2f} times as fast as eager; --min-speedup asks for {min_speedup:g}")
    return None

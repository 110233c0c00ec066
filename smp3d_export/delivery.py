"""What is exported -> one target's artifact, whole: exported, described, proved and measured. Imports no torch."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from smp3d_export import artifact, hardware, manifest, runtime, targets, validate
from smp3d_export.errors import ExportError, ParityError, Smp3dExportError, TargetUnavailableError, TooSlowError
from smp3d_export.forms import for_target
from smp3d_export.onnx_file import OnnxFile
from smp3d_export.progress import Reporter
from smp3d_export.report import Verdict
from smp3d_export.request import Request
from smp3d_export.runtime.stand_in import StandIn
from smp3d_export.runtime.volumes import Volume
from smp3d_export.targets import Exported, Precision, Target
from smp3d_export.validators.inputs import volume
from smp3d_export.validators.parity import Parity, Reference, Run, compare
from smp3d_export.validators.throughput import SECONDS, Side, Throughput, alternate, rounds
from smp3d_export.validators.tolerances import tolerance

if TYPE_CHECKING:
    from onnx import ModelProto

    from smp3d_export.contract import ShapeContract
    from smp3d_export.targets import Exportable

# For the rounds of each target where there are several; there are five at the least.
SECONDS_OF_SEVERAL = 8.0
# To tell which of two forms is faster.
RACE_ROUNDS = 5
RACE_SECONDS = 8.0


class Timed(Protocol):
    """A network, or an artifact: it runs, and may time itself."""

    def seconds(self, image: Volume) -> float | None: ...


@dataclass(frozen=True)
class Delivery:
    """What the artifacts of one export share.

    `forms` are what artifacts are made of: one program, or several by name that compute the same, of which the fastest
    is kept for each target. `description` is what their manifests say of the network; `baselines` are what they are
    timed against, the one that they are judged by first. `compared` are graphs that were run in ONNX Runtime already.
    """

    request: Request
    forms: Mapping[str, Exportable]
    description: Mapping[str, Any]
    reference: Reference
    baselines: Mapping[str, Timed]
    threads: int
    staging: artifact.Staging
    reporter: Reporter
    compared: list[tuple[ModelProto, Parity]] = field(default_factory=list)

    @property
    def contract(self) -> ShapeContract:
        return next(iter(self.forms.values())).contract

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
        started = time.perf_counter()
        with self.reporter.stage(target) as stage:
            exported, description = self._export(module, folder)
            stage.detail = exported.summary
        build_seconds = time.perf_counter() - started
        description["build_seconds"] = round(build_seconds, 3)
        artifact.write_manifest(folder, description)

        runner, not_run = self._load(folder)
        golden = self._golden(runner, exported)
        validate.write_golden(golden, self.contract, request.network.seed, folder)
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

    def _export(self, module: Target, folder: Path) -> tuple[Exported, dict[str, Any]]:
        """Fill the folder with an artifact; of several forms, with that of the one that is the fastest here."""
        forms = for_target(self.forms, module.name)
        if len(forms) == 1:
            (name,) = forms
            return self._make(module, name, folder)
        with tempfile.TemporaryDirectory(prefix=".forms-", dir=folder) as scratch:
            places, made, failed = {}, {}, {}
            for name in forms:
                place = Path(scratch) / name
                place.mkdir()
                try:
                    made[name] = self._make(module, name, place)
                except ExportError as error:
                    failed[name] = error
                    continue
                places[name] = place
            if not made:
                raise next(iter(failed.values()))
            seconds = self._race(places)
            chosen = min(seconds, key=lambda name: seconds[name]) if seconds else next(iter(places))
            for path in places[chosen].iterdir():
                path.rename(folder / path.name)
        exported, description = made[chosen]
        description["optimise"]["milliseconds"] = {name: round(1e3 * taken, 3) for name, taken in seconds.items()}
        if failed:
            description["optimise"]["failed"] = {name: str(error) for name, error in failed.items()}
        times = ", ".join(f"{1e3 * taken:.0f} ms {name}" for name, taken in seconds.items())
        short = exported.summary.partition(",")[0]
        return replace(exported, summary=f"{short}; {times or f'optimise {chosen}, not timed'}"), description

    def _make(self, module: Target, name: str, folder: Path) -> tuple[Exported, dict[str, Any]]:
        """Export one form, with as much of a manifest as it takes to run it."""
        source, precision = self.forms[name], self.request.options.precision
        description = {**self.description, "target": module.name, "precision": str(precision)}
        if not isinstance(source, OnnxFile):
            description |= {"optimisations": dict(source.rewrites)}
            description |= {"optimise": {"asked": self.request.optimise, "used": name}}
        options = replace(self.request.options, metadata=embedded(description))
        exported = module.export(source, options, folder)
        description |= exported.facts
        artifact.write_manifest(folder, description)
        return exported, description

    def _race(self, places: Mapping[str, Path]) -> dict[str, float]:
        """The median seconds of each form at the optimum, in alternating rounds; nothing where they cannot run here."""
        image = volume(self.contract.opt, self.request.network.seed)
        runners = [self._load(place)[0] for place in places.values()]
        sides: list[Side] = [partial(runner.seconds, image) for runner in runners if runner is not None]
        if len(sides) < len(places):
            return {}
        times = rounds(sides, least=RACE_ROUNDS, budget=RACE_SECONDS)
        return {name: float(np.median(mine.seconds)) for name, mine in zip(places, times, strict=True)}

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
            precision = self.request.options.precision
            bounds = tolerance(precision, target)
            if runner is not None:
                parity = compare(runner, self.reference, bounds, stage.step)
                if target == "onnx" and exported.graph is not None:
                    self.compared.append((exported.graph, parity))
                low = precision in (Precision.FP16, Precision.BF16)
                if exported.graph is not None and low and self.request.device == "cpu":
                    optimum = self.reference.cases[0]
                    rounded = compare(StandIn(exported.graph, self.threads), self.reference, bounds, cases=[optimum])
                    parity = parity.with_case(rounded, "rounded")
            elif exported.graph is not None:
                known = [parity for graph, parity in self.compared if graph is exported.graph]
                if not known:  # by the target onnx, whose artifact it is
                    known = [compare(StandIn(exported.graph, self.threads), self.reference, bounds, stage.step)]
                parity = replace(known[0], of="graph")
            else:
                parity = Parity((), tuple((case.name, "the artifact cannot") for case in self.reference.cases), bounds)
            compared = len(self.reference.cases) - len(parity.not_run)
            what = " of its graph" if parity.of == "graph" else ""
            stage.detail = f"{compared} inputs{what}" + (f", {len(parity.not_run)} not run" if parity.not_run else "")
        return parity

    def _throughput(self, runner: runtime.Runner) -> Throughput:
        shape = self.contract.opt
        image = volume(shape, self.request.network.seed)
        with self.reporter.stage("speed") as stage:
            sides: dict[str, Side] = {name: partial(side.seconds, image) for name, side in self.baselines.items()}
            budget = SECONDS if len(self.request.targets) == 1 else SECONDS_OF_SEVERAL
            side = partial(runner.seconds, image)
            throughput = alternate(sides, side, shape, threads=self.threads, step=stage.step, budget=budget)
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

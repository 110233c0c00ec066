"""Program -> one target's artifact: export its variants, keep the fastest, describe it. Imports no torch."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from smp3d_export import backends, runtime
from smp3d_export.arrays import volume
from smp3d_export.artifact import manifest
from smp3d_export.artifact.manifest import Manifest
from smp3d_export.backends.exporter import Exported, Exporter
from smp3d_export.backends.variant import Variant
from smp3d_export.errors import ExportError, TargetUnavailableError
from smp3d_export.progress import Reporter
from smp3d_export.sources.request import Program, Request
from smp3d_export.sources.variants import ON, for_target
from smp3d_export.validators.throughput import Side, rounds

# Rounds and seconds to find the fastest of several variants.
RACE_ROUNDS = 5
RACE_SECONDS = 8.0


@dataclass(frozen=True)
class Made:
    """An artifact whose files are written, with enough of a manifest to run it."""

    folder: Path
    exported: Exported
    manifest: Manifest
    seconds: float


def make(target: str, program: Program, request: Request, folder: Path, threads: int, reporter: Reporter) -> Made:
    """Fill an empty folder with a target's artifact.

    Raises:
        TargetUnavailableError: this machine cannot export to the target.
        ExportError: the conversion failed.
    """
    exporter = backends.ready(target, request.settings.precision, request.device)
    started = time.perf_counter()
    with reporter.stage(target) as stage:
        exported, description = fastest(exporter, program, request, folder, threads)
        stage.detail = exported.summary
    seconds = time.perf_counter() - started
    description = described(description, build_seconds=round(seconds, 3))
    manifest.write(folder, description)
    return Made(folder, exported, description, seconds)


def fastest(
    exporter: Exporter, program: Program, request: Request, folder: Path, threads: int
) -> tuple[Exported, Manifest]:
    """Export every suitable variant, and keep the fastest on this machine."""
    variants = for_target(program.variants, exporter.row.name)
    if len(variants) == 1:
        return export(exporter, program, request, variants[0], folder)
    with tempfile.TemporaryDirectory(prefix=".variants-", dir=folder) as scratch:
        places, made, failed = {}, {}, {}
        for variant in variants:
            name = variant.name
            place = Path(scratch) / name
            place.mkdir()
            try:
                made[name] = export(exporter, program, request, variant, place)
            except ExportError as error:
                failed[name] = error
                continue
            places[name] = place
        if not made:
            raise next(iter(failed.values()))
        seconds = race(places, program, request, threads)
        chosen = min(seconds, key=lambda name: seconds[name]) if seconds else next(iter(places))
        for path in places[chosen].iterdir():
            path.rename(folder / path.name)
    exported, description = made[chosen]
    choice: dict[str, Any] = {"milliseconds": {name: round(1e3 * taken, 3) for name, taken in seconds.items()}}
    if failed:
        choice["failed"] = {name: str(error) for name, error in failed.items()}
    description = described(description, optimise={**description.facts["optimise"], **choice})
    times = ", ".join(f"{1e3 * taken:.0f} ms {name}" for name, taken in seconds.items())
    short = exported.summary.partition(",")[0]
    return replace(exported, summary=f"{short}; {times or f'optimise {chosen}, not timed'}"), description


def export(
    exporter: Exporter, program: Program, request: Request, variant: Variant, folder: Path
) -> tuple[Exported, Manifest]:
    """Export one variant."""
    facts: dict[str, Any] = {}
    if request.normalisation is not None:
        facts["sample_normalisation"] = str(request.normalisation)
    if variant.rewrites is not None:
        used = {"asked": request.optimise or ON, "used": variant.name}
        facts |= {"optimisations": dict(variant.rewrites), "optimise": used}
    if variant.up_to_max:
        facts["exact_up_to_max_only"] = True
    if variant.rejected:
        facts["rejected_optimisations"] = dict(variant.rejected)
    description = replace(
        described(program.manifest, **facts), target=exporter.row.name, precision=request.settings.precision
    )
    exported = exporter.export(variant, replace(request.settings, metadata=description.embedded()), folder)
    description = described(description, **exported.facts)
    manifest.write(folder, description)
    return exported, description


def race(places: Mapping[str, Path], program: Program, request: Request, threads: int) -> dict[str, float]:
    """The median seconds of each variant at the optimum, in alternating rounds; empty if they cannot run here."""
    image = volume(program.manifest.contract.opt, request.source.seed)
    sides: list[Side] = []
    for place in places.values():
        try:
            runner = runtime.load(place, threads=threads, device=request.device)
        except TargetUnavailableError:
            return {}
        sides.append(partial(runner.seconds, image))
    times = rounds(sides, at_least=RACE_ROUNDS, budget=RACE_SECONDS)
    return {name: float(np.median(mine.seconds)) for name, mine in zip(places, times, strict=True)}


def described(description: Manifest, **facts: Any) -> Manifest:
    """A manifest with more facts."""
    return replace(description, facts={**description.facts, **facts})

"""An artifact that exists -> its verdict on this machine: its hashes, then its golden input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from smp3d_export import artifact, runtime
from smp3d_export.errors import ParityError, TargetUnavailableError, UsageError
from smp3d_export.progress import Reporter
from smp3d_export.report import Report, Verdict
from smp3d_export.validators.parity import Case, Reference, compare
from smp3d_export.validators.tolerances import tolerance


def verify(
    folder: Path, reporter: Reporter | None = None, *, threads: int | None = None, device: str = "cpu"
) -> Report:
    """Prove an artifact, or each of those that a folder holds, on this machine.

    What differs from its golden output, or cannot run here, stands in its verdict.

    Raises:
        UsageError: there is no artifact, or a file of one is not what its manifest says.
    """
    reporter = reporter or Reporter()
    folders = artifact.find(folder)
    manifests = {place: artifact.read_manifest(place) for place in folders}
    for place, manifest in manifests.items():
        artifact.check_files(place, manifest)
    verdicts = tuple(prove(place, manifest, reporter, threads, device) for place, manifest in manifests.items())
    return Report(network=name_of(next(iter(manifests.values()))), verdicts=verdicts)


def prove(folder: Path, manifest: dict[str, Any], reporter: Reporter, threads: int | None, device: str) -> Verdict:
    """Run one artifact on its golden input and compare its outputs with those that are stored."""
    target, precision = manifest["target"], manifest["precision"]
    files = tuple(sorted([*manifest["files"], artifact.MANIFEST]))
    with np.load(folder / artifact.GOLDEN, allow_pickle=False) as archive:
        golden = dict(archive)
    image = golden.pop("image")
    case = Case("golden", image.shape, lambda: image)
    reference = Reference(lambda _: golden, [case], label_threshold=manifest.get("label_threshold", 0.0))
    try:
        with reporter.stage(target) as stage:
            runner = runtime.load(folder, threads=threads, device=device)
            parity = compare(runner, reference, tolerance(precision, target), stage.step)
            stage.detail = "its golden input"
    except TargetUnavailableError as error:
        return Verdict(target=target, precision=precision, folder=folder, files=files, not_run=str(error), error=error)
    error = None if parity.passed else ParityError(parity.shortfall())
    return Verdict(target=target, precision=precision, folder=folder, files=files, parity=parity, error=error)


def name_of(manifest: dict[str, Any]) -> str:
    """The network that an artifact was made of.

    Raises:
        UsageError: the manifest does not say.
    """
    try:
        model = manifest["model"]
        return f"{model['architecture'].lower()}/{model['encoder']}"
    except (KeyError, TypeError, AttributeError):
        raise UsageError(f"the manifest names no network: {json.dumps(manifest)[:80]}") from None

"""An artifact that exists -> its verdict on this machine: its hashes, then its golden input."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from smp3d_export import runtime
from smp3d_export.artifact import folder as artifact
from smp3d_export.artifact.manifest import Manifest, read
from smp3d_export.errors import ParityError, TargetUnavailableError
from smp3d_export.progress import Reporter
from smp3d_export.validators.parity import Case, Reference, compare
from smp3d_export.validators.tolerances import tolerance
from smp3d_export.validators.verdict import Report, Verdict


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
    manifests = {place: read(place) for place in folders}
    for place, manifest in manifests.items():
        artifact.check_files(place, manifest, ())
    verdicts = tuple(prove(place, manifest, reporter, threads, device) for place, manifest in manifests.items())
    return Report(network=next(iter(manifests.values())).name, verdicts=verdicts)


def prove(folder: Path, manifest: Manifest, reporter: Reporter, threads: int | None, device: str) -> Verdict:
    """Run one artifact on its golden input and compare its outputs with those that are stored."""
    target, precision = manifest.target, manifest.precision
    files = tuple(sorted([*manifest.files, artifact.MANIFEST]))
    with np.load(folder / artifact.GOLDEN, allow_pickle=False) as archive:
        golden = dict(archive)
    image = golden.pop("image")
    case = Case("golden", image.shape, lambda: image)
    reference = Reference(lambda _: golden, [case], label_threshold=manifest.label_threshold)
    try:
        with reporter.stage(target) as stage:
            runner = runtime.load(folder, threads=threads, device=device)
            parity = compare(runner, reference, tolerance(precision, target), stage.step)
            stage.detail = "its golden input"
    except TargetUnavailableError as error:
        return Verdict(target=target, precision=precision, folder=folder, files=files, not_run=str(error), error=error)
    error = None if parity.passed else ParityError(parity.shortfall())
    return Verdict(target=target, precision=precision, folder=folder, files=files, parity=parity, error=error)

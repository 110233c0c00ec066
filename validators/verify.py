"""An existing artifact -> its verdict on this machine: its hashes, then its golden input."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from smp3d_export import backends, runtime
from smp3d_export.arrays import Volume
from smp3d_export.artifact import folder as artifact
from smp3d_export.artifact.manifest import Manifest, read
from smp3d_export.errors import (
    BUG,
    ParityError,
    Smp3dExportError,
    TargetUnavailableError,
    UsageError,
    release_frames,
    summary,
)
from smp3d_export.progress import Reporter
from smp3d_export.validators.parity import Case, Outputs, Parity, Reference, compare
from smp3d_export.validators.tolerances import tolerance
from smp3d_export.validators.verdict import Report, Verdict

UNKNOWN = "unknown"
NAMED = 5
"""How many foreign files a remark names; it counts the rest."""


def verify(
    folder: Path, reporter: Reporter | None = None, *, threads: int | None = None, device: str = "cpu"
) -> Report:
    """Prove an artifact, or every artifact in a folder at any level, on this machine.

    If one is damaged, fails, differs from its golden output or cannot run on this machine, its verdict says so.

    Raises:
        UsageError: there is no artifact.
    """
    reporter = reporter or Reporter()
    found = artifact.search(folder)
    for line in found.skipped:
        reporter.say(line, style="yellow")
    networks, verdicts = set(), []
    for place in found.artifacts:
        name = None if len(found.artifacts) == 1 else place.relative_to(folder).as_posix()
        manifest, verdict = examine(place, name, reporter, threads, device)
        networks |= {manifest.name} if manifest else set()
        verdicts.append(verdict)
    return Report(network=", ".join(sorted(networks)) or UNKNOWN, verdicts=tuple(verdicts))


def examine(
    folder: Path, name: str | None, reporter: Reporter, threads: int | None, device: str
) -> tuple[Manifest | None, Verdict]:
    """The verdict on one artifact, whatever is wrong with it, and its manifest if that can be read."""
    manifest = parity = error = None
    try:
        manifest = read(folder)
        loaded = backends.find(manifest.target).files if manifest.target in backends.names() else ()
        beside = artifact.check_files(folder, manifest, loaded)
        if beside:
            more = f" and {len(beside) - NAMED} more" if len(beside) > NAMED else ""
            reporter.say(f"not part of the artifact {folder}: {', '.join(beside[:NAMED])}{more}")
        parity = prove(folder, manifest, name or manifest.target, reporter, threads, device)
        error = None if parity.passed else ParityError(parity.shortfall())
    except Smp3dExportError as failure:
        error = failure
    except Exception as failure:  # noqa: BLE001  the other artifacts keep their verdicts
        error = Smp3dExportError(f"{BUG}: {summary(failure)}")
        error.__cause__ = failure
    release_frames(error)
    verdict = Verdict(
        target=manifest.target if manifest else UNKNOWN,
        precision=manifest.precision if manifest else UNKNOWN,
        folder=folder,
        files=tuple(sorted([*manifest.files, artifact.MANIFEST])) if manifest else (),
        parity=parity,
        not_run=str(error) if isinstance(error, TargetUnavailableError) else None,
        error=error,
        name=name,
    )
    return manifest, verdict


def prove(folder: Path, manifest: Manifest, name: str, reporter: Reporter, threads: int | None, device: str) -> Parity:
    """Run one artifact on its golden input, and compare its outputs with the golden ones.

    Raises:
        UsageError: one of its files is not what the manifest says.
        TargetUnavailableError: it cannot run on this machine.
        RunError: its runtime failed.
    """
    image, golden = golden_case(folder)
    case = Case("golden", image.shape, lambda: image)
    reference = Reference(lambda _: golden, [case], label_threshold=manifest.label_threshold)
    with reporter.stage(name) as stage:
        runner = runtime.load(folder, threads=threads, device=device)
        parity = compare(runner, reference, tolerance(manifest.precision, manifest.target), stage.step)
        stage.detail = "its golden input"
    return parity


def golden_case(folder: Path) -> tuple[Volume, Outputs]:
    """The golden input of an artifact and its outputs.

    Raises:
        UsageError: the file is damaged.
    """
    path = folder / artifact.GOLDEN
    try:
        with np.load(path, allow_pickle=False) as archive:
            golden = dict(archive)
        return golden.pop("image"), golden
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UsageError(f"{str(path)!r} is damaged: {summary(error)}. Export the artifact again") from error

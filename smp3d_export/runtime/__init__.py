"""Loads and runs an artifact, without torch unless the artifact needs it."""

from __future__ import annotations

from pathlib import Path

from smp3d_export import backends
from smp3d_export.artifact import manifest
from smp3d_export.backends.runner import Artifact
from smp3d_export.backends.runner import Runner as Runner
from smp3d_export.errors import UsageError


def load(folder: str | Path, *, threads: int | None = None, device: str = "cpu") -> Runner:
    """Load an artifact.

    Args:
        folder: the artifact's folder.
        threads: how many to use; if None, the backend chooses.
        device: `cpu`, `cuda` or `cuda:N`.

    Raises:
        UsageError: the folder holds no artifact, or its files are not what the manifest says.
        TargetUnavailableError: this machine lacks something that is needed to run it.
    """
    folder = Path(folder)
    content = manifest.read(folder)
    if content.target not in backends.names():
        raise UsageError(f"{str(folder)!r} is for the target {content.target!r}, which this version cannot run")
    row = backends.find(content.target)
    return row.runner()(Artifact(row, folder, content, threads, device))

"""Loads and runs artifacts, without torch unless an artifact needs it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from smp3d_export import backends
from smp3d_export.artifact import manifest
from smp3d_export.backends.runner import Artifact
from smp3d_export.backends.runner import Runner as Runner
from smp3d_export.errors import TargetUnavailableError, UsageError, summary


def load(folder: str | Path, *, threads: int | None = None, device: str = "cpu") -> Runner:
    """Load an artifact.

    Args:
        folder: the artifact's folder.
        threads: CPU threads; if None, the backend chooses.
        device: `cpu`, `cuda` or `cuda:N`.

    Raises:
        UsageError: the folder holds no artifact, or its files are not what the manifest says.
        TargetUnavailableError: this machine lacks something that the artifact needs.
    """
    folder = Path(folder)
    content = manifest.read(folder)
    if content.target not in backends.names():
        raise UsageError(f"{str(folder)!r} is for the target {content.target!r}, which this version cannot run")
    row = backends.find(content.target)
    if find_spec(row.library) is None:
        raise TargetUnavailableError(f"{row.title} is not installed, and {row.name} artifacts run in it: {row.install}")
    try:
        runner = row.runner()
    except ImportError as error:
        reason = f"{row.title}, which {row.name} artifacts run in, cannot be imported ({summary(error)})"
        raise TargetUnavailableError(f"{reason}: {row.install}") from error
    return runner(Artifact(row, folder, content, threads, device))

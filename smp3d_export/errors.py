"""Every error that reaches a user: one tree, each class with the exit code of the command line."""

from collections.abc import Iterable
from difflib import get_close_matches


class Smp3dExportError(Exception):
    """Base of all. Its message says what is wrong, which value, and what to do."""

    exit_code = 1


class UsageError(Smp3dExportError, ValueError):
    """Wrong usage or input."""

    exit_code = 2


class ShapeError(UsageError):
    """A volume outside the shape contract, or a contract that cannot be."""


class CheckpointError(UsageError):
    """A checkpoint that cannot be read, or that belongs to another network."""


class TargetUnavailableError(Smp3dExportError):
    """A target or precision that this machine lacks something for."""

    exit_code = 3


class ExportError(Smp3dExportError):
    """Capture or conversion failed."""

    exit_code = 4


class ParityError(Smp3dExportError):
    """The artifact does not agree with the eager network."""

    exit_code = 5


class TooSlowError(Smp3dExportError):
    """The artifact is slower than `--min-speedup` asks."""

    exit_code = 6


def unknown(kind: str, name: str, known: Iterable[str], more: str) -> UsageError:
    """The error for a `name` that no `kind` has, with the nearest of the `known`; `more` says where all are listed."""
    names = list(known)
    lowered = {n.lower(): n for n in names}
    nearest = [lowered[n] for n in get_close_matches(name.lower(), lowered, n=3, cutoff=0.5)]
    hint = f" Nearest: {', '.join(nearest)}." if nearest else ""
    return UsageError(f"there is no {kind} {name!r}.{hint} All: {more}")

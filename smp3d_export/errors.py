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
    near = nearest(name, known)
    hint = f" Nearest: {', '.join(near)}." if near else ""
    return UsageError(f"there is no {kind} {name!r}.{hint} All: {more}")


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> list[str]:
    """Up to three of the `known` names that a mistyped `name` may stand for, the most similar first.

    `cutoff` is how similar they must be, from 0 to 1.
    """
    lowered = {n.lower(): n for n in known}
    return [lowered[n] for n in get_close_matches(name.lower(), lowered, n=3, cutoff=cutoff)]

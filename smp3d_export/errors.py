"""Every error that reaches a user, in one tree. Each class has the exit code of the command line."""

import re
import traceback
from collections.abc import Iterable
from difflib import get_close_matches

BUG = "this is a bug in smp3d-export; please report it with the output of --debug"


class Smp3dExportError(Exception):
    """The base class. A message says what is wrong, which value, and how to fix it."""

    exit_code = 1


class UsageError(Smp3dExportError, ValueError):
    """Wrong usage or input."""

    exit_code = 2


class ShapeError(UsageError):
    """A volume outside the shape contract, or an impossible contract."""


class CheckpointError(UsageError):
    """A checkpoint that cannot be read, or that belongs to another network."""


class TargetUnavailableError(Smp3dExportError):
    """This machine lacks something that a target or a precision needs."""

    exit_code = 3


class ExportError(Smp3dExportError):
    """Capture or conversion failed."""

    exit_code = 4


class RunError(ExportError):
    """A runtime failed while it ran an artifact."""


class ParityError(Smp3dExportError):
    """The artifact does not agree with the eager network."""

    exit_code = 5


class TooSlowError(Smp3dExportError):
    """The artifact is slower than `--min-speedup` requires."""

    exit_code = 6


# OpenVINO's messages start with lines that name its own sources.
OPENVINO_PLACE = re.compile(r"Exception from \S+:\d+:\s*$")


def summary(error: BaseException) -> str:
    """An exception in one line: ours as it is, a library's with its type."""
    if isinstance(error, Smp3dExportError):
        return str(error)
    lines = [line for line in str(error).splitlines() if line.strip() and not OPENVINO_PLACE.match(line)]
    return f"{type(error).__name__}: {lines[0].strip()[:300]}" if lines else type(error).__name__


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or its cause, says that memory ran out. Each library words it differently."""
    if error is None:
        return False
    words = ("out of memory", "not enough memory", "allocate memory", "unable to allocate", "bad_alloc")
    said = any(text in str(error).lower() for text in words)
    return said or isinstance(error, MemoryError) or out_of_memory(error.__cause__)


def release_frames(error: BaseException | None) -> None:
    """Release what the frames of a traceback hold, such as volumes and networks, and keep its lines."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def unknown(kind: str, name: str, known: Iterable[str], more: str) -> UsageError:
    """The error for an unknown `name`, with the nearest of the `known` names; `more` says where all are listed."""
    near = nearest(name, known)
    hint = f" Nearest: {', '.join(near)}." if near else ""
    return UsageError(f"there is no {kind} {name!r}.{hint} All: {more}")


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> list[str]:
    """Up to three `known` names that a mistyped `name` may mean, the most similar first.

    `cutoff` is how similar they must be, from 0 to 1.
    """
    lowered = {n.lower(): n for n in known}
    return [lowered[n] for n in get_close_matches(name.lower(), lowered, n=3, cutoff=cutoff)]

"""Machine code on a processor that it was not made on: its first run is in a process of its own, which it may end.

What lacks an instruction, or differs from what the flags promise, ends its process by a signal that Python cannot
catch. A run that goes well is remembered in the user's cache, so that it is made once for a file and a processor.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from smp3d_export.artifact.folder import sha256
from smp3d_export.backends import inductor
from smp3d_export.errors import TargetUnavailableError


def check_first_run(code: str, file: Path, arguments: Sequence[str]) -> None:
    """Have `code` run `file` in a process of its own, unless that went well before on this processor.

    Args:
        code: Python, which finds the file and `arguments` in `sys.argv`.

    Raises:
        TargetUnavailableError: a signal ended the process. An exception of Python does not count: it can be raised
            in this process too, where its message is not lost.
    """
    mark = mark_of(file, arguments)
    if mark is not None and mark.exists():
        return
    # Not from the working directory: a folder there may have the name of a module.
    command = [sys.executable, "-P", "-c", code, os.fspath(file.absolute()), *arguments]
    status = subprocess.run(command, capture_output=True, check=False).returncode
    name = signal_of(status)
    if name == "SIGKILL":
        raise TargetUnavailableError(
            f"{str(file)!r} was stopped by SIGKILL in its first run on this processor, most likely because memory ran "
            "out: free some and try again"
        )
    if name is not None:
        raise TargetUnavailableError(
            f"{str(file)!r} crashed with {name} in its first run on this processor, which is not the one that it was "
            "compiled on: export it on this machine"
        )
    if status == 0 and mark is not None:
        try:
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
        except OSError:  # then it is tried again next time
            return


def signal_of(status: int) -> str | None:
    """The signal that ended a process, by its exit status, or Windows' code for it; None if it ended by itself."""
    if status < 0:
        try:
            return signal.Signals(-status).name
        except ValueError:
            return f"signal {-status}"
    return f"0x{status:X}" if status >= 0xC0000000 else None


def mark_of(file: Path, arguments: Sequence[str]) -> Path | None:
    """The file in the user's cache that stands for a run that went well; None for a user without a home."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:
        return None
    what = [sha256(file), inductor.this_processor(), metadata.version("torch"), *arguments]
    return cache / "smp3d-export" / "ran" / hashlib.sha256(json.dumps(what).encode()).hexdigest()

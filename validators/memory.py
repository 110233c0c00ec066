"""The memory that a process of its own takes to run an artifact. Imports no torch."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from smp3d_export.contract import Shape


class Peak(NamedTuple):
    """Bytes in memory at the peak, and on the GPU; None if they are not known, or nothing runs on a GPU."""

    memory: int | None = None
    device: int | None = None


def peak_memory(folder: Path, shapes: Sequence[Shape], threads: int, device: str) -> dict[Shape, Peak]:
    """What a process that loads and runs the artifact alone has in memory at its peak, by shape.

    Shapes at which it failed are left out.
    """
    command = [sys.executable, "-P", "-m", "smp3d_export.runtime"]  # -P: a folder here may have the name of a module
    texts = [",".join(map(str, shape)) for shape in shapes]
    arguments = [os.fspath(folder.absolute()), str(threads), device, *texts]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    peaks = {}
    for line in done.stdout.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):  # libraries print there too
            found = json.loads(line)
            peaks[tuple(found["shape"])] = Peak(found["peak"], found["device_peak"])
    return peaks

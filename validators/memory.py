"""The memory that a process of its own takes to run an artifact. Imports no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def peak_memory(folder: Path, threads: int, device: str) -> int | None:
    """Bytes that a process has in memory at its peak when it loads and runs the artifact alone; None if it failed."""
    command = [sys.executable, "-m", "smp3d_export.runtime", os.fspath(folder.absolute()), str(threads), device]
    # Not from the working directory: a folder there may have the name of a module.
    done = subprocess.run([*command[:1], "-P", *command[1:]], capture_output=True, text=True, check=False)
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])["peak"]
    except (ValueError, IndexError, KeyError):
        return None

"""The GPUs of the machine, as a driver tells them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# The driver's functions that are asked, with the types of its header.
DRIVER = """
#include <stddef.h>
#include <stdio.h>
int cuInit(unsigned flags) { return flags ? 1 : FAILS; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int number) { *device = 40 + number; return 0; }
int cuDeviceGetName(char *name, int room, int device) { snprintf(name, room, "GPU of handle %d", device); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = device == 41 ? (size_t)5 << 32 : 0; return 0; }
int cuDeviceGetAttribute(int *value, int what, int device) { *value = 8 * (what == 75) + 7 * (what == 76); return 0; }
"""


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="it compiles a library for Linux")
@pytest.mark.parametrize("fails", [0, 100])
def test_the_driver_is_asked_for_the_gpus(tmp_path: Path, fails: int) -> None:
    """A driver of our own is loaded in another process, for there is but one way to find out if the types are right."""
    (tmp_path / "driver.c").write_text(DRIVER)
    compile = ["cc", "-shared", "-fPIC", f"-DFAILS={fails}", "-o", "libcuda.so.1", "driver.c"]
    subprocess.run(compile, cwd=tmp_path, check=True)
    script = "import json; from smp3d_export import hardware; print(json.dumps(hardware.gpus()))"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    gpus = [
        {"name": "GPU of handle 40", "compute_capability": "8.7", "memory": None},
        {"name": "GPU of handle 41", "compute_capability": "8.7", "memory": 5 * 2**32},
    ]
    assert json.loads(done.stdout) == ([] if fails else gpus)

"""What the machine is: its memory and cores with the limits of a container, its flags, its GPUs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smp3d_export import hardware
from smp3d_export.validators.memory import peak_memory

GB = 2**30
# A machine of 64 GB, of which 32 are available.
MACHINE = {"proc/meminfo": f"MemTotal: {64 * 2**20} kB\nMemAvailable: {32 * 2**20} kB\n"}
V2 = {"proc/self/mountinfo": "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"}
# Version 1 has a mount for each controller; `{root}` is the group that is mounted there.
V1 = """31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 {root} /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw
"""
NO_LIMIT = "9223372036854771712"

# Files of a machine with 16 cores -> cores, total memory and available memory in GB.
LIMITS: dict[str, tuple[dict[str, str], tuple[int, float, float]]] = {
    "none": ({}, (16, 64, 32)),
    "container of version 2": (
        {
            **V2,
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": f"{8 * GB}\n",
            "sys/fs/cgroup/memory.current": f"{7 * GB}\n",
            "sys/fs/cgroup/memory.stat": f"anon {2 * GB}\nactive_file {GB}\ninactive_file {4 * GB}\n",
            "sys/fs/cgroup/cpu.max": "250000 100000\n",
        },
        (2, 8, 5),
    ),
    "no limit in version 2": (
        {
            **V2,
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": "max\n",
            "sys/fs/cgroup/memory.current": f"{7 * GB}\n",
            "sys/fs/cgroup/cpu.max": "max 100000\n",
        },
        (16, 64, 32),
    ),
    "an ancestor's limit in version 2": (
        {
            **V2,
            "proc/self/cgroup": "0::/user.slice/job.scope\n",
            "sys/fs/cgroup/user.slice/memory.max": f"{4 * GB}\n",
            "sys/fs/cgroup/user.slice/memory.current": f"{3 * GB}\n",
            "sys/fs/cgroup/user.slice/cpu.max": "50000 100000\n",
            "sys/fs/cgroup/user.slice/job.scope/memory.max": "max\n",
            "sys/fs/cgroup/user.slice/job.scope/memory.current": f"{2 * GB}\n",
            "sys/fs/cgroup/user.slice/job.scope/cpu.max": "400000 100000\n",
        },
        (1, 4, 1),
    ),
    "another group's limit": (
        {
            **V2,
            "proc/self/cgroup": "0::/ours\n",
            "sys/fs/cgroup/theirs/memory.max": f"{GB}\n",
            "sys/fs/cgroup/theirs/memory.current": "0\n",
            "sys/fs/cgroup/theirs/cpu.max": "100000 100000\n",
        },
        (16, 64, 32),
    ),
    "more than the machine has": (
        {
            **V2,
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": f"{128 * GB}\n",
            "sys/fs/cgroup/memory.current": f"{GB}\n",
            "sys/fs/cgroup/cpu.max": "3200000 100000\n",
        },
        (16, 64, 32),
    ),
    "taken up": (
        {
            **V2,
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": f"{GB}\n",
            "sys/fs/cgroup/memory.current": f"{GB + 4096}\n",
        },
        (16, 1, 0),
    ),
    "container of version 1, under its host's name": (
        {
            "proc/self/mountinfo": V1.format(root="/docker/0f3a"),
            "proc/self/cgroup": "4:memory:/docker/0f3a\n2:cpu,cpuacct:/docker/0f3a\n0::/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{8 * GB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{7 * GB}\n",
            "sys/fs/cgroup/memory/memory.stat": f"inactive_file {GB}\ntotal_inactive_file {4 * GB}\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
        (3, 8, 5),
    ),
    "an ancestor's limit in version 1, its group gone": (
        {
            "proc/self/mountinfo": V1.format(root="/"),
            "proc/self/cgroup": "4:memory:/batch/job\n2:cpu,cpuacct:/batch/job\n0::/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{NO_LIMIT}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{20 * GB}\n",
            "sys/fs/cgroup/memory/batch/memory.limit_in_bytes": f"{16 * GB}\n",
            "sys/fs/cgroup/memory/batch/memory.usage_in_bytes": f"{6 * GB}\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/batch/cpu.cfs_quota_us": "190000\n",
            "sys/fs/cgroup/cpu,cpuacct/batch/cpu.cfs_period_us": "50000\n",
        },
        (3, 16, 10),
    ),
}


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize("case", LIMITS)
def test_a_container_limits_memory_and_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    files, expected = LIMITS[case]
    monkeypatch.setattr(hardware, "ROOT", lay_out(tmp_path, MACHINE | files), raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    found = hardware.cores(), (hardware.total_memory() or 0) / GB, (hardware.available_memory() or 0) / GB
    assert found == expected


def test_affinity_limits_cores_below_a_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = LIMITS["container of version 1, under its host's name"][0]
    monkeypatch.setattr(hardware, "ROOT", lay_out(tmp_path, files), raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5}, raising=False)
    assert hardware.cores() == 2


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("machdep.cpu.features: FPU SSE4.1 AVX1.0\nmachdep.cpu.leaf7_features: AVX2\n", "avx1.0 avx2 fpu sse4.1"),
        ("hw.optional.arm.FEAT_BF16: 1\nhw.optional.arm.FEAT_SME: 0\nhw.optional.neon: 1\n", "feat_bf16 neon"),
        ("", ""),
    ],
)
def test_flags_of_macos(text: str, flags: str) -> None:
    assert hardware.flags_of_sysctl(text) == flags.split()


def test_a_childs_peak_memory_does_not_start_at_its_parents(exported: Path) -> None:
    shape = (1, 1, 8, 8, 8)
    alone = peak_memory(exported, [shape], 1, "cpu")[shape].memory
    assert alone is not None
    ballast = np.ones(alone + 200_000_000, np.uint8)
    beside = peak_memory(exported, [shape], 1, "cpu")[shape].memory
    assert beside is not None
    assert beside < ballast.nbytes


def test_peak_memory_is_of_each_shape_whatever_their_order(exported: Path) -> None:
    shapes = [(2, 1, 64, 48, 32), (1, 1, 8, 8, 8), (1, 1, 32, 24, 16)]
    peaks = peak_memory(exported, shapes, 1, "cpu")
    large, small, middle = (peaks[shape].memory or 0 for shape in shapes)
    assert 1e7 < small <= middle <= large
    assert {peaks[shape].device for shape in shapes} == {None}
    outside = (1, 1, 8, 8, 9)
    assert peak_memory(exported, [outside], 1, "cpu") == {}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot reset it")
def test_peak_memory_can_be_reset() -> None:
    before = hardware.peak_memory()
    ballast = np.ones(300_000_000, np.uint8)
    high = hardware.peak_memory()
    del ballast
    hardware.reset_peak_memory()
    low = hardware.peak_memory()
    assert before is not None and high is not None and low is not None
    assert high > 300_000_000
    assert low < high - 200_000_000


# The driver's functions that are asked, with the types of its header.
DRIVER = """
#include <stddef.h>
#include <stdio.h>
int cuInit(unsigned flags) { return flags ? 1 : FAILS; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int number) { *device = 40 + number; return number < 2 ? 0 : 101; }
int cuDeviceGetName(char *name, int room, int device) { snprintf(name, room, "GPU of handle %d", device); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = device == 41 ? (size_t)5 << 32 : 0; return 0; }
static int holds, current;
#define CONTEXT (void *)0x7fff00000001
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = CONTEXT; holds = device; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { if (device != holds) *(volatile int *)0 = 0; holds = 0; return 0; }
int cuCtxPushCurrent_v2(void *context) { current = context == CONTEXT; return !current; }
int cuCtxPopCurrent_v2(void **context) { current = 0; return 0; }
int cuMemGetInfo_v2(size_t *free, size_t *total) {
  if (!current) return 201;
  *free = (size_t)(holds - 39) << 32; *total = (size_t)16 << 32; return 0;
}
int cuDeviceGetAttribute(int *value, int what, int device) { *value = 8 * (what == 75) + 7 * (what == 76); return 0; }
"""


needs_driver = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("cc"), reason="it compiles a library for Linux"
)


def asked(folder: Path, script: str, *, fails: int = 0) -> Any:
    """What a script prints, as JSON, in a process with a driver of our own: it shows whether the types are right."""
    (folder / "driver.c").write_text(DRIVER)
    compile = ["cc", "-shared", "-fPIC", f"-DFAILS={fails}", "-o", "libcuda.so.1", "driver.c"]
    subprocess.run(compile, cwd=folder, check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    command = [sys.executable, "-P", "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_driver
@pytest.mark.parametrize("fails", [0, 100])
def test_the_driver_is_asked_for_the_gpus(tmp_path: Path, fails: int) -> None:
    gpus = [
        {"name": "GPU of handle 40", "compute_capability": "8.7", "memory": None},
        {"name": "GPU of handle 41", "compute_capability": "8.7", "memory": 5 * 2**32},
    ]
    script = "import json; from smp3d_export import hardware; print(json.dumps(hardware.gpus()))"
    assert asked(tmp_path, script, fails=fails) == ([] if fails else gpus)


@needs_driver
@pytest.mark.parametrize(("fails", "expected"), [(0, [4 * GB, 4 * GB, 8 * GB, None]), (100, [None] * 4)])
def test_the_driver_is_asked_for_the_free_memory(tmp_path: Path, fails: int, expected: list[int | None]) -> None:
    script = """
import json; from smp3d_export.hardware import available_memory
print(json.dumps([available_memory(device) for device in ("cuda", "cuda:0", "cuda:1", "cuda:2")]))
"""
    assert asked(tmp_path, script, fails=fails) == expected


@needs_driver
def test_parity_shapes_fit_into_the_memory_of_what_runs_them(tmp_path: Path) -> None:
    """Here the CPU has 2 GB, GPU 0 has 4 GB and GPU 1 has 8 GB, and the optimum takes 1.5, 3, 6 or 12 GB."""
    machine = lay_out(tmp_path / "root", {"proc/meminfo": f"MemAvailable: {2 * 2**20} kB\n"})
    script = f"""
import json, pathlib
from types import SimpleNamespace
from smp3d_export import hardware
from smp3d_export.contract import ShapeContract
from smp3d_export.sources.named import NamedNetwork
from smp3d_export.sources.request import Program, Request
from smp3d_export.validators.cases import reference_for
hardware.ROOT = pathlib.Path({str(machine)!r})
network = NamedNetwork(architecture="unet", encoder="resnet18")
contract = ShapeContract.of((1, 1, 32, 32, 32), multiple=(32, 32, 32), static=True)
opened = SimpleNamespace(contract=contract, label_threshold=0.0)
found = {{}}
for device, target in (("cpu", "onnx"), ("cpu", "trt-rtx"), ("cuda", "onnx"), ("cuda:1", "onnx"), ("cuda:1", "trt")):
    request = Request(source=network, device=device, targets=(target,))
    for size in (1, 2, 4, 8):
        reference = reference_for(opened, Program(None, (), size << 30), {{}}, request)
        found.setdefault(f"{{device}} {{target}}", []).append(reference.cases[0].skip)
print(json.dumps(found))
"""
    found = asked(tmp_path, script)
    runs = {where: [skip is None for skip in skips].count(True) for where, skips in found.items()}
    assert runs == {"cpu onnx": 1, "cpu trt-rtx": 1, "cuda onnx": 2, "cuda:1 onnx": 3, "cuda:1 trt": 3}
    assert found["cuda onnx"][2] == "it takes about 6.4 GB on the GPU, and 4.3 GB are free"
    assert found["cpu onnx"][1] == "it takes about 3.2 GB of memory, and 2.1 GB are free"

"""Describes the machine: processor, cores, memory, GPUs, versions of packages. Imports no torch."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from smp3d_export import cgroups
from smp3d_export.device import gpu_number

ROOT = Path("/")
"""Where Linux has its files; tests lay out another machine's elsewhere."""

FLAGS = ("flags", "Features")
"""What /proc/cpuinfo calls them on x86 and on ARM."""

# fmt: off
PACKAGES = (
    "smp3d-export", "torch", "onnx", "onnxscript", "onnxruntime", "onnxsim", "numpy", "openvino", "nncf", "tensorrt",
    "tensorrt-rtx",
)
# fmt: on


def processor() -> str:
    """The processor's name as the system gives it."""
    names = [line.partition(":")[2].strip() for line in _lines("proc/cpuinfo") if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cpu_features() -> list[str]:
    """The instruction sets of this processor that make networks faster."""
    flags = cpu_flags()
    interesting = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "sve")
    return [flag for flag in interesting if flag in flags]


def cpu_flags() -> list[str]:
    """Everything that the system says this processor has, sorted; empty if it does not say (Windows)."""
    if sys.platform == "darwin":
        names = ("machdep.cpu.features", "machdep.cpu.leaf7_features", "hw.optional")
        done = subprocess.run(["/usr/sbin/sysctl", *names], capture_output=True, text=True, check=False)
        return flags_of_sysctl(done.stdout)
    lines = _lines("proc/cpuinfo")
    return sorted({*next((line.partition(":")[2].split() for line in lines if line.startswith(FLAGS)), [])})


def flags_of_sysctl(text: str) -> list[str]:
    """The flags in what macOS's sysctl prints: lists of words on Intel, `hw.optional.arm.FEAT_BF16: 1` on Apple's."""
    flags: set[str] = set()
    for name, _, value in (line.partition(":") for line in text.splitlines()):
        if name.startswith("machdep.cpu."):
            flags.update(value.lower().split())
        elif value.strip() == "1":
            flags.add(name.rpartition(".")[2].lower())
    return sorted(flags)


def cores() -> int:
    """The cores that this process may use: by its affinity, and by the CPU quota of its container.

    A fraction of a core is left out: with more threads than the quota allows, all wait for the one that is paused.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroups.cpu_quota(ROOT)
    return allowed if quota is None else max(min(allowed, int(quota)), 1)


def total_memory() -> int | None:
    """Bytes of memory of the machine, or of its container if that has less; None if the platform does not tell."""
    return _least(_meminfo("MemTotal"), cgroups.memory_limit(ROOT))


def available_memory(device: str = "cpu") -> int | None:
    """Bytes that this process may still take on `device`: `cpu`, `cuda` or `cuda:N`.

    On the CPU a container's limit counts. None if the platform does not tell, or if there is no such GPU.
    """
    if device != "cpu":
        return _free_on_gpu(gpu_number(device))
    return _least(_meminfo("MemAvailable"), cgroups.memory_left(ROOT))


def _least(*sizes: int | None) -> int | None:
    return min((size for size in sizes if size is not None), default=None)


def _meminfo(field: str) -> int | None:
    lines = _lines("proc/meminfo")
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def _lines(path: str) -> list[str]:
    """The lines of a file of Linux; none on other systems."""
    try:
        return (ROOT / path).read_text().splitlines()
    except OSError:
        return []


def return_free_memory() -> None:
    """Return freed memory to the system, if the C library can (glibc); otherwise do nothing."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        return


def peak_memory() -> int | None:
    """The most bytes that this process has had in memory since it started, or since `reset_peak_memory`.

    None if the platform does not tell.
    """
    if sys.platform == "win32":
        return _peak_on_windows()
    # Not ru_maxrss on Linux: a child's starts at what its parent had.
    status = (line.split() for line in _lines("proc/self/status"))
    peak = next((int(words[1]) * 1024 for words in status if words and words[0] == "VmHWM:"), None)
    if peak is None and sys.platform == "darwin":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak


def reset_peak_memory() -> None:
    """Have `peak_memory` count from now on, if the system can (Linux); elsewhere nothing happens."""
    with contextlib.suppress(OSError):
        (ROOT / "proc/self/clear_refs").write_text("5")


def _peak_on_windows() -> int | None:
    class Counters(ctypes.Structure):
        """PROCESS_MEMORY_COUNTERS."""

        _fields_ = (
            ("cb", ctypes.c_uint32),
            ("PageFaultCount", ctypes.c_uint32),
            ("PeakWorkingSetSize", ctypes.c_size_t),
            ("others", ctypes.c_size_t * 7),
        )

    counters = Counters(cb=ctypes.sizeof(Counters))
    kernel: Any = ctypes.CDLL("kernel32")
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    kernel.K32GetProcessMemoryInfo.argtypes = (ctypes.c_void_p, ctypes.POINTER(Counters), ctypes.c_uint32)
    found = kernel.K32GetProcessMemoryInfo(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.cb)
    return counters.PeakWorkingSetSize if found else None


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that artifacts depend on, if they are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def gpus() -> list[dict[str, Any]]:
    """The NVIDIA GPUs with name, compute capability and memory in bytes; empty without a driver.

    The driver itself is asked. Unlike nvidia-smi, it is on every Jetson, and it numbers GPUs as CUDA's runtime does,
    `CUDA_VISIBLE_DEVICES` included.
    """
    driver, count = _driver(), ctypes.c_int()
    if driver is None or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    return [_gpu(driver, number) for number in range(count.value)]


def _driver() -> Any | None:
    """NVIDIA's initialised driver; None if there is none that works."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    return None if driver.cuInit(0) else driver


def _free_on_gpu(number: int) -> int | None:
    """The free bytes on a GPU, from the driver, which tells them only within a context.

    What a library such as PyTorch caches in this process counts as used.
    """
    driver, device, context, free, total = (
        _driver(), ctypes.c_int(), ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t(),
    )  # fmt: skip
    # The primary context is the one that CUDA's runtime uses. If this process has it already, nothing is created.
    if driver is None or driver.cuDeviceGet(ctypes.byref(device), number):
        return None
    if driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device):
        return None
    try:
        if driver.cuCtxPushCurrent_v2(context):
            return None
        failed = driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        driver.cuCtxPopCurrent_v2(ctypes.byref(context))
        return None if failed else free.value
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(device)


def _gpu(driver: Any, number: int) -> dict[str, Any]:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    driver.cuDeviceGet(ctypes.byref(device), number)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    for value, attribute in ((major, 75), (minor, 76)):  # the driver's numbers for the compute capability
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return {
        "name": name.value.decode(errors="replace"),
        "compute_capability": f"{major.value}.{minor.value}",
        "memory": memory.value or None,
    }


def describe() -> dict[str, Any]:
    return {
        "processor": processor(),
        "features": cpu_features(),
        "cores": cores(),
        "memory": total_memory(),
        "gpus": gpus(),
        "system": f"{platform.system()} {platform.machine()}",
    }

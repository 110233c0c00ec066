"""What machine this is: processor, cores, memory, versions of what matters. Imports no torch."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

# fmt: off
PACKAGES = (
    "smp3d-export", "torch", "onnx", "onnxscript", "onnxruntime", "onnxsim", "numpy", "openvino", "nncf", "tensorrt",
    "tensorrt-rtx",
)
# fmt: on


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cpu_features() -> list[str]:
    """Those instruction sets of this processor that make networks faster."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    interesting = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "sve")
    return [flag for flag in interesting if flag in flags]


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total_memory() -> int | None:
    """Bytes of memory of the machine; None where the platform does not tell."""
    return _meminfo("MemTotal")


def available_memory() -> int | None:
    """Bytes that this process may still take, a container's limit included; None where the platform does not tell."""
    free = _meminfo("MemAvailable")
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return free
    return limit - used if free is None else min(free, limit - used)


def _meminfo(field: str) -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def return_free_memory() -> None:
    """Give the system back what this process has freed, where its C library can (glibc); elsewhere nothing happens."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        return


def peak_memory() -> int | None:
    """The most bytes that this process has had in memory; None where the platform does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def versions() -> dict[str, str]:
    """Of Python and the packages that an artifact depends on; those not installed are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def gpus() -> list[dict[str, Any]]:
    """The NVIDIA GPUs by name, compute capability and memory in bytes; none where there is no driver.

    The driver itself is asked: it is on every Jetson too, as nvidia-smi is not, and numbers them as CUDA's runtime
    does, `CUDA_VISIBLE_DEVICES` included.
    """
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    return [_gpu(driver, number) for number in range(count.value)]


def _gpu(driver: ctypes.CDLL, number: int) -> dict[str, Any]:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    driver.cuDeviceGet(ctypes.byref(device), number)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    for value, attribute in ((major, 75), (minor, 76)):  # of the compute capability, in the driver's numbers
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

"""Devices by name: `cpu`, `cuda` or `cuda:N`; `auto` until a request decides."""

from smp3d_export.errors import UsageError

AUTO = "auto"
CPU = "cpu"
CUDA = "cuda"


def kind(device: str) -> str:
    """`cpu` or `cuda`."""
    return device.partition(":")[0]


def gpu_number(device: str) -> int:
    """The GPU that `cuda` or `cuda:N` names. For `cpu` it is the first: an engine runs nowhere else."""
    return int(device.partition(":")[2] or 0)


def checked(device: str, *, auto: bool = False) -> str:
    """The device, if it is one; `auto` says that the word is allowed too.

    Raises:
        UsageError: it is not a device.
    """
    name, colon, number = device.partition(":")
    if device == CPU or (auto and device == AUTO) or (name == CUDA and (not colon or number.isdigit())):
        return device
    raise UsageError(f"--device is {device!r}; it is cpu, cuda or cuda:N{', or auto' if auto else ''}")

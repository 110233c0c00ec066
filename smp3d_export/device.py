"""Devices by name: `cpu`, `cuda` or `cuda:N`; `auto` until a request decides."""

AUTO = "auto"
CPU = "cpu"
CUDA = "cuda"


def kind(device: str) -> str:
    """`cpu` or `cuda`."""
    return device.partition(":")[0]


def gpu_number(device: str) -> int:
    """The GPU that `cuda` or `cuda:N` names. For `cpu` it is the first: an engine runs nowhere else."""
    return int(device.partition(":")[2] or 0)


def is_device(text: str) -> bool:
    """Whether a text names a device."""
    name, colon, number = text.partition(":")
    return text == CPU or (name == CUDA and (not colon or number.isdigit()))

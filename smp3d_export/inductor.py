"""What the targets of PyTorch's compiler have in common: its needs, its settings, its folder. Imports no torch."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from smp3d_export import hardware
from smp3d_export.errors import TargetUnavailableError, UsageError
from smp3d_export.targets import Options, Precision, Support

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from smp3d_export.capture import Captured

PRECISIONS = (Precision.FP32, Precision.FP16, Precision.BF16)
CACHE = "TORCHINDUCTOR_CACHE_DIR"

SETTINGS: Mapping[str, Any] = MappingProxyType(
    {
        "freezing": True,  # weights are constants, so that what follows a convolution is computed inside it
        "cpp.dynamic_threads": True,  # else the threads of this machine are written into the code
    }
)


def support(target: str, precision: Precision, device: str) -> Support:
    """Whether the compiler can make something here."""
    if precision not in PRECISIONS:
        return Support.none(target, precision, PRECISIONS)
    if precision is Precision.FP16 and device == "cpu":
        return Support.no(
            "it computes convolutions in fp16 on a GPU alone", "give --precision bf16, which processors have, or fp32"
        )
    name = compiler()
    if shutil.which(name) is None:
        return Support.no(f"there is no C++ compiler: {name} is not found", "apt install g++, or name another in CXX")
    return Support.yes()


def compiler() -> str:
    """The C++ compiler that PyTorch looks for."""
    default = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    return os.environ.get("CXX", default)


@contextmanager
def building_in(folder: Path) -> Iterator[Path]:
    """Have the compiler's files in a folder inside `folder` that is gone afterwards, and not in the user's cache."""
    before = os.environ.get(CACHE)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=folder.absolute()) as build:
        os.environ[CACHE] = build
        try:
            yield Path(build)
        finally:
            if before is None:
                del os.environ[CACHE]
            else:
                os.environ[CACHE] = before


def program(captured: Captured, options: Options) -> tuple[ExportedProgram, dict[str, Any]]:
    """What is compiled, the program in its precision and in channels-last-3d; and what the manifest says of it."""
    from smp3d_export.capture import capture
    from smp3d_export.lower import lowered
    from smp3d_export.memory_format import channels_last

    captured = lowered(captured, options)
    facts: dict[str, Any] = {"memory_format": "channels_last_3d"}
    if captured.kept:
        facts["kept_fp32"] = dict(captured.kept)
    return capture(channels_last(captured), captured.contract).program, facts


def this_processor() -> dict[str, Any]:
    """What machine code made here may use."""
    return {"machine": platform.machine(), "features": hardware.cpu_features()}


def check_processor(compiled_for: Mapping[str, Any]) -> None:
    """Refuse machine code of another processor before it is run, which would end the process.

    Raises:
        TargetUnavailableError: this one is of another kind, or lacks something.
    """
    here = this_processor()
    lacks = [feature for feature in compiled_for["features"] if feature not in here["features"]]
    if here["machine"] != compiled_for["machine"]:
        lacks = [f"the instructions of {compiled_for['machine']}"]
    if lacks:
        raise TargetUnavailableError(
            f"it was compiled for a processor that has {', '.join(lacks)}, which this one lacks: export it on this one"
        )


def check_device(compiled_for: str, device: str) -> None:
    """Refuse another kind of device than the one compiled for.

    Raises:
        UsageError: it is another.
    """
    kind = compiled_for.partition(":")[0]
    if device.partition(":")[0] != kind:
        raise UsageError(f"it was compiled for {kind}, and cannot run on {device}: export it with --device {device}")

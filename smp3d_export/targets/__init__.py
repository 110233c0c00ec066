"""Name -> target: the table of what can be exported to. A target's module is imported only when it is used."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from smp3d_export.errors import TargetUnavailableError, UsageError, unknown

if TYPE_CHECKING:
    from onnx import ModelProto

    from smp3d_export.calibration import Calibration
    from smp3d_export.capture import Captured
    from smp3d_export.onnx_file import OnnxFile

    Exportable = Captured | OnnxFile


class Precision(StrEnum):
    FP32 = "fp32"
    TF32 = "tf32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"


@dataclass(frozen=True)
class Support:
    """Whether a target can be exported to here; if not, the reason and the command that mends it.

    `never` says that no machine can: the target has no such precision.
    """

    ready: bool
    reason: str = ""
    fix: str = ""
    never: bool = False

    @classmethod
    def yes(cls) -> Support:
        return cls(True)

    @classmethod
    def no(cls, reason: str, fix: str = "") -> Support:
        return cls(False, reason, fix)

    @classmethod
    def none(cls, target: str, precision: Precision, possible: Iterable[Precision]) -> Support:
        """The target has no such precision, but others."""
        return cls(False, f"{target} has no {precision}", f"give --precision {', '.join(possible)}", never=True)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a target is asked for.

    `keep_fp32` are patterns of layers and operators that stay in fp32 where the rest is lowered. `calibration` has the
    volumes that int8 is calibrated on. `gpus` are compute capabilities, such as `8.6`, to build an engine for; none is
    what the builder defaults to. `metadata` is written into the file where its format has a place for it.
    """

    precision: Precision = Precision.FP32
    opset: int = 20
    keep_fp32: tuple[str, ...] = ()
    calibration: Calibration | None = None
    gpus: tuple[str, ...] = ()
    device: str = "cpu"
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Exported:
    """What a target made: a line for the user, and what the manifest says of it.

    `graph` is the ONNX graph that it was made of, which is compared where the artifact itself cannot run, and beside it
    where this machine computes in a higher precision than others would.
    """

    summary: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    graph: ModelProto | None = None


class Target(Protocol):
    """What a target has, mostly a module. Its runner is in `runtime`.

    `from_onnx` says that it works from the ONNX graph alone, so that it can be made of an ONNX file too, without torch.
    """

    name: str
    suffix: str
    from_onnx: bool

    def support(self, precision: Precision, device: str) -> Support: ...

    def check(self, options: Options) -> None:
        """Refuse options that the target does not have, before any work is done, by a `UsageError`."""

    def export(self, source: Exportable, options: Options, folder: Path) -> Exported: ...


TARGETS: Mapping[str, str] = MappingProxyType(
    {
        "torchscript": "smp3d_export.targets.torchscript",
        "aoti": "smp3d_export.targets.aoti",
        "compile": "smp3d_export.targets.compile",
        "onnx": "smp3d_export.targets.onnx",
        "openvino": "smp3d_export.targets.openvino",
        "trt": "smp3d_export.targets.tensorrt:TRT",
        "trt-rtx": "smp3d_export.targets.tensorrt:TRT_RTX",
    }
)
"""Name -> a module, or an object of one where several are alike."""


def known(name: str) -> str:
    """The name, if a target has it.

    Raises:
        UsageError: there is no such target.
    """
    if name not in TARGETS:
        raise unknown("target", name, TARGETS, ", ".join(TARGETS))
    return name


def find(name: str) -> Target:
    """A target by its name.

    Raises:
        UsageError: there is no such target.
    """
    module, _, item = TARGETS[known(name)].partition(":")
    target: Any = importlib.import_module(module)
    return getattr(target, item) if item else target


def support(name: str, precision: Precision, device: str = "cpu") -> Support:
    """Whether a target can be exported to here; what starts from the network itself needs PyTorch."""
    target = find(name)
    found = target.support(precision, device)
    if found.ready and not target.from_onnx and find_spec("torch") is None:
        return Support.no("PyTorch is not installed", "pip install torch")
    return found


def ready(name: str, precision: Precision = Precision.FP32, device: str = "cpu") -> Target:
    """A target that can be exported to here.

    Raises:
        TargetUnavailableError: it cannot; the message has the reason and what to do.
    """
    found = support(name, precision, device)
    if not found.ready:
        fix = f": {found.fix}" if found.fix else ""
        raise TargetUnavailableError(f"{name} in {precision} cannot be exported to here, for {found.reason}{fix}")
    return find(name)


def check(names: Sequence[str], options: Options, source: OnnxFile | None = None) -> None:
    """Refuse, before any work is done, options that a target does not have, and targets of which none is ready here.

    An ONNX file in int8 has its ranges already.

    Raises:
        UsageError: an option is wrong.
        TargetUnavailableError: for the first of the targets.
    """
    if source is not None and source.precision is Precision.INT8:
        if options.calibration is not None:
            raise UsageError(f"{str(source.path)!r} is in int8 already, with its ranges: leave out --calibration")
    elif options.precision is Precision.INT8:
        if options.calibration is None:
            raise UsageError(
                "int8 takes its ranges from volumes like those it will see: give a folder of some by --calibration"
            )
        options.calibration.files()
    elif options.calibration is not None:
        raise UsageError(f"--calibration is for --precision int8, not for {options.precision}")
    if options.keep_fp32 and options.precision not in (Precision.FP16, Precision.BF16):
        raise UsageError(f"--keep-fp32 is for --precision fp16 or bf16, not for {options.precision}")
    for name in names:
        find(name).check(options)
    if not any(support(name, options.precision, options.device).ready for name in names):
        ready(names[0], options.precision, options.device)

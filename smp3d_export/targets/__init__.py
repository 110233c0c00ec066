"""Name -> target: the table of what can be exported to. A target is a module, imported only when used."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from smp3d_export.errors import TargetUnavailableError, unknown

if TYPE_CHECKING:
    from smp3d_export.capture import Captured


class Precision(StrEnum):
    FP32 = "fp32"
    TF32 = "tf32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"


@dataclass(frozen=True)
class Support:
    """Whether a target can be exported to here; if not, the reason and the command that mends it."""

    ready: bool
    reason: str = ""
    fix: str = ""

    @classmethod
    def yes(cls) -> Support:
        return cls(True)

    @classmethod
    def no(cls, reason: str, fix: str = "") -> Support:
        return cls(False, reason, fix)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a target is asked for. `metadata` is written into the file where its format has a place for it."""

    precision: Precision = Precision.FP32
    opset: int = 20
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Exported:
    """What a target made: a line for the user, and what the manifest says of it."""

    summary: str
    facts: Mapping[str, Any] = field(default_factory=dict)


class Target(Protocol):
    """What a target's module has. Its runner is in `runtime`."""

    name: str
    suffix: str

    def support(self, precision: Precision, device: str) -> Support: ...

    def check(self, options: Options) -> None:
        """Refuse options that the target does not have, before any work is done, by a `UsageError`."""

    def export(self, captured: Captured, options: Options, folder: Path) -> Exported: ...


TARGETS: Mapping[str, str] = MappingProxyType({name: f"smp3d_export.targets.{name}" for name in ("onnx", "openvino")})


def known(name: str) -> str:
    """The name, if a target has it.

    Raises:
        UsageError: there is no such target.
    """
    if name not in TARGETS:
        raise unknown("target", name, TARGETS, ", ".join(TARGETS))
    return name


def find(name: str) -> Target:
    """The module of a target.

    Raises:
        UsageError: there is no such target.
    """
    return importlib.import_module(TARGETS[known(name)])  # pyright: ignore[reportReturnType]


def ready(name: str, precision: Precision = Precision.FP32, device: str = "cpu") -> Target:
    """The module of a target that can be exported to here.

    Raises:
        TargetUnavailableError: it cannot; the message has the reason and what to do.
    """
    target = find(name)
    support = target.support(precision, device)
    if not support.ready:
        fix = f": {support.fix}" if support.fix else ""
        raise TargetUnavailableError(f"{name} in {precision} cannot be exported to here, for {support.reason}{fix}")
    return target


def require_one(names: Sequence[str], precision: Precision = Precision.FP32, device: str = "cpu") -> None:
    """Refuse, before any work is done, targets of which none can be exported to here.

    Raises:
        TargetUnavailableError: for the first of them.
    """
    for name in names:
        if find(name).support(precision, device).ready:
            return
    ready(names[0], precision, device)

"""The settings for every target of an export: precision, opset, fp32 layers, calibration, GPUs, device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from smp3d_export.arrays import Volume
from smp3d_export.contract import ShapeContract
from smp3d_export.precision import Precision

OPSET = 20


class Batches(Protocol):
    """Batches (N, C, H, W, D) of the contract's optimum, read again at every iteration."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Volume]: ...


class CalibrationData(Protocol):
    """The volumes that int8 is calibrated on."""

    def files(self) -> list[Path]: ...

    def batches(self, contract: ShapeContract) -> Batches: ...

    def to_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings for a target.

    `keep_fp32` are patterns of layers and operators that stay in fp32 when the rest is lowered. `gpus` are the compute
    capabilities to build an engine for, such as `8.6`; if empty, the builder's default. `metadata` is written into the
    file if its format has a place for it.
    """

    precision: Precision = Precision.FP32
    opset: int = OPSET
    keep_fp32: tuple[str, ...] = ()
    calibration: CalibrationData | None = None
    gpus: tuple[str, ...] = ()
    device: str = "cpu"
    metadata: Mapping[str, str] = field(default_factory=dict)

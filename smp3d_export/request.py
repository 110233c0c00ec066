"""What a user asks for: the network, the shapes, the targets. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from smp3d_export.calibration import Calibration
from smp3d_export.runtime.tensorrt import MODULES
from smp3d_export.runtime.volumes import Normalisation
from smp3d_export.targets import Options, Precision

Sizes = tuple[int, ...]
Optimise = Literal["on", "off", "cpu", "auto"]

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class NetworkRequest:
    """A network by name, with trained or random weights.

    `arguments` are those of the architecture's constructor that the user gave; what is left out is inferred from the
    checkpoint, or is the constructor's default.
    """

    architecture: str
    encoder: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Path | None = None
    seed: int = 0

    @property
    def title(self) -> str:
        return f"{self.architecture}-{self.encoder}".lower()


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """A model that `save_pretrained` wrote: a folder, or a repository of the hub and a revision of it."""

    source: str
    revision: str | None = None
    seed: int = 0

    @property
    def title(self) -> str:
        """Not the name of the folder alone: in its parent, that is taken."""
        return f"{Path(self.source).resolve().name}-export"


@dataclass(frozen=True, kw_only=True)
class OnnxSource:
    """An ONNX file that an export wrote, to make further artifacts of, without torch."""

    path: Path
    seed: int = 0

    @property
    def title(self) -> str:
        return f"{self.path.resolve().parent.name}-{self.path.stem}"


Source = NetworkRequest | SavedModel | OnnxSource


@dataclass(frozen=True, kw_only=True)
class Request:
    """One export. `shape`, `min` and `max` are (N, C, H, W, D), `multiple` is what (H, W, D) are multiples of; they
    default to the contract that is saved with the network, if one is, and else as `ShapeContract.of` has it.
    `precision` defaults to that of an ONNX file, and else to fp32. `optimise` says which of the program's `forms`
    artifacts are made of; `auto`, for each target, the fastest here. `threads` is how many the artifact and the network
    run on; all of the machine's cores where it is None. `device` is `cpu`, `cuda` or `cuda:N`; `auto` is decided by
    `placed`.
    """

    network: Source
    shape: Sizes | None = None
    min: Sizes | None = None
    max: Sizes | None = None
    multiple: Sizes | None = None
    static: bool = False
    targets: tuple[str, ...] = ("onnx",)
    samples: tuple[Path, ...] = ()
    normalisation: Normalisation | None = None
    precision: Precision | None = None
    keep_fp32: tuple[str, ...] = ()
    calibration: Calibration | None = None
    gpus: tuple[str, ...] = ()
    device: str = AUTO
    threads: int | None = None
    opset: int = 20
    optimise: Optimise = "on"
    output: Path | None = None
    bench: bool = True
    min_speedup: float | None = None

    @property
    def options(self) -> Options:
        """What every target is asked for."""
        return Options(
            precision=self.precision or Precision.FP32,
            opset=self.opset,
            keep_fp32=self.keep_fp32,
            calibration=self.calibration,
            gpus=self.gpus,
            device=self.device,
        )

    def placed(self, cuda: bool) -> Request:
        """The same with a device: the GPU, if there is one and all the targets run there alone, else the processor."""
        if self.device != AUTO:
            return self
        return replace(self, device="cuda" if cuda and all(name in MODULES for name in self.targets) else "cpu")

    def with_precision(self, default: Precision) -> Request:
        """The same with a precision, if it has none."""
        return self if self.precision is not None else replace(self, precision=default)

    @property
    def folder(self) -> Path:
        """Where the artifact goes: `output`, or a folder of the working directory named after the network."""
        if self.output is not None:
            return self.output
        return Path(self.network.title)

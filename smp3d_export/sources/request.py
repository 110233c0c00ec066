"""What a user requests, and what every source of a network provides. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from smp3d_export import backends
from smp3d_export.arrays import Outputs, Volume
from smp3d_export.artifact.manifest import Manifest, Model
from smp3d_export.backends.variant import Variant
from smp3d_export.contract import ShapeContract
from smp3d_export.device import AUTO
from smp3d_export.errors import UsageError
from smp3d_export.precision import Precision
from smp3d_export.progress import Reporter
from smp3d_export.runtime.calibration import Calibration
from smp3d_export.runtime.volumes import Normalisation, check_channels, volume_shape
from smp3d_export.settings import OPSET, Settings

Sizes = tuple[int, ...]
Optimise = Literal["on", "off", "cpu", "auto"]


def optimise_named(text: str) -> Optimise:
    """A value of `--optimise`.

    Raises:
        UsageError: it is something else.
    """
    if text == "on" or text == "off" or text == "cpu" or text == "auto":
        return text
    raise UsageError(f"--optimise is {text!r}; it is on, off, cpu or auto")


class Source(Protocol):
    """What a user wants to export. It is opened after its request has been checked."""

    @property
    def seed(self) -> int:
        """The seed for random weights and inputs."""
        ...

    @property
    def title(self) -> str:
        """The default name of the artifact's folder."""
        ...

    def complete(self, request: Request) -> Request:
        """The request with the settings that it leaves to the source: precision and device.

        Raises:
            UsageError: it requests something that this kind of source does not have.
        """
        ...

    def open(self, request: Request, reporter: Reporter) -> Opened:
        """Read or build the network.

        Raises:
            UsageError: there is no such network, or the request does not fit it.
        """
        ...


class Timed(Protocol):
    """A network or an artifact that runs, and may time itself."""

    def seconds(self, image: Volume) -> float | None: ...


class Opened(Protocol):
    """A network that is ready to be exported and compared with."""

    @property
    def name(self) -> str: ...

    @property
    def contract(self) -> ShapeContract: ...

    @property
    def model(self) -> Model: ...

    @property
    def label_threshold(self) -> float:
        """The value above which a voxel of a one-class mask is labelled."""
        ...

    def introduction(self) -> Iterator[str]:
        """Lines for the user: which network this is, and with which weights."""
        ...

    def __call__(self, image: Volume) -> Outputs:
        """Run the reference: (N, C, H, W, D) to the outputs by name."""
        ...

    def baselines(self, precision: Precision) -> Mapping[str, Timed]:
        """What an artifact is timed against, by name. It is judged by the first."""
        ...

    def program(self, request: Request, reporter: Reporter) -> Program:
        """What artifacts are made from.

        Raises:
            ExportError: the network cannot be captured.
        """
        ...


@dataclass(frozen=True)
class Program:
    """What artifacts are made from, and what their manifests say about it.

    Attributes:
        manifest: the network's, before any target.
        variants: programs that compute the same within the contract. Each target keeps the fastest that suits it.
        activations: the bytes of activations at the optimum shape.
    """

    manifest: Manifest
    variants: tuple[Variant, ...]
    activations: int

    def observing(self, samples: Iterable[Volume]) -> Program:
        """The program with the user's volumes, which help decide what has to stay in fp32 in half precision."""
        images = tuple(samples)
        return replace(self, variants=tuple(replace(one, samples=images) for one in self.variants))


@dataclass(frozen=True, kw_only=True)
class Request:
    """One export.

    Attributes:
        source: the network.
        shape, min, max: (N, C, H, W, D); by default those saved with the network, otherwise those of
            `ShapeContract.of`.
        multiple: H, W and D are multiples of these; by default of what the network needs.
        static: freeze every axis at `shape`.
        targets: what to export to.
        samples, normalisation: the user's volumes to compare on, and how they are normalised.
        precision: by default an ONNX file's own, otherwise fp32.
        device: `cpu`, `cuda`, `cuda:N`, or `auto`, which leaves it to the source.
        threads: CPU threads; by default all cores.
        opset: the ONNX operator set; by default an ONNX file's own, otherwise 20.
        optimise: the variant that artifacts are made from, by default `on`; with `auto`, the fastest on this machine
            for each target.
        force: replace the artifact of another network.
        output: the artifact's folder; by default one in the working directory named after the network.
        bench: whether to measure speed.
        min_speedup: the smallest acceptable ratio of eager time to the artifact's.
    """

    source: Source
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
    opset: int | None = None
    optimise: Optimise | None = None
    output: Path | None = None
    force: bool = False
    bench: bool = True
    min_speedup: float | None = None

    @property
    def settings(self) -> Settings:
        """The settings for every target."""
        return Settings(
            precision=self.precision or Precision.FP32,
            opset=self.opset or OPSET,
            keep_fp32=self.keep_fp32,
            calibration=self.calibration,
            gpus=self.gpus,
            device=self.device,
        )

    def check_volumes(self) -> None:
        """Refuse files that hold no volume, or whose channels differ from `shape`'s, by their headers.

        Raises:
            UsageError: it names the first such file.
        """
        shapes = {path: volume_shape(path) for path in self.samples}
        if self.calibration is not None:
            shapes |= self.calibration.shapes
        for path, shape in shapes.items():
            if self.shape is not None and len(self.shape) > 1:
                check_channels(path, shape, self.shape[1])

    @property
    def several(self) -> bool:
        """Whether each target has a subfolder of its own."""
        return len(self.targets) > 1

    def placed(self, cuda: bool) -> Request:
        """The request with a device: the GPU if there is one and every target runs only there, otherwise the CPU."""
        if self.device != AUTO:
            return self
        on_gpu = cuda and all(backends.find(name).gpu for name in self.targets)
        return replace(self, device="cuda" if on_gpu else "cpu")

    @property
    def folder(self) -> Path:
        """Where the artifact goes."""
        return self.output if self.output is not None else Path(self.source.title)

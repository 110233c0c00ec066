"""An ONNX file that an export wrote, as the source of more artifacts, without torch.

The artifacts are compared with the file in ONNX Runtime, and timed against it. The file was proved equal to the network
when it was exported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smp3d_export import backends, hardware
from smp3d_export.arrays import Outputs, Volume
from smp3d_export.artifact.folder import sha256
from smp3d_export.artifact.manifest import Model
from smp3d_export.artifact.place import Place
from smp3d_export.backends.variant import Variant
from smp3d_export.contract import ShapeContract
from smp3d_export.errors import UsageError
from smp3d_export.onnxgraph import file
from smp3d_export.onnxgraph.graph import activation_bytes
from smp3d_export.precision import Precision
from smp3d_export.progress import Reporter
from smp3d_export.sources.request import Program, Request, Timed

if TYPE_CHECKING:
    from smp3d_export.onnxgraph.emulation import Emulation

BASELINE = "ONNX Runtime"


@dataclass(frozen=True, kw_only=True)
class OnnxSource:
    """An ONNX file by its path."""

    path: Path
    seed: int = 0

    @property
    def title(self) -> str:
        """Named after the network. The network's plain name is often the folder that the file is in."""
        return f"{self._file.manifest.name.replace('/', '-')}-from-onnx"

    @cached_property
    def _file(self) -> file.OnnxFile:
        return file.read(self.path)

    def complete(self, request: Request) -> Request:
        for name in request.targets:
            if not backends.find(name).from_onnx:
                possible = ", ".join(row.name for row in backends.ROWS if row.from_onnx)
                raise UsageError(
                    f"{name} is made from the network, not from an ONNX file. An ONNX file can become: {possible}"
                )
        shapes = (request.shape, request.min, request.max, request.multiple)
        if any(given is not None for given in shapes) or request.static:
            options = "--shape, --min, --max, --multiple and --static"
            raise UsageError(f"an ONNX file keeps the shapes of its export: leave out {options}")
        if request.optimise is not None:
            raise UsageError("an ONNX file keeps the rewrites of its export: leave out --optimise")
        if request.keep_fp32:
            raise UsageError("an ONNX file keeps the fp32 layers of its export: leave out --keep-fp32")
        place = Place.of(request.folder, several=request.several)
        if self.path.resolve().parent in [place.folder(name).resolve() for name in request.targets]:
            raise UsageError(
                f"the output folder {str(request.folder)!r} holds {self.path.name!r} itself: give another with -o"
            )
        self._file.check_opset(request.opset or self._file.opset)
        calibrated = self._file.precision is Precision.INT8
        if calibrated and request.calibration is not None:
            raise UsageError(f"{str(self.path)!r} is calibrated already: leave out --calibration")
        request = replace(
            request,
            precision=request.precision or self._file.precision,
            opset=request.opset or self._file.opset,
        ).placed(cuda=False)
        backends.check(request.targets, request.settings, calibrated=calibrated)
        return request

    def open(self, request: Request, reporter: Reporter) -> OpenedFile:
        return OpenedFile(self._file, request.threads or hardware.cores())


@dataclass(frozen=True, eq=False)
class OpenedFile:
    """An ONNX file with its session in ONNX Runtime."""

    file: file.OnnxFile
    threads: int
    session: Emulation = field(init=False)

    def __post_init__(self) -> None:
        from smp3d_export.onnxgraph.emulation import Emulation

        object.__setattr__(self, "session", Emulation(self.file.model, self.threads))

    @property
    def name(self) -> str:
        return self.file.path.name

    @property
    def contract(self) -> ShapeContract:
        return self.file.contract

    @property
    def model(self) -> Model:
        return self.file.manifest.model

    @property
    def label_threshold(self) -> float:
        return self.file.manifest.label_threshold

    def introduction(self) -> Iterator[str]:
        model = self.file.manifest.model
        yield f"{self.name} · {model.name} · {model.parameters / 1e6:.1f} M parameters · {model.weights}"

    def __call__(self, image: Volume) -> Outputs:
        return self.session(image)

    def seconds(self, image: Volume) -> None:
        self(image)

    def baselines(self, precision: Precision) -> Mapping[str, Timed]:
        return {BASELINE: self}

    def program(self, request: Request, reporter: Reporter) -> Program:
        source: dict[str, Any] = {"file": self.file.path.name, "sha256": sha256(self.file.path)}
        if self.file.data:
            source["data"] = [{"file": path.name, "sha256": sha256(path)} for path in self.file.data]
        manifest = self.file.manifest
        manifest = replace(
            manifest,
            facts={**manifest.facts, "source": source},
            device=request.device,
            versions=hardware.versions(),
        )
        activations = activation_bytes(self.file.model, self.contract.opt)
        return Program(manifest, (Variant("file", self.file),), activations)

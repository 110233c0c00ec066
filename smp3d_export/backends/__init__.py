"""The table of targets. A row says everything about a target; its package is imported only when it is used."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from smp3d_export import hardware
from smp3d_export.backends.exporter import Exported as Exported
from smp3d_export.backends.exporter import Exporter as Exporter
from smp3d_export.backends.exporter import Support as Support
from smp3d_export.backends.exporter import either
from smp3d_export.device import CPU, CUDA, kind
from smp3d_export.errors import TargetUnavailableError, UsageError, unknown
from smp3d_export.precision import Precision
from smp3d_export.settings import Settings

if TYPE_CHECKING:
    from smp3d_export.backends.runner import Runner

TITLES = {
    "torch": "PyTorch",
    "onnx": "ONNX",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "tensorrt": "TensorRT",
    "tensorrt_rtx": "TensorRT-RTX",
}
"""The common names of Python packages."""


NO_GPU = "it needs an NVIDIA GPU, and this machine has none"


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One target.

    Attributes:
        name: what `--to` takes.
        package: the Python package with the modules `exporter` and `runner`, which define `Exporter` and `Runner`.
        files: the artifact's files; the first is the one that the runner loads.
        through: how it is made, in a few words.
        precisions: its precisions on a CPU, or on a GPU if it runs only there.
        gpu_precisions: further precisions that it has on a GPU only.
        library: the Python package that makes and runs it.
        extra: the extra of this package that installs the library; empty if no extra is needed.
        needs: what else it needs, in a few words.
        from_onnx: whether it is made from the ONNX graph, and so can start from an ONNX file, without PyTorch.
        gpu: whether it runs on NVIDIA GPUs only.
        checks_shapes: whether its files refuse a size above the contract's maximum in every runtime that loads them.
        builds_on_gpu: whether it must be built on the GPU that it is for.
    """

    name: str
    package: str
    files: tuple[str, ...]
    through: str
    precisions: tuple[Precision, ...]
    gpu_precisions: tuple[Precision, ...] = ()
    library: str
    extra: str = ""
    needs: str = ""
    from_onnx: bool = False
    gpu: bool = False
    checks_shapes: bool = False
    builds_on_gpu: bool = False

    def device(self, device: str) -> str:
        """The device that an artifact loaded for `device` runs on: always a GPU for an engine."""
        return CUDA if self.gpu and device == CPU else device

    def exporter(self) -> Exporter:
        return importlib.import_module(f"{self.package}.exporter").Exporter(self)

    def runner(self) -> type[Runner]:
        return importlib.import_module(f"{self.package}.runner").Runner

    @property
    def all_precisions(self) -> tuple[Precision, ...]:
        """Its precisions on a CPU and on a GPU, in the order of `Precision`."""
        return tuple(precision for precision in Precision if precision in (*self.precisions, *self.gpu_precisions))

    @property
    def install(self) -> str:
        """The command that installs its library."""
        return f"pip install 'smp3d-export[{self.extra}]'" if self.extra else f"pip install {self.library}"

    @property
    def installed(self) -> bool:
        return find_spec(self.library) is not None

    @property
    def title(self) -> str:
        """The common name of its library."""
        return TITLES.get(self.library, self.library)

    def support(self, precision: Precision, device: str = CPU) -> Support:
        """Whether this machine can export to the target in a precision.

        Without PyTorch, a target that is `from_onnx` can be exported from an ONNX file.
        """
        if self.builds_on_gpu and precision in self.all_precisions and not hardware.gpus():
            return Support.no(NO_GPU, elsewhere(self))
        if not self.from_onnx and precision in self.all_precisions and find_spec("torch") is None:
            return Support.no(f"{TITLES['torch']} is not installed", "pip install torch")
        missing = self._missing(precision, device)
        return self.exporter().support(precision, device) if missing is None else missing

    def run_support(self, precision: Precision, device: str = CPU) -> Support:
        """Whether this machine can run the target's artifacts in a precision."""
        if self.gpu and precision in self.all_precisions and not hardware.gpus():
            return Support.no(NO_GPU)
        missing = self._missing(precision, device)
        return self.exporter().run_support(precision, device) if missing is None else missing

    def _missing(self, precision: Precision, device: str) -> Support | None:
        """What is missing, whether to export or to run; None if nothing is."""
        if precision not in self.all_precisions:
            return Support.none(self.name, precision, self.all_precisions)
        if not self.installed:
            return Support.no(f"{self.title} is not installed", self.install)
        if precision not in self.precisions and kind(device) == CPU:
            fix = f"use --precision {either(self.precisions)}"
            fix = f"use --device cuda, or {fix}" if hardware.gpus() else fix
            return Support.no(f"it has {precision} on an NVIDIA GPU only", fix)
        return None


FP32, TF32, FP16, BF16, INT8 = Precision

ROWS = (
    Backend(
        name="onnx",
        package="smp3d_export.backends.onnx",
        files=("model.onnx",),
        through="PyTorch's dynamo exporter and onnxsim; opset 13 and up",
        precisions=(FP32, FP16, BF16, INT8),
        library="onnxruntime",
        from_onnx=True,
    ),
    Backend(
        name="openvino",
        package="smp3d_export.backends.openvino",
        files=("model.xml", "model.bin"),
        through="the ONNX graph",
        precisions=(FP32, FP16, BF16, INT8),
        library="openvino",
        extra="openvino",
        from_onnx=True,
        checks_shapes=True,
    ),
    Backend(
        name="trt",
        package="smp3d_export.backends.tensorrt",
        files=("model.engine",),
        through="the ONNX graph, TensorRT 10 or 11",
        precisions=(FP32, TF32, FP16, BF16, INT8),
        library="tensorrt",
        extra="trt",
        needs="an NVIDIA GPU",
        from_onnx=True,
        gpu=True,
        checks_shapes=True,
        builds_on_gpu=True,
    ),
    Backend(
        name="trt-rtx",
        package="smp3d_export.backends.tensorrt",
        files=("model.engine",),
        through="the ONNX graph, TensorRT-RTX; builds without a GPU",
        precisions=(FP32, FP16, BF16),
        library="tensorrt_rtx",
        extra="trt-rtx",
        needs="an NVIDIA GPU to run",
        from_onnx=True,
        gpu=True,
        checks_shapes=True,
    ),
    Backend(
        name="aoti",
        package="smp3d_export.backends.aoti",
        files=("model.pt2",),
        through="AOTInductor: machine code for this CPU or GPU",
        precisions=(FP32, BF16),
        gpu_precisions=(FP16,),
        library="torch",
        needs="a C++ compiler",
    ),
    Backend(
        name="compile",
        package="smp3d_export.backends.compile",
        files=("program.pt2", "model.cache"),
        through="`torch.compile`, with what it compiled, so that the next start is warm",
        precisions=(FP32, BF16),
        gpu_precisions=(FP16,),
        library="torch",
        needs="a C++ compiler",
    ),
    Backend(
        name="torchscript",
        package="smp3d_export.backends.torchscript",
        files=("model.ts",),
        through="the captured graph as a script",
        precisions=(FP32, FP16, BF16),
        library="torch",
        checks_shapes=True,
    ),
)


def names() -> list[str]:
    """The targets, in the order of the table."""
    return [row.name for row in ROWS]


def find(name: str) -> Backend:
    """A target by its name.

    Raises:
        UsageError: there is no such target.
    """
    for row in ROWS:
        if row.name == name:
            return row
    raise unknown("target", name, names(), ", ".join(names()))


def elsewhere(row: Backend) -> str:
    """What to do instead of building an engine on a machine without a GPU."""
    others = ", ".join(other.name for other in ROWS if other.gpu and not other.builds_on_gpu)
    instead = f"use --to {others}, which builds without one; or " if others else ""
    return (
        f"{instead}export --to onnx here, and on the machine with the GPU: smp3d-export from model.onnx --to {row.name}"
    )


def ready(name: str, precision: Precision = Precision.FP32, device: str = CPU) -> Exporter:
    """The exporter of a target, if this machine can export to it.

    Raises:
        TargetUnavailableError: it cannot; the message has the reason and the fix.
    """
    support = find(name).support(precision, device)
    if not support.ready:
        raise TargetUnavailableError(f"{name} in {precision} cannot be exported on this machine: {support}")
    return find(name).exporter()


def check(names: Sequence[str], settings: Settings, *, calibrated: bool = False) -> None:
    """Refuse settings that a target does not have, or targets of which none is available, before any work is done.

    `calibrated` says that the source is in int8 already.

    Raises:
        UsageError: a setting is wrong.
        TargetUnavailableError: no target can be exported on this machine; the message is about the first.
    """
    if settings.precision is Precision.INT8 and not calibrated:
        if settings.calibration is None:
            raise UsageError(
                "int8 is calibrated on volumes like those that the network will see: "
                "give a folder of them with --calibration"
            )
        settings.calibration.files()
    elif settings.calibration is not None:
        raise UsageError(f"--calibration is for --precision int8, not for {settings.precision}")
    if settings.keep_fp32 and not settings.precision.is_half:
        raise UsageError(f"--keep-fp32 is for --precision fp16 or bf16, not for {settings.precision}")
    for name in names:
        find(name).exporter().check(settings)
    if not any(find(name).support(settings.precision, settings.device).ready for name in names):
        ready(names[0], settings.precision, settings.device)

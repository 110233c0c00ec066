"""What artifacts are made from: a captured program or an ONNX file, and the graphs made from it so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from smp3d_export.arrays import Volume
from smp3d_export.contract import ShapeContract
from smp3d_export.device import CPU
from smp3d_export.onnxgraph.file import OnnxFile
from smp3d_export.precision import Precision
from smp3d_export.settings import Settings

if TYPE_CHECKING:
    from onnx import ModelProto

    from smp3d_export.program.capture import Captured

Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class Variant:
    """One program of an export, by name (`on`, `off`, `cpu`, `file`). All compute the same.

    `samples` are volumes (N, C, H, W, D) of the user's that the contract admits. What overflows half precision on them
    stays in fp32.

    Graphs are made once and shared by targets, so a graph that this returns must not be changed.
    """

    name: str
    source: Captured | OnnxFile
    samples: tuple[Volume, ...] = ()
    _made: dict[tuple[Any, ...], Any] = field(default_factory=dict, repr=False)

    @property
    def contract(self) -> ShapeContract:
        return self.source.contract

    @property
    def outputs(self) -> Mapping[str, int]:
        """The names of the outputs and their numbers of axes."""
        return self.source.outputs

    @property
    def precision(self) -> Precision:
        """The precision that the program is in before any export."""
        return self.source.precision

    @property
    def captured(self) -> Captured:
        """The captured program. Only targets that can start from ONNX are given a file instead."""
        assert not isinstance(self.source, OnnxFile)
        return self.source

    @property
    def rewrites(self) -> Mapping[str, int] | None:
        """How often each rewrite was applied; None for an ONNX file, which was rewritten when it was exported."""
        return None if isinstance(self.source, OnnxFile) else self.source.rewrites

    @property
    def rejected(self) -> Mapping[str, str]:
        """The rewrites that were left out because they change the outputs, and by how much."""
        return {} if isinstance(self.source, OnnxFile) else self.source.rejected

    @property
    def for_cpu(self) -> bool:
        """Whether the program was rewritten to be fast on CPUs only."""
        return not isinstance(self.source, OnnxFile) and self.source.for_cpu

    @property
    def up_to_max(self) -> bool:
        """Whether the program was rewritten so that it is wrong above the contract's maximum."""
        return not isinstance(self.source, OnnxFile) and self.source.up_to_max

    def lowered(self, settings: Settings, *, runs_in_torch: bool = False) -> Captured:
        """The captured program in the requested precision; see `lowering.lowered`.

        `runs_in_torch` says that PyTorch runs it, so that what it computes wrongly on this CPU stays in fp32.
        """
        from smp3d_export.program.lowering import lowered

        probed = runs_in_torch and settings.device == CPU
        key = ("program", settings.precision, settings.keep_fp32, probed)
        lower = partial(lowered, self.captured, settings.precision, settings.keep_fp32, self.samples, probed=probed)
        return self._once(key, lower)

    def kept_fp32(self, settings: Settings) -> dict[str, Any]:
        """For the manifest: what stays in fp32 in a half-precision export of a captured program."""
        if isinstance(self.source, OnnxFile) or not settings.precision.is_half:
            return {}
        return {"kept_fp32": dict(self.lowered(settings).kept)}

    def graph(self, settings: Settings) -> ModelProto:
        """The ONNX graph in the requested precision.

        Raises:
            ExportError: the exporter or the quantisation fails.
            UsageError: the source is a file in another precision, or the calibration does not fit the network.
        """
        if settings.precision is Precision.INT8 and self.precision is not Precision.INT8:
            from smp3d_export.onnxgraph.int8 import quantised

            calibration = settings.calibration
            assert calibration is not None
            plain = replace(settings, precision=Precision.FP32, keep_fp32=(), calibration=None)
            key = ("int8", settings.opset, calibration)
            return self._once(key, lambda: quantised(self.graph(plain), calibration.batches(self.contract)))
        if isinstance(self.source, OnnxFile):
            file, precision, opset = self.source, settings.precision, settings.opset
            return self._once(("file", precision, opset), lambda: file.graph(precision, opset))
        from smp3d_export.onnxgraph.conversion import convert

        key = ("onnx", settings.precision, settings.keep_fp32, settings.opset)
        return self._once(key, lambda: convert(self.lowered(settings), settings.opset))

    def _once(self, key: tuple[Any, ...], make: Callable[[], Value]) -> Value:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

"""OpenVINO's intermediate representation, from the ONNX graph.

Each precision fixes what affects numbers: the weights on disk here, and the arithmetic in the runner.

    precision   weights   arithmetic
    fp32        fp32      f32
    fp16        fp16      f16 if the CPU plugin has it, otherwise f32
    bf16        fp16      bf16, on processors with instructions for it
    int8        int8      int8, and f32 for what is not quantised

A convolution that this processor computes wrongly stays in f32: by a mark in the file, or by not being quantised.
The plugin rounds weights to bf16 itself. On disk, fp16 keeps three more bits than bf16 in the same space.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smp3d_export.backends import exporter
from smp3d_export.backends.exporter import Exported, Support
from smp3d_export.backends.openvino import int8
from smp3d_export.contract import INPUT, ShapeContract
from smp3d_export.errors import ExportError, TargetUnavailableError, UsageError
from smp3d_export.onnxgraph.graph import in_files, too_large
from smp3d_export.onnxgraph.opset import check_opset
from smp3d_export.precision import Precision
from smp3d_export.progress import megabytes
from smp3d_export.settings import Settings

if TYPE_CHECKING:
    import openvino
    from onnx import ModelProto

    from smp3d_export.backends.variant import Variant

# By default OpenVINO would compress the weights in every precision.
COMPRESSED = (Precision.FP16, Precision.BF16)


class Exporter(exporter.Exporter):
    """Writes `model.xml` and `model.bin`, with the contract's bounds on the input."""

    def support(self, precision: Precision, device: str) -> Support:
        if precision is Precision.INT8 and find_spec("nncf") is None:
            return Support.no("NNCF, which quantises for OpenVINO, is not installed", self.row.install)
        return self.run_support(precision, device)

    def run_support(self, precision: Precision, device: str) -> Support:
        from smp3d_export.backends.openvino.runner import arithmetic

        try:
            arithmetic(precision)
        except TargetUnavailableError as error:
            return Support.no(str(error), "use --precision fp32 or fp16")
        return Support.yes()

    def check(self, settings: Settings) -> None:
        check_opset(settings.opset)
        if settings.keep_fp32:
            raise UsageError(
                f"--keep-fp32 {settings.keep_fp32[0]} does not go with openvino, which computes the whole network in "
                "one arithmetic: leave it out, or export to openvino separately in fp32"
            )

    def export(self, variant: Variant, settings: Settings, folder: Path) -> Exported:
        import openvino

        from smp3d_export.backends.openvino.map_statistics import refine
        from smp3d_export.backends.openvino.probe import dequantise, is_quantised, save_in_f32, wrong
        from smp3d_export.backends.openvino.runner import arithmetic

        file = folder / self.row.files[0]
        model, contract = read(graph(variant, settings)), variant.contract
        quantisation: dict[str, Any] = {}
        kept: dict[str, str] = {}
        if settings.precision is Precision.INT8 and variant.precision is not Precision.INT8:
            assert settings.calibration is not None
            kept = wrong(bounded(model.clone(), contract), contract, "i8", only=int8.quantises)
            model = int8.quantised(model, settings.calibration.batches(contract), kept)
            quantisation = {"quantisation": int8.facts(model, kept), "calibration": settings.calibration.to_dict()}
        model = bounded(model, contract)
        if variant.precision is Precision.INT8:
            kept = wrong(model, contract, "i8", only=is_quantised)
            dequantise(model, kept)
        elif settings.precision is not Precision.INT8:
            kept = wrong(model, contract, arithmetic(settings.precision))
        refine(model, arithmetic(settings.precision))
        for key, value in settings.metadata.items():
            model.set_rt_info(value, key.split("."))
        save_in_f32(model, kept, file, compress=settings.precision in COMPRESSED)
        size = sum(path.stat().st_size for path in folder.iterdir())
        facts = {
            "opset": settings.opset,
            "operations": len(model.get_ops()),
            "weights": weights_of(openvino.Core().read_model(file)),
            "arithmetic": arithmetic(settings.precision),
            **quantisation,
        }
        summary = "{operations} operations, {size}, {weights} weights, {arithmetic} arithmetic"
        if kept:
            facts["kept_fp32"] = kept
            summary += f", {len(kept)} wrong here and kept in f32"
        return Exported(summary.format(size=megabytes(size), **facts), facts)


def weights_of(model: openvino.Model) -> str:
    """The type of most of the weights: f32, f16, bf16 or i8."""
    counts: Counter[str] = Counter()
    for operation in model.get_ops():
        if operation.get_type_name() == "Constant":
            output = operation.output(0)
            counts[output.element_type.get_type_name()] += prod(output.shape)
    return counts.most_common(1)[0][0]


def graph(variant: Variant, settings: Settings) -> ModelProto:
    """The fp32 graph, which OpenVINO lowers itself. A file that has the requested precision stays as it is."""
    precision = settings.precision if variant.precision is settings.precision else Precision.FP32
    return variant.graph(replace(settings, precision=precision))


def read(model: ModelProto) -> openvino.Model:
    """An ONNX graph as an OpenVINO model. A graph over 2 GB is passed in files.

    Raises:
        ExportError: OpenVINO cannot read it.
    """
    import openvino

    core = openvino.Core()
    try:
        if not too_large(model):
            return core.read_model(model.SerializeToString())
        with in_files(model) as file:
            return core.read_model(file)
    except RuntimeError as error:
        raise ExportError(f"OpenVINO cannot read the ONNX graph: {error}") from error


def bounded(model: openvino.Model, contract: ShapeContract) -> openvino.Model:
    """The model with the contract's bounds on its input, in place.

    Raises:
        ExportError: OpenVINO cannot.
    """
    try:
        model.reshape({INPUT: bounds(contract)})
    except RuntimeError as error:
        raise ExportError(f"OpenVINO cannot give the graph the contract's bounds: {error}") from error
    return model


def bounds(contract: ShapeContract) -> Any:
    """The contract's ranges in OpenVINO's form. It has no multiples, so the runner checks those."""
    import openvino

    return openvino.PartialShape([openvino.Dimension(axis.min, axis.max) for axis in contract.axes])

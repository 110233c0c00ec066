"""OpenVINO's intermediate representation, from the ONNX graph."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smp3d_export.contract import INPUT, ShapeContract
from smp3d_export.errors import ExportError
from smp3d_export.targets import Exported, Options, Precision, Support, onnx
from smp3d_export.targets.sizes import megabytes

if TYPE_CHECKING:
    from smp3d_export.targets import Exportable

name = "openvino"
suffix = ".xml"
from_onnx = True

FILE = "model.xml"


def support(precision: Precision, device: str) -> Support:
    if find_spec("openvino") is None:
        return Support.no("OpenVINO is not installed", "pip install 'smp3d-export[openvino]'")
    if precision is not Precision.FP32:
        return Support.no(f"{precision} is not implemented for openvino", "export in fp32")
    return Support.yes()


def check(options: Options) -> None:
    onnx.check(options)


def export(source: Exportable, options: Options, folder: Path) -> Exported:
    """Write `model.xml` and `model.bin`, with the contract's bounds on the input.

    Raises:
        ExportError: the ONNX exporter or OpenVINO's reader fails.
    """
    import openvino

    converted = onnx.graph(source, replace(options, precision=Precision.FP32))
    try:
        model = openvino.Core().read_model(converted.SerializeToString())
        model.reshape({INPUT: bounds(source.contract)})
    except RuntimeError as error:
        raise ExportError(f"OpenVINO cannot read the ONNX graph: {error}") from error
    for key, value in options.metadata.items():
        model.set_rt_info(value, key.split("."))
    # Weights stay as they are: by default they would be compressed to half precision.
    openvino.save_model(model, folder / FILE, compress_to_fp16=False)
    size = sum(file.stat().st_size for file in folder.iterdir())
    operations = len(model.get_ops())
    return Exported(f"{operations} operations, {megabytes(size)}", {"opset": options.opset, "operations": operations})


def bounds(contract: ShapeContract) -> Any:
    """The contract's ranges as OpenVINO has them; it knows no multiples, which the runner checks."""
    import openvino

    return openvino.PartialShape([openvino.Dimension(axis.min, axis.max) for axis in contract.axes])

"""OpenVINO's intermediate representation, from the ONNX graph.

What changes numbers is set for each precision, here (weights on disk) and in the runner (arithmetic):

    precision   weights   arithmetic
    fp32        fp32      f32
    fp16        fp16      f16 where the CPU plugin has it, else f32
    bf16        fp16      bf16, on processors with instructions for it
    int8        int8      int8, and f32 between and in what is not quantised

The plugin rounds the weights to bf16 itself; on disk fp16 keeps three bits more than that and takes as little room.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smp3d_export.contract import INPUT, ShapeContract
from smp3d_export.errors import ExportError, TargetUnavailableError, UsageError
from smp3d_export.targets import Exported, Options, Precision, Support, nncf, onnx
from smp3d_export.targets.sizes import megabytes

if TYPE_CHECKING:
    import openvino
    from onnx import ModelProto

    from smp3d_export.targets import Exportable

name = "openvino"
suffix = ".xml"
from_onnx = True

FILE = "model.xml"

PRECISIONS = (Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8)
INSTALL = "pip install 'smp3d-export[openvino]'"
# By default OpenVINO would compress the weights in every precision.
COMPRESSED = (Precision.FP16, Precision.BF16)


def support(precision: Precision, device: str) -> Support:
    if find_spec("openvino") is None:
        return Support.no("OpenVINO is not installed", INSTALL)
    if precision not in PRECISIONS:
        return Support.none(name, precision, PRECISIONS)
    if precision is Precision.INT8 and find_spec("nncf") is None:
        return Support.no("NNCF, which quantises for OpenVINO, is not installed", INSTALL)
    from smp3d_export.runtime.openvino import arithmetic

    try:
        arithmetic(precision)
    except TargetUnavailableError as error:
        return Support.no(str(error), "export in fp32 or fp16")
    return Support.yes()


def check(options: Options) -> None:
    onnx.check(options)
    if options.keep_fp32:
        raise UsageError(
            f"--keep-fp32 {options.keep_fp32[0]} is not for openvino, which has one arithmetic for the whole network: "
            "leave it out, or export to openvino by itself in fp32"
        )


def export(source: Exportable, options: Options, folder: Path) -> Exported:
    """Write `model.xml` and `model.bin`, with the contract's bounds on the input.

    Raises:
        ExportError: the ONNX exporter, OpenVINO's reader or the quantisation fails.
        UsageError: the calibration does not fit the network.
    """
    import openvino

    from smp3d_export.runtime.openvino import arithmetic

    model = read(graph(source, options))
    quantisation = {}
    if options.precision is Precision.INT8 and source.precision is not Precision.INT8:
        assert options.calibration is not None
        model = nncf.quantised(model, options.calibration, source.contract)
        quantisation = {"quantisation": nncf.facts(model), "calibration": options.calibration.to_dict()}
    try:
        model.reshape({INPUT: bounds(source.contract)})
    except RuntimeError as error:
        raise ExportError(f"OpenVINO cannot give the graph the contract's bounds: {error}") from error
    for key, value in options.metadata.items():
        model.set_rt_info(value, key.split("."))
    openvino.save_model(model, folder / FILE, compress_to_fp16=options.precision in COMPRESSED)
    size = sum(file.stat().st_size for file in folder.iterdir())
    facts = {
        "opset": options.opset,
        "operations": len(model.get_ops()),
        "weights": weights_of(openvino.Core().read_model(folder / FILE)),
        "arithmetic": arithmetic(options.precision),
        **quantisation,
    }
    summary = "{operations} operations, {size}, {weights} weights, {arithmetic} arithmetic"
    return Exported(summary.format(size=megabytes(size), **facts), facts)


def weights_of(model: openvino.Model) -> str:
    """The type of most of the weights: f32, f16, bf16 or i8."""
    counts: Counter[str] = Counter()
    for operation in model.get_ops():
        if operation.get_type_name() == "Constant":
            output = operation.output(0)
            counts[output.element_type.get_type_name()] += prod(output.shape)
    return counts.most_common(1)[0][0]


def graph(source: Exportable, options: Options) -> ModelProto:
    """The graph in fp32, which OpenVINO lowers itself; of an ONNX file in the precision asked for, that of the file."""
    precision = options.precision if source.precision is options.precision else Precision.FP32
    return onnx.graph(source, replace(options, precision=precision))


def read(model: ModelProto) -> openvino.Model:
    """An ONNX graph as OpenVINO's; over 2 GB it goes by way of files.

    Raises:
        ExportError: OpenVINO cannot read it.
    """
    import openvino

    from smp3d_export.onnx_graph import in_files, too_large

    core = openvino.Core()
    try:
        if not too_large(model):
            return core.read_model(model.SerializeToString())
        with in_files(model) as file:
            return core.read_model(file)
    except RuntimeError as error:
        raise ExportError(f"OpenVINO cannot read the ONNX graph: {error}") from error


def bounds(contract: ShapeContract) -> Any:
    """The contract's ranges as OpenVINO has them; it knows no multiples, which the runner checks."""
    import openvino

    return openvino.PartialShape([openvino.Dimension(axis.min, axis.max) for axis in contract.axes])

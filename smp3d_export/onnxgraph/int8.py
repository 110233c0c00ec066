"""An int8 ONNX graph in QDQ form: ONNX Runtime's quantiser puts pairs of quantise and dequantise before int8 inputs.

Weights are symmetric per channel, activations symmetric per tensor, as TensorRT requires. Only the inputs of layers are
quantised, not their outputs: a layer's sum passes its activation in full precision. On a trained network that loses a
third as much Dice. It costs ONNX Runtime no time, because its int8 3D convolution is no faster than its fp32 one. The
ranges are the largest absolute values. They are computed inside the graph, so memory does not grow with the number of
patches.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smp3d_export.contract import INPUT
from smp3d_export.errors import ExportError, Smp3dExportError
from smp3d_export.onnxgraph.graph import attributes, copied, too_large
from smp3d_export.precision import Precision
from smp3d_export.quiet import quiet
from smp3d_export.settings import Batches, Settings

if TYPE_CHECKING:
    import onnx


LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
GROUPED = "grouped Conv"
LEFT_OUT = {
    GROUPED: "ONNX Runtime has no fast int8 kernel for a grouped or depthwise convolution, which loses most in int8",
    "ConvTranspose": "ONNX Runtime has no int8 kernel for it, so it would only be rounded",
}
"""Layers that stay in fp32, and why."""


def quantised(model: onnx.ModelProto, batches: Batches) -> onnx.ModelProto:
    """The QDQ form of an fp32 graph, with ranges from batches (N, C, H, W, D).

    Raises:
        UsageError: a volume of the calibration cannot be read, or does not fit the contract.
        ExportError: the quantisation fails.
    """

    try:
        with quiet():
            result = qdq(model, batches, large=too_large(model))
    except Smp3dExportError:
        raise
    except Exception as error:  # ONNX Runtime's errors have no common base class
        raise ExportError(f"ONNX Runtime cannot quantise the graph: {type(error).__name__}: {error}") from error
    del result.metadata_props[:], result.graph.value_info[:]
    result.producer_name = model.producer_name
    return result


def qdq(model: onnx.ModelProto, batches: Batches, *, large: bool) -> onnx.ModelProto:
    """A quantised copy of a graph; `large` says that it does not fit into one protobuf message."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantise

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> Any:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch}

    named = copied(model)
    for number, node in enumerate(named.graph.node):  # the quantiser identifies nodes by name
        node.name = f"{node.op_type.lower()}_{number}"
    kept = [node.name for node in named.graph.node if node.op_type in LAYERS and not in_int8(node, named)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        quantise(
            named,
            file,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(LAYERS),
            nodes_to_exclude=kept,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            use_external_data_format=large,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,  # TensorRT does not read dequantised int32
                "OpTypesToExcludeOutputQuantization": list(LAYERS),
            },
        )
        return onnx.load(file)


def in_int8(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    """Whether a layer of an fp32 graph is to be quantised: it has weights, and is not left out."""
    return has_weights(node, model) and kind(node) not in LEFT_OUT


def has_weights(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    return node.input[1] in {tensor.name for tensor in model.graph.initializer}


def kind(node: onnx.NodeProto) -> str:
    """A layer's operator; a grouped convolution counts as an operator of its own."""
    return GROUPED if node.op_type == "Conv" and attributes(node).get("group", 1) > 1 else node.op_type


def facts(model: onnx.ModelProto) -> dict[str, Any]:
    """For the manifest: how many layers have weights, how many of them are in int8, and why the others are not."""
    dequantised = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    layers = [node for node in model.graph.node if node.op_type in LAYERS]
    int8 = [node for node in layers if node.input[1] in dequantised]
    others = Counter(kind(node) for node in layers if node not in int8 and has_weights(node, model))
    return {
        "by": "ONNX Runtime, QDQ",
        "layers": len(int8) + others.total(),
        "int8": len(int8),
        "left_out": {
            name: {"count": count, "reason": LEFT_OUT.get(name, "ONNX Runtime's quantiser leaves it in fp32")}
            for name, count in others.items()
        },
    }


def facts_of(model: onnx.ModelProto, settings: Settings) -> dict[str, Any]:
    """For the manifest: which layers are in int8, and the calibration volumes; empty in other precisions."""
    if settings.precision is not Precision.INT8 or settings.calibration is None:
        return {}
    return {"quantisation": facts(model), "calibration": settings.calibration.to_dict()}

"""Runs an ONNX graph with the rounding of its precision, on a machine that cannot run it or does not round it.

On a CPU, ONNX Runtime has no bfloat16 kernels, and computes an fp16 graph in fp32, which hides every overflow. So the
graph runs in fp32, and each value of a lower precision is rounded where it arises: an operator's output is cast to that
type and back. Only the order of sums inside an operator is not emulated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from smp3d_export.arrays import Outputs, Volume
from smp3d_export.onnxgraph.graph import copied, layers_of, tensor_types
from smp3d_export.onnxgraph.session import outputs_of, session_of

if TYPE_CHECKING:
    import onnx


class Emulation:
    """A graph in ONNX Runtime on the CPU. Call it with an image to get its outputs by name."""

    def __init__(self, model: onnx.ModelProto, threads: int | None = None) -> None:
        self.session = session_of(rounding(model), threads)

    def __call__(self, image: Volume) -> Outputs:
        return outputs_of(self.session, image)


def rounding(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph of half or bfloat16 values as one of float32 values with the same rounding; others stay as they are."""
    from onnx import TensorProto, helper

    def rounded(exact: str, name: str, kind: int) -> list[onnx.NodeProto]:
        return [
            helper.make_node("Cast", [exact], [f"{name}.low"], to=kind),
            helper.make_node("Cast", [f"{name}.low"], [name], to=TensorProto.FLOAT),
        ]

    return in_single_precision(model, rounded)


def overflowing(model: onnx.ModelProto, image: Volume, threads: int | None = None) -> list[str]:
    """The layers of an fp16 graph that read or give values that fp16 cannot hold, in the graph's order.

    The values are computed in fp32: after the first overflow, the fp16 graph has no finite values.
    """
    from onnx import TensorProto, helper

    largest: dict[str, str] = {}

    def watched(exact: str, name: str, kind: int) -> list[onnx.NodeProto]:
        largest[f"{name}.largest"] = name
        return [
            helper.make_node("Identity", [exact], [name]),
            helper.make_node("Abs", [exact], [f"{name}.absolute"]),
            helper.make_node("ReduceMax", [f"{name}.absolute"], [f"{name}.largest"], keepdims=0),
        ]

    twin = in_single_precision(model, watched)
    if not largest:
        return []
    del twin.graph.output[:]
    twin.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in largest)
    found = outputs_of(session_of(twin, threads), image)
    with np.errstate(over="ignore"):
        too_large = {largest[name] for name, value in found.items() if not np.isfinite(value.astype(np.float16))}
    layers, names = layers_of(model), []
    for node in model.graph.node:
        if node.op_type != "Cast" and too_large.intersection((*node.input, *node.output)):
            names.append(layers.get(node.output[0], node.name))
    return list(dict.fromkeys(names))


def in_single_precision(
    model: onnx.ModelProto, made: Callable[[str, str, int], list[onnx.NodeProto]]
) -> onnx.ModelProto:
    """A graph with its half or bfloat16 values in float32; others stay as they are, as does a graph without any.

    `made` gives the nodes that make each of them, by its name and its type in the graph, from what was computed.
    """
    import onnx
    from onnx import TensorProto, numpy_helper

    low = (TensorProto.FLOAT16, TensorProto.BFLOAT16)

    def single(tensor: onnx.TensorProto) -> onnx.TensorProto:
        if tensor.data_type not in low:
            return tensor
        return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)

    types = tensor_types(model)
    if not {*low}.intersection(types.values()):
        return model
    twin = copied(model, map(single, model.graph.initializer))
    nodes = []
    for node in twin.graph.node:
        lowered = [name for name in node.output if types.get(name) in low]
        for number, name in enumerate(node.output):
            if name in lowered:
                node.output[number] = f"{name}.exact"
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in low:
                attribute.i = TensorProto.FLOAT
            if attribute.HasField("t") and attribute.t.data_type in low:
                values = numpy_helper.to_array(attribute.t).astype(np.float32)
                attribute.t.CopyFrom(numpy_helper.from_array(values, attribute.t.name))
        nodes.append(node)
        for name in lowered:
            nodes += made(f"{name}.exact", name, types[name])
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del twin.graph.node[:]
    del twin.graph.value_info[:]
    twin.graph.node.extend(copies)
    return twin

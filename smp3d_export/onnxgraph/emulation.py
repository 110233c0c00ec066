"""Runs an ONNX graph with the rounding of its precision, for an artifact that cannot run here or is not rounded here.

ONNX Runtime has no bfloat16 kernels for a CPU, and computes a half-precision graph in fp32 there, which hides every
overflow. So the graph is run in fp32 with each value of a lower precision rounded to it where it arises: an
operator's output goes to that type and back. What is left out is the order of sums inside one operator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from smp3d_export.arrays import Outputs, Volume
from smp3d_export.onnxgraph.graph import tensor_types
from smp3d_export.onnxgraph.session import outputs_of, session_of

if TYPE_CHECKING:
    import onnx


class Emulation:
    """A graph in ONNX Runtime on the CPU; call it with an image to have its outputs by name."""

    def __init__(self, model: onnx.ModelProto, threads: int | None = None) -> None:
        self.session = session_of(rounding(model), threads)

    def __call__(self, image: Volume) -> Outputs:
        return outputs_of(self.session, image)


def rounding(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph of half or bfloat16 values as one of float32 values with the same rounding; others stay as they are."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    low = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    types = tensor_types(model)
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    for tensor in twin.graph.initializer:
        if tensor.data_type in low:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    nodes = []
    for node in twin.graph.node:
        rounded = []
        for number, name in enumerate(node.output):
            if types.get(name) in low:
                node.output[number] = f"{name}.exact"
                rounded.append((name, types[name]))
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in low:
                attribute.i = TensorProto.FLOAT
            if attribute.HasField("t") and attribute.t.data_type in low:
                values = numpy_helper.to_array(attribute.t).astype(np.float32)
                attribute.t.CopyFrom(numpy_helper.from_array(values, attribute.t.name))
        nodes.append(node)
        for name, kind in rounded:
            nodes.append(helper.make_node("Cast", [f"{name}.exact"], [f"{name}.low"], to=kind))
            nodes.append(helper.make_node("Cast", [f"{name}.low"], [name], to=TensorProto.FLOAT))
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del twin.graph.node[:]
    del twin.graph.value_info[:]
    twin.graph.node.extend(copies)
    return twin

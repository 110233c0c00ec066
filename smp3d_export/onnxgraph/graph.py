"""ONNX graphs: write them, infer shapes and types, keep parts in fp32.

Imports no torch.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from smp3d_export.contract import Shape

if TYPE_CHECKING:
    import onnx

# A protobuf message cannot be larger than 2 GB. Some room is left for everything but weights.
MESSAGE_LIMIT = 2**31 - 2**24
SMALL = 1024  # bytes; a larger tensor is not a list of sizes


def save(model: onnx.ModelProto, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a graph weight by weight. Serialising it whole would take the memory of all weights again.

    A graph over 2 GB keeps its weights in `NAME.data` beside it. The graph itself stays as it is.

    Args:
        metadata: written into the file, in addition to the graph's own.
    """
    from onnx import GraphProto, ModelProto, helper

    head = bare(model, "graph")
    if metadata:
        own = {entry.key: entry.value for entry in model.metadata_props}
        helper.set_model_props(head, {**own, **metadata})
    graph = bare(model.graph, "initializer").SerializeToString()
    weights = list(model.graph.initializer)
    if too_large(model):
        with path.with_name(f"{path.name}.data").open("wb") as data:
            weights = [external(tensor, data) for tensor in weights]
    sizes = [sum(map(len, serialised(tensor))) for tensor in weights]
    frames = [framed(GraphProto.INITIALIZER_FIELD_NUMBER, size) for size in sizes]
    size = len(graph) + sum(map(len, frames)) + sum(sizes)
    with path.open("wb") as file:
        file.write(head.SerializeToString() + framed(ModelProto.GRAPH_FIELD_NUMBER, size) + graph)
        for frame, tensor in zip(frames, weights, strict=True):
            file.writelines((frame, *serialised(tensor)))


def external(tensor: onnx.TensorProto, data: BinaryIO) -> onnx.TensorProto:
    """A weight whose values go to a file. A small one stays as it is, because shape inference reads it."""
    from onnx import TensorProto

    if len(tensor.raw_data) <= SMALL:
        return tensor
    head = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    head.data_location = TensorProto.EXTERNAL
    where = {"location": Path(data.name).name, "offset": data.tell(), "length": len(tensor.raw_data)}
    for key, value in where.items():
        head.external_data.add(key=key, value=str(value))
    data.write(tensor.raw_data)
    return head


def serialised(tensor: onnx.TensorProto) -> tuple[bytes, ...]:
    """A serialised weight in pieces, the last of which are its own values: protobuf would copy them three times."""
    from onnx import TensorProto

    values = tensor.raw_data
    if not values:
        return (tensor.SerializeToString(),)
    head = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    return head.SerializeToString(), framed(TensorProto.RAW_DATA_FIELD_NUMBER, len(values)), values


def bare(message: Any, without: str) -> Any:
    """A copy of a protobuf message without one of its fields."""
    copy = type(message)()
    for part, value in message.ListFields():
        if part.name == without:
            continue
        if hasattr(value, "extend"):
            getattr(copy, part.name).extend(value)
        elif hasattr(value, "CopyFrom"):
            getattr(copy, part.name).CopyFrom(value)
        else:
            setattr(copy, part.name, value)
    return copy


def copied(model: onnx.ModelProto, weights: Iterable[onnx.TensorProto] | None = None) -> onnx.ModelProto:
    """A copy of a graph, with other weights if they are given.

    It is copied weight by weight: some versions of protobuf copy a message by serialising it, up to 2 GB.
    """
    copy = bare(model, "graph")
    copy.graph.CopyFrom(bare(model.graph, "initializer"))
    copy.graph.initializer.extend(model.graph.initializer if weights is None else weights)
    return copy


def framed(number: int, size: int) -> bytes:
    """The bytes before a field that is a message: its tag, and its length in groups of 7 bits."""
    out = bytearray([number << 3 | 2])
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    return bytes([*out, size])


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes by name, as Python values."""
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def too_large(model: onnx.ModelProto) -> bool:
    """Whether a graph is too large for one protobuf message, so that its weights must go to a separate file.

    The weights' shapes decide: asking protobuf for the size would serialise the graph.
    """
    from onnx.helper import tensor_dtype_to_np_dtype

    weights = model.graph.initializer
    return sum(prod(t.dims) * tensor_dtype_to_np_dtype(t.data_type).itemsize for t in weights) > MESSAGE_LIMIT


@contextmanager
def in_files(model: onnx.ModelProto) -> Iterator[Path]:
    """A graph as a temporary file, with its weights in a second file if they are over 2 GB."""
    # A reader may still read from the files. Linux keeps them for it; Windows cannot delete them.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "model.onnx"
        save(model, file)
        yield file


def tensor_shapes(model: onnx.ModelProto, shape: Shape) -> dict[str, tuple[int, ...]]:
    """The shape of every activation of a graph for an input shape. Unknown shapes are left out."""
    import onnx

    sized = without_weights(model)
    for dim, size in zip(sized.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
        dim.dim_value = size
    for value in sized.graph.output:  # shape inference would keep named axes
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    inferred = onnx.shape_inference.infer_shapes(sized, data_prop=True).graph
    shapes = {}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
    return shapes


def tensor_types(model: onnx.ModelProto) -> dict[str, int]:
    """The type, as ONNX's number, of every activation whose type is known."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(without_weights(model)).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy for shape inference, which needs the types of large weights but is slowed down by their values."""
    from onnx import TensorProto

    def head(tensor: onnx.TensorProto) -> onnx.TensorProto:
        return TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)

    weights = model.graph.initializer
    return copied(model, (tensor if len(tensor.raw_data) <= SMALL else head(tensor) for tensor in weights))


def layers_of(model: onnx.ModelProto) -> dict[str, str]:
    """The layer of every value, as a module name of the network, like `program.graph.layers_of`.

    It is the layer of the weights that the value is computed with; without weights, the layer of its input.
    """
    weights = {tensor.name: tensor.name.rpartition(".")[0] for tensor in model.graph.initializer}
    layers: dict[str, str] = {}
    for node in model.graph.node:
        own = [weights[name] for name in node.input if weights.get(name)]
        fed = [layers[name] for name in node.input if name in layers]
        if own or fed:
            layers |= dict.fromkeys(node.output, (own or fed)[0])
    return layers


def activation_bytes(model: onnx.ModelProto, shape: Shape) -> int:
    """The most bytes that float32 activations take at once, by the lifetime of every tensor."""
    shapes = tensor_shapes(model, shape)
    last = {name: number for number, node in enumerate(model.graph.node) for name in node.input}
    live: dict[str, int] = {}
    peak = 0
    for number, node in enumerate(model.graph.node):
        live |= {name: 4 * prod(shapes[name]) for name in node.output if name in shapes}
        peak = max(peak, sum(live.values()))
        for name in node.input:
            if last[name] == number:
                live.pop(name, None)
    return peak


def in_fp32(model: onnx.ModelProto, operators: Collection[str]) -> tuple[onnx.ModelProto, dict[str, int]]:
    """A low-precision graph with some of its operators in fp32 between casts, and how many of each."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    types = tensor_types(model) if operators else {}
    low = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    chosen = {node.output[0] for node in model.graph.node if node.op_type in operators}
    chosen = {name for name in chosen if types.get(name) in low}
    if not chosen:
        return model, {}
    wide = copied(model, ())
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    cast: set[str] = set()
    nodes = []
    for node in wide.graph.node:
        if node.output[0] not in chosen:
            nodes.append(node)
            continue
        for number, name in enumerate(node.input):
            node.input[number] = f"{name}.fp32"
            if name in weights:
                values = numpy_helper.to_array(weights[name]).astype("float32")
                weights[f"{name}.fp32"] = numpy_helper.from_array(values, f"{name}.fp32")
            elif name not in cast:
                nodes.append(helper.make_node("Cast", [name], [f"{name}.fp32"], to=TensorProto.FLOAT))
                cast.add(name)
        output, node.output[0] = node.output[0], f"{node.output[0]}.fp32"
        nodes += [node, helper.make_node("Cast", [node.output[0]], [output], to=types[output])]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    used = {name for node in copies for name in node.input}
    del wide.graph.node[:]
    wide.graph.node.extend(copies)
    wide.graph.initializer.extend(tensor for name, tensor in weights.items() if name in used)
    return wide, dict(Counter(node.op_type for node in model.graph.node if node.output[0] in chosen))

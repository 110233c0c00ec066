"""ONNX graph -> the same graph in an older operator set, for TensorRT 8, Jetson and other old runtimes.

PyTorch's exporter starts at 18. ONNX's own converter cannot lower `Relu` from 14 or `Split` from 18, and writes a
`ReduceMean` that its checker refuses. So a table lowers the few operators of the networks here: most only changed the
types that they admit, some got attributes that are at their defaults, and some are decomposed. Any other operator is
refused by name. The checker compares every node with the schema of the older set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from smp3d_export.errors import ExportError, UsageError
from smp3d_export.onnxgraph.graph import attributes

if TYPE_CHECKING:
    import onnx

EXPORTED = range(18, 26)
"""What PyTorch's exporter can write."""
OLDEST = 13


def check_opset(opset: int) -> None:
    """Refuse an operator set that cannot be written.

    Raises:
        UsageError: the message says which can.
    """
    import onnx

    newest = min(EXPORTED[-1], onnx.defs.onnx_opset_version())
    if opset not in range(OLDEST, newest + 1):
        raise UsageError(f"--opset is {opset}; it must be {OLDEST} to {newest}")


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a graph uses."""
    return next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def set_opset(model: onnx.ModelProto, opset: int) -> None:
    """Declare an operator set, and the oldest IR version that has it: old runtimes refuse a newer one."""
    from onnx import helper

    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", opset))
    model.ir_version = helper.find_min_ir_version_for(model.opset_import)


def lower_opset(model: onnx.ModelProto, opset: int) -> None:
    """Bring a graph down to an older operator set, in place.

    Raises:
        ExportError: an operator of the graph does not exist there in a form that computes the same.
    """
    import onnx

    rewriter = Rewriter(model, opset)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    del model.graph.node[:]
    for node in nodes:
        model.graph.node.extend(rewriter.rewritten(node))
    rewriter.drop_unused()
    del model.graph.value_info[:]
    set_opset(model, opset)


@dataclass
class Rewriter:
    """One pass over a graph; `constants` are its initializers."""

    model: onnx.ModelProto
    opset: int
    constants: dict[str, onnx.TensorProto] = field(init=False)
    numbers: Any = field(default_factory=count)

    def __post_init__(self) -> None:
        self.constants = {tensor.name: tensor for tensor in self.model.graph.initializer}

    def rewritten(self, node: onnx.NodeProto) -> Iterable[onnx.NodeProto]:
        """The nodes that replace a node.

        Raises:
            ExportError: the older set has no equivalent.
        """
        from onnx import defs

        since = defs.get_schema(node.op_type, self.model.opset_import[0].version).since_version
        if since <= self.opset:
            return [node]
        rule = RULES.get(node.op_type)
        made = rule(self, node) if rule is not None else None
        if made is None:
            raise ExportError(
                f"opset {self.opset} does not have {node.op_type} as this network uses it: use --opset "
                f"{max(since, self.opset + 1)} or more"
            )
        return made

    def value(self, name: str) -> np.ndarray[Any, Any] | None:
        """The value of a constant; None if it is computed."""
        from onnx import numpy_helper

        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def constant(self, value: Any) -> str:
        from onnx import numpy_helper

        name = f"opset/constant/{next(self.numbers)}"
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def drop_unused(self) -> None:
        """Forget constants that became attributes."""
        used = {name for node in self.model.graph.node for name in node.input}
        kept = [tensor for tensor in self.model.graph.initializer if tensor.name in used]
        if len(kept) < len(self.model.graph.initializer):
            del self.model.graph.initializer[:]
            self.model.graph.initializer.extend(kept)


Rule = Callable[[Rewriter, "onnx.NodeProto"], "list[onnx.NodeProto] | None"]


def only_types(rewriter: Rewriter, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Newer versions admit more types, and compute the same."""
    return [node]


def without(**defaults: Any) -> Rule:
    """Newer versions have more attributes, which change nothing at these values."""

    def rule(rewriter: Rewriter, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        found = attributes(node)
        for name, default in defaults.items():
            value = found.get(name, default)
            if (value.decode() if isinstance(value, bytes) else value) != default:
                return None
        kept = [attribute for attribute in node.attribute if attribute.name not in defaults]
        del node.attribute[:]
        node.attribute.extend(kept)
        return [node]

    return rule


def shape(rewriter: Rewriter, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Version 15 can take a part of the shape; before, that is a slice of the whole shape."""
    from onnx import helper

    found = attributes(node)
    start, end = found.get("start", 0), found.get("end")
    if (start, end) == (0, None):
        return [helper.make_node("Shape", list(node.input), list(node.output), name=node.name)]
    whole, last = f"{node.output[0]}/whole", np.iinfo(np.int64).max if end is None else end
    bounds = [rewriter.constant(np.array([value], np.int64)) for value in (start, last, 0)]
    return [
        helper.make_node("Shape", list(node.input), [whole], name=node.name),
        helper.make_node("Slice", [whole, *bounds], list(node.output), name=f"{node.output[0]}/part"),
    ]


def reshape(rewriter: Rewriter, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """Version 14 can request an axis of size 0 instead of copying the input's. No contract has sizes of 0."""
    found, sizes = attributes(node), rewriter.value(node.input[1])
    if found.get("allowzero", 0) and sizes is not None and not sizes.all():
        return None
    return without(allowzero=found.get("allowzero", 0))(rewriter, node)


def split(rewriter: Rewriter, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Version 18 states the number of parts; before, it was the number of outputs, and the parts were equal."""
    kept = [attribute for attribute in node.attribute if attribute.name != "num_outputs"]
    del node.attribute[:]
    node.attribute.extend(kept)
    return [node]


def reduction(rewriter: Rewriter, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """Version 18 takes the axes as an input; before, they were an attribute."""
    from onnx import helper

    found = attributes(node)
    if found.get("noop_with_empty_axes", 0) or len(node.input) < 2:
        return None
    axes = rewriter.value(node.input[1])
    if axes is None:
        return None
    return [
        helper.make_node(
            node.op_type,
            [node.input[0]],
            list(node.output),
            name=node.name,
            axes=[int(axis) for axis in axes],
            keepdims=found.get("keepdims", 1),
        )
    ]


def layer_norm(rewriter: Rewriter, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
    """One operator since version 17: (x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis."""
    from onnx import helper

    found = attributes(node)
    if found.get("axis", -1) != -1 or len([name for name in node.output if name]) != 1:
        return None
    image, scale, *bias = node.input
    made: list[onnx.NodeProto] = []

    def call(operator: str, *inputs: str, output: str | None = None, **options: Any) -> str:
        name = output or f"{node.name or node.output[0]}/{len(made)}"
        made.append(helper.make_node(operator, inputs, [name], name=name, **options))
        return name

    centred = call("Sub", image, call("ReduceMean", image, axes=[-1], keepdims=1))
    variance = call("ReduceMean", call("Mul", centred, centred), axes=[-1], keepdims=1)
    epsilon = rewriter.constant(np.float32(found.get("epsilon", 1e-5)))
    deviation = call("Sqrt", call("Add", variance, epsilon))
    last = node.output[0]
    scaled = call("Mul", call("Div", centred, deviation), scale, output=None if bias else last)
    if bias:
        call("Add", scaled, bias[0], output=last)
    return made


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("Relu", "Add", "Sub", "Mul", "Div", "Identity", "Less", "Where", "PRelu", "LeakyRelu"), only_types
    ),
    **dict.fromkeys(("CumSum", "LessOrEqual", "GreaterOrEqual", "Equal", "Sign"), only_types),
    "BatchNormalization": without(training_mode=0),
    "Reshape": reshape,
    "Shape": shape,
    "Cast": without(saturate=1, round_mode="up"),
    "Resize": without(antialias=0, keep_aspect_ratio_policy="stretch", axes=None),
    "Pad": lambda rewriter, node: [node] if len(node.input) < 4 or not node.input[3] else None,
    "AveragePool": without(dilations=None),
    "Split": split,
    **dict.fromkeys(("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2"), reduction),
    "LayerNormalization": layer_norm,
}

"""Captured program -> the same program in fp16 or bf16, with fp32 inputs and outputs, and fp32 inside where needed.

Four kinds of operators stay in fp32: those that lose accuracy in low precision (`FP32_OPERATORS`), those whose values
overflow half precision when the network is run, those that the user names, and, if PyTorch is to run the program on
this processor, those that it computes wrongly. Casts are inserted between the two precisions. Operators that only move
values, or compute sizes, keep the type of their input.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import prod

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from smp3d_export.arrays import Volume, volume
from smp3d_export.errors import ExportError, UsageError
from smp3d_export.precision import Precision
from smp3d_export.program.capture import Captured, capture
from smp3d_export.program.graph import (
    add_constant,
    arguments_of,
    aten,
    constant,
    device_of,
    drop_unused,
    graph_module,
    is_call,
    layers_of,
    operator,
)
from smp3d_export.program.probe import DTYPES, wrong

FP32_OPERATORS = {
    "softmax": "rounding its exponentials changes labels",
    "layer_norm": "it sums squares",
    "group_norm": "it sums squares",
    "instance_norm": "it sums squares",
    "batch_norm": "it subtracts nearly equal numbers",
    "adaptive_avg_pool3d": "it sums a whole volume",
    "mean": "it sums a whole volume",
    "sum": "it sums a whole volume",
}
"""Operators that stay in fp32, and why."""

# fmt: off
MOVES = frozenset((
    "chunk", "clone", "contiguous", "expand", "expand_as", "flatten", "getitem", "movedim", "numpy_T", "permute",
    "reshape", "select", "slice", "split", "squeeze", "transpose", "unflatten", "unsqueeze", "view",
))
# fmt: on
"""Operators that only move values: they keep the type of their first input."""

# The largest fp16 value. Sums inside an operator and inputs other than the one that was run need some headroom.
HALF_MAXIMUM = 65504
LIMIT = HALF_MAXIMUM / 8


def lowered(
    captured: Captured,
    precision: Precision,
    keep_fp32: tuple[str, ...] = (),
    samples: Sequence[Volume] = (),
    *,
    probed: bool = False,
) -> Captured:
    """A program in the requested precision; for fp32, tf32 and int8 it is returned as it is.

    What overflows half precision on a seeded volume, or on one of the samples (N, C, H, W, D), stays in fp32. `probed`
    says that PyTorch will run the program on this CPU: what it computes wrongly in the precision stays in fp32 too.

    Raises:
        UsageError: a pattern in `keep_fp32` matches nothing in the network.
        ExportError: everything would have to stay in fp32.
    """
    if precision not in DTYPES:
        return captured
    module = graph_module(captured)
    make_functional(module)
    decompose_attention(module)
    layers = layers_of(module)
    check_patterns(keep_fp32, layers)
    shape = min(captured.contract.example(), captured.contract.opt, key=prod)
    images = (volume(shape, seed=0), *samples)
    largest = largest_values(module, images) if precision is Precision.FP16 else {}
    faults = wrong(module, captured.contract, precision) if probed else {}
    kept = Lowering(module, DTYPES[precision], layers, keep_fp32, largest, faults).run()
    program = capture(module, captured.contract).program
    return replace(captured, program=program, precision=precision, kept=kept)


@dataclass(frozen=True)
class Lowering:
    """One pass over a graph, in place.

    `largest` has the largest absolute value of each node, if they matter; `faults` the nodes that this processor
    computes wrongly, with the reason.
    """

    module: GraphModule
    dtype: torch.dtype
    layers: Mapping[Node, str]
    keep: tuple[str, ...]
    largest: Mapping[Node, float]
    faults: Mapping[Node, str]

    def run(self) -> dict[str, str]:
        """Choose every node's type and insert casts between types; returns what stays in fp32, with the reason."""
        graph = self.module.graph
        types: dict[Node, torch.dtype] = {}
        values: set[Node] = set()  # nodes computed from the image; nodes computed from sizes keep their type
        casts: dict[tuple[Node, torch.dtype], Node] = {}
        kept: dict[str, str] = {}

        def cast_inputs(node: Node, sources: Iterable[Node], dtype: torch.dtype) -> None:
            for source in sources:
                if types[source] == dtype:
                    continue
                if (source, dtype) not in casts:
                    casts[source, dtype] = self.cast(source, dtype)
                node.replace_input_with(source, casts[source, dtype])

        for node in list(graph.nodes):
            if operator(node) == "_assert_tensor_metadata":  # it would insist on the traced type
                graph.erase_node(node)
                continue
            sources = [source for source in node.all_input_nodes if source in types]
            if node.op == "output":
                cast_inputs(node, sources, torch.float32)
            if not is_float(node):
                continue
            if node.op != "get_attr" and (node.op == "placeholder" or values.intersection(sources)):
                values.add(node)
            if node not in values:
                types[node] = torch.float32
            elif operator(node) in MOVES:
                types[node] = types[sources[0]]
            elif node.op == "placeholder":
                types[node] = torch.float32
            else:
                reason = self.reason_to_keep(node)
                if reason:
                    kept[f"{self.layers.get(node, 'image')} {operator(node)}"] = reason
                types[node] = torch.float32 if reason else self.dtype
                cast_inputs(node, sources, types[node])
        if kept and all(types[node] == torch.float32 for node in values):
            name, reason = next(iter(kept.items()))
            raise ExportError(
                f"everything would stay in fp32, from {name} on ({reason}): use --precision fp32; for large values "
                "bf16, or normalise the volumes (--normalize)"
            )
        graph.eliminate_dead_code()
        drop_unused(self.module)
        graph.lint()
        self.module.recompile()
        return kept

    def cast(self, source: Node, dtype: torch.dtype) -> Node:
        """A node with the value of `source` in another type; a weight is converted and stored again."""
        weight = constant(self.module, source)
        with self.module.graph.inserting_after(source):
            if weight is not None:
                return add_constant(self.module, weight.to(dtype), source)
            return self.module.graph.call_function(aten.to.dtype, (source, dtype))

    def reason_to_keep(self, node: Node) -> str | None:
        """Why a node stays in fp32; None if it does not."""
        for pattern in self.keep:
            if fits(pattern, self.layers.get(node, ""), operator(node)):
                return f"--keep-fp32 {pattern}"
        if operator(node) in FP32_OPERATORS:
            return FP32_OPERATORS[operator(node)]
        if node in self.faults:
            return self.faults[node]
        worst = max((self.largest.get(n, 0.0) for n in (node, *node.all_input_nodes)), default=0.0)
        return f"a value of {worst:.2g} is too close to {HALF_MAXIMUM}" if worst > LIMIT else None


def is_float(node: Node) -> bool:
    value = node.meta.get("val")
    if isinstance(value, list | tuple):
        return all(isinstance(v, Tensor) and v.dtype == torch.float32 for v in value)
    return isinstance(value, Tensor) and value.dtype == torch.float32


def fits(pattern: str, layer: str, name: str) -> bool:
    """Whether a `--keep-fp32` pattern matches the operator `name`, or `layer`, or a layer that contains it."""
    return fnmatchcase(name, pattern) or fnmatchcase(layer, pattern) or fnmatchcase(layer, f"{pattern}.*")


def check_patterns(keep: tuple[str, ...], layers: Mapping[Node, str]) -> None:
    """Refuse a pattern that matches nothing.

    Raises:
        UsageError: it lists the layers and operators.
    """
    for pattern in keep:
        if not any(fits(pattern, layer, operator(node)) for node, layer in layers.items()):
            names = list(dict.fromkeys(layers.values()))
            shown = names if len(names) < 7 else [*names[:3], "...", *names[-3:]]
            operators = sorted({operator(node) for node in layers if is_float(node)})
            raise UsageError(
                f"--keep-fp32 {pattern!r} matches no layer and no operator. Layers: {', '.join(shown)}; operators: "
                f"{', '.join(operators)}"
            )


def largest_values(module: GraphModule, images: Iterable[Volume]) -> dict[Node, float]:
    """The largest absolute value of every float node of a graph, weights included, on some volumes."""
    largest: dict[Node, float] = {}

    class Watch(Interpreter):
        def run_node(self, n: Node) -> object:
            result = super().run_node(n)
            for value in result if isinstance(result, list | tuple) else (result,):
                if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
                    largest[n] = max(largest.get(n, 0.0), float(value.abs().max()))
            return result

    with torch.inference_mode():
        for image in images:
            Watch(module, graph=module.graph).run(torch.from_numpy(image).to(device_of(module)))
    return largest


def make_functional(module: GraphModule) -> None:
    """Replace in-place operators, which would change a shared cast for all its users."""
    for node in module.graph.nodes:
        name = operator(node)
        if node.op == "call_function" and name.endswith("_") and not name.endswith("__"):
            node.target = getattr(getattr(aten, name[:-1]), node.target._overloadname)


def decompose_attention(module: GraphModule) -> None:
    """Split softmax(q k' / sqrt(d)) v into its three steps, so that only the softmax stays in fp32.

    It handles attention over (N, heads, tokens, d) without mask and dropout, as in the encoders here. Other attention
    is left alone.
    """
    graph = module.graph
    for node in list(graph.nodes):
        arguments = arguments_of(node)
        if not is_call(node, aten.scaled_dot_product_attention.default) or len(arguments) != 3 or node.kwargs:
            continue
        query, key, value = arguments[0], arguments[1], arguments[2]
        layer = node.meta
        scale = query.meta["val"].shape[-1] ** -0.5
        with graph.inserting_before(node):
            steps = [graph.call_function(aten.transpose.int, (key, -2, -1))]
            scaled = graph.call_function(aten.mul.Tensor, (query, scale))
            steps += [scaled, graph.call_function(aten.matmul.default, (scaled, steps[0]))]
            steps.append(graph.call_function(aten.softmax.int, (steps[-1], -1)))
            steps.append(graph.call_function(aten.matmul.default, (steps[-1], value)))
        for step in steps:
            step.meta = dict(layer)  # only read to see that the values are floats, which holds for every step
        node.replace_all_uses_with(steps[-1])
        graph.erase_node(node)

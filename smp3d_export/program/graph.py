"""Helpers for editing a captured graph: its module, nodes and weights."""

from __future__ import annotations

from itertools import count
from operator import floordiv, mul
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

if TYPE_CHECKING:
    from smp3d_export.program.capture import Captured

aten = torch.ops.aten


def graph_module(captured: Captured) -> GraphModule:
    """The program as a module whose graph can be edited, without size guards: the contract checks sizes."""
    module = captured.program.module(check_guards=False)
    assert isinstance(module, GraphModule)
    return module


def device_of(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def is_call(node: Any, operator: Any) -> bool:
    return isinstance(node, Node) and node.op == "call_function" and node.target is operator


def arguments_of(node: Node) -> tuple[Any, ...]:
    """The positional arguments of a node. (The type that `torch.fx` gives them is too wide to be useful.)"""
    return tuple(node.args)


def constant(module: GraphModule, node: Node | None) -> Tensor | None:
    """The parameter or buffer that a node reads; None for any other node."""
    if node is None or node.op != "get_attr":
        return None
    value: Any = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value


def divides(number: int, node: Node, axis: int) -> bool:
    """Whether `number` divides the size of a captured node's value along an axis at every shape of the contract."""
    value = node.meta.get("val")
    if value is None:
        return False
    size = value.shape[axis]
    if isinstance(size, int):
        return size % number == 0
    return (size.node.expr / number).expand().is_integer is True  # sizes are integer symbols times the multiple


def size_of(node: Node, axis: int, over: int = 1) -> Node | int:
    """The size of a captured node's value along an axis, divided by `over`. The caller sets the insertion point.

    A dynamic size is a node. If it is a rational multiple of a size of the graph's input, it is computed from the
    input: a backend does not fuse an inner layer with the next one if the graph reads the size of its output.
    """
    size = node.meta["val"].shape[axis]
    if isinstance(size, int):
        return size // over
    call = node.graph.call_function
    for source in node.graph.find_nodes(op="placeholder"):
        for number, whole in enumerate(source.meta["val"].shape):
            part = size.node.expr / whole.node.expr / over if not isinstance(whole, int) else None
            if part is not None and part.is_Rational:
                found = call(aten.sym_size.int, (source, number))
                found = found if part.p == 1 else call(mul, (found, int(part.p)))
                return found if part.q == 1 else call(floordiv, (found, int(part.q)))
    found = call(aten.sym_size.int, (node, axis))
    return found if over == 1 else call(floordiv, (found, over))


def add_constant(module: GraphModule, tensor: Tensor, of: Node, leaf: str | None = None) -> Node:
    """A node for a new weight in the same layer as the weight it derives from, so the layer keeps its name.

    It is named like the old weight, or `leaf`, plus a number. The caller sets the insertion point.
    """
    layer, _, old = str(of.target).rpartition(".")
    holder = module.get_submodule(layer)
    stem = leaf or old.partition("__")[0]
    name = next(name for name in (f"{stem}__{number}" for number in count(1)) if not hasattr(holder, name))
    holder.register_parameter(name, nn.Parameter(tensor.contiguous(), requires_grad=False))
    return module.graph.get_attr(f"{layer}.{name}" if layer else name)


def drop_unused(module: GraphModule) -> None:
    """Delete the weights that no node reads any more."""
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for layer, holder in module.named_modules():
        for tensors in (holder._parameters, holder._buffers):
            for name in [name for name in tensors if f"{layer}.{name}".lstrip(".") not in used]:
                del tensors[name]


def operator(node: Node) -> str:
    """The name of a node's operator as users write it: `conv3d`, `softmax`."""
    packet = getattr(node.target, "overloadpacket", node.target)
    return getattr(packet, "__name__", str(packet))


def layers_of(module: GraphModule) -> dict[Node, str]:
    """The layer of every node, named after the network's modules.

    A node belongs to the layer of its weights, or without weights to the layer that feeds it.
    """
    layers: dict[Node, str] = {}
    for node in module.graph.nodes:
        own = [str(source.target).rpartition(".")[0] for source in node.all_input_nodes if source.op == "get_attr"]
        fed = [layers[source] for source in node.all_input_nodes if source in layers]
        if own or fed:
            layers[node] = (own or fed)[0]
    return layers

"""Captured program -> the same program in channels-last-3d, which is faster for PyTorch's CPU convolutions.

The image is converted on entry and the outputs on exit; in between every operator keeps the layout of its input. Values
do not change.

PyTorch has no channels-last layout for maps with an axis split in two, (N, C, H / k, k, W, D), and its compiler treats
a map made from several of them as channels-last when a convolution does not. So such maps are computed with the
channels as the last axis.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from smp3d_export.program.capture import Captured
from smp3d_export.program.graph import arguments_of, aten, constant, graph_module, is_call, operator

CONVOLUTIONS = ("conv3d", "conv_transpose3d")
VIEWS = (aten.view.default, aten.reshape.default)
JOINS = (aten.stack.default, aten.cat.default)


def channels_last(captured: Captured) -> GraphModule:
    """The program as a module whose convolutions have channels-last-3d weights and outputs."""
    module = graph_module(captured)
    graph = module.graph
    for node in list(graph.nodes):
        if node.op == "placeholder":
            with graph.inserting_after(node):
                converted = graph.call_function(
                    aten.contiguous.default, (node,), {"memory_format": torch.channels_last_3d}
                )
            node.replace_all_uses_with(converted, delete_user_cb=lambda user, new=converted: user is not new)
        elif node.op == "output":
            for source in node.all_input_nodes:
                with graph.inserting_before(node):
                    plain = graph.call_function(aten.contiguous.default, (source,))
                node.replace_input_with(source, plain)
        elif operator(node) in CONVOLUTIONS:
            weight_node = arguments_of(node)[1]
            weight = constant(module, weight_node)
            if weight is not None:
                layer, _, name = str(weight_node.target).rpartition(".")
                converted = weight.detach().contiguous(memory_format=torch.channels_last_3d)
                setattr(module.get_submodule(layer), name, nn.Parameter(converted, requires_grad=False))
        elif node.op == "call_function" and 6 in map(dims, [*node.all_input_nodes, node]):
            move_channels(node)
    graph.lint()
    module.recompile()
    return module


def move_channels(node: Node) -> None:
    """Make an operator on maps with a split axis work on (N, H / k, k, W, D, C), unless it changes N or C."""
    call = node.graph.call_function
    target: Any = node.target
    source, *rest = arguments_of(node)
    axis = rest[0] if rest else 0
    if target in VIEWS:
        if {dims(source), dims(node)} != {5, 6} or source.meta["val"].shape[:2] != node.meta["val"].shape[:2]:
            return
        n, c, *sizes = rest[0]
        arguments = channels_to_end(source, node), (n, *sizes, c)
        target = aten.reshape.default
    elif target is aten.slice.Tensor and axis > 1:
        arguments = channels_to_end(source, node), axis - 1, *rest[1:]
    elif target in JOINS and axis > 1:
        arguments = [channels_to_end(part, node) for part in source], axis - 1
    else:
        return
    with node.graph.inserting_before(node):
        back = call(aten.permute.default, (call(target, arguments), channels_from_end(node)))
    back.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(back)
    node.graph.erase_node(node)


def channels_to_end(node: Node, before: Node) -> Node:
    """A map with the channels as the last axis."""
    if is_call(node, aten.permute.default) and arguments_of(node)[1] == channels_from_end(node):
        return arguments_of(node)[0]
    with node.graph.inserting_before(before):
        return node.graph.call_function(aten.permute.default, (node, (0, *range(2, dims(node)), 1)))


def channels_from_end(node: Node) -> tuple[int, ...]:
    """The permutation that moves the channels from the last axis back to the second."""
    return (0, dims(node) - 1, *range(1, dims(node) - 1))


def dims(node: Node) -> int:
    value = node.meta.get("val")
    return value.dim() if isinstance(value, torch.Tensor) else 0

"""Captured program -> the same in channels-last-3d, which PyTorch's kernels for convolutions prefer on a processor.

The image is laid out anew at the entrance and the outputs at the exit; in between every operator keeps the layout of
what it is given. Values stay as they are.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.fx import GraphModule

from smp3d_export.capture import Captured
from smp3d_export.graph import arguments_of, aten, constant, graph_module, operator

CONVOLUTIONS = ("conv3d", "conv_transpose3d")


def channels_last(captured: Captured) -> GraphModule:
    """The program as a module whose weights of convolutions, and what they compute, are channels-last-3d."""
    module = graph_module(captured)
    graph = module.graph
    for node in list(graph.nodes):
        if node.op == "placeholder":
            with graph.inserting_after(node):
                laid_out = graph.call_function(
                    aten.contiguous.default, (node,), {"memory_format": torch.channels_last_3d}
                )
            node.replace_all_uses_with(laid_out, delete_user_cb=lambda user, new=laid_out: user is not new)
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
                laid_out = weight.detach().contiguous(memory_format=torch.channels_last_3d)
                setattr(module.get_submodule(layer), name, nn.Parameter(laid_out, requires_grad=False))
    graph.lint()
    module.recompile()
    return module

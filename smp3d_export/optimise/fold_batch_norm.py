"""A batch normalisation folds into the convolution before it.

    (conv(x, w) + b - mean) * s + beta = conv(x, w * s) + (b - mean) * s + beta,   s = gamma / sqrt(variance + eps)

with `s` for each output channel. Exact in inference, where mean and variance are constants.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from smp3d_export.graph import add_constant, arguments_of, aten, constant, is_call
from smp3d_export.optimise.rewrite import Conv, Miss, Rewrite, replace


@dataclass(frozen=True)
class Match:
    conv_node: Node
    conv: Conv
    weight: Tensor
    bias: Tensor


class FoldBatchNorm(Rewrite):
    name = "fold-batch-norm"

    def match(self, module: GraphModule, node: Node) -> Match | Miss | None:
        if not is_call(node, aten.batch_norm.default):
            return None
        conv_node, gamma, beta, mean, variance, training, _, epsilon = arguments_of(node)[:8]
        conv = Conv.of(conv_node)
        if conv is None:
            return Miss("it does not follow a convolution")
        if training:
            return Miss("it is in training mode")
        if len(conv_node.users) > 1:
            return Miss("the convolution has a second user")
        weight, bias = constant(module, conv.weight), constant(module, conv.bias)
        mean, variance = constant(module, mean), constant(module, variance)
        if weight is None or mean is None or variance is None:
            return Miss("its weights are not constants")
        scale = torch.rsqrt(variance.double() + epsilon)
        if (g := constant(module, gamma)) is not None:
            scale = scale * g.double()
        shift = ((bias.double() if bias is not None else 0.0) - mean.double()) * scale
        if (b := constant(module, beta)) is not None:
            shift = shift + b.double()
        scaled = weight.double() * scale.reshape(-1, 1, 1, 1, 1)
        return Match(conv_node, conv, scaled.to(weight.dtype), shift.to(weight.dtype))

    def apply(self, module: GraphModule, node: Node, match: Match) -> None:
        conv = match.conv
        with module.graph.inserting_before(match.conv_node):
            weight = add_constant(module, match.weight, conv.weight)
            bias = add_constant(module, match.bias, conv.weight, "bias")
            arguments = (conv.input, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
            new = module.graph.call_function(aten.conv3d.default, arguments)
        replace(node, new)
        module.graph.erase_node(match.conv_node)

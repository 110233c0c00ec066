"""A sum of convolutions of the same map becomes one convolution; so does a convolution plus a batch normalisation.

    conv(x, v) + conv(x, w) = conv(x, v + w)

with the smaller kernel padded with zeros. This holds for equal strides, groups and dilations if both reach equally far
beyond the map, that is if 2 * padding - dilation * (kernel - 1) is equal. A batch normalisation x * s + t is a
convolution with the 1³ kernel diag(s). MobileOne's blocks (Vasu et al., arXiv:2206.04040) are such sums.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, Node

from smp3d_export.optimise.rewrite import Conv, Miss, Rewrite, affine
from smp3d_export.optimise.rewrite import replace as put
from smp3d_export.program.graph import add_constant, arguments_of, aten, constant, is_call

UNIT = (1, 1, 1)


@dataclass(frozen=True)
class Match:
    conv: Conv
    """The convolution with the larger kernel."""
    weight: Tensor
    bias: Tensor


class ParallelConv(Rewrite):
    name = "parallel-conv"

    def match(self, module: GraphModule, node: Node) -> Match | Miss | None:
        if not is_call(node, aten.add.Tensor) or node.kwargs:
            return None
        first, second = arguments_of(node)
        pair = [part for part in (first, second) if isinstance(part, Node)]
        convs = [conv for part in pair if (conv := Conv.of(part)) is not None]
        if len(pair) < 2 or not convs or first is second:
            return None
        if len(convs) == 1:
            norm = pair[1] if Conv.of(pair[0]) is not None else pair[0]
            if not is_call(norm, aten.batch_norm.default):
                return None
            bare = normalisation(module, norm, convs[0])
            if bare is None:
                return Miss("the normalisation has another map, other channels or other strides")
            terms = [bare]
        else:
            terms = []
        for conv in convs:
            weight, bias = constant(module, conv.weight), constant(module, conv.bias)
            if weight is None:
                return Miss("its weights are not constants")
            wide = weight.double()
            terms.append((conv, wide, bias.double() if bias is not None else wide.new_zeros(wide.shape[0])))
        if any(len(part.users) > 1 for part in pair):
            return Miss("one of them has a second user")
        (a, v, b), (other, w, c) = sorted(terms, key=lambda term: -term[1][0, 0].numel())
        if not alike(a, v, other, w):
            return Miss("they have different maps, strides, groups, dilations or borders")
        margins = [(large - small) // 2 for large, small in zip(v.shape[2:], w.shape[2:], strict=True)]
        total = v + F.pad(w, [margin for margin in reversed(margins) for _ in range(2)])
        return Match(a, total, b + c)

    def apply(self, module: GraphModule, node: Node, match: Match) -> None:
        conv = match.conv
        with module.graph.inserting_before(node):
            like = constant(module, conv.weight)
            assert like is not None
            weight = add_constant(module, match.weight.to(like.dtype), conv.weight)
            bias = add_constant(module, match.bias.to(like.dtype), conv.weight, "bias")
            arguments = (conv.input, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
            new = module.graph.call_function(aten.conv3d.default, arguments)
        put(node, new)


def normalisation(module: GraphModule, node: Node, conv: Conv) -> tuple[Conv, Tensor, Tensor] | None:
    """A batch normalisation as a convolution with the groups of `conv`; None if it cannot be one."""
    norm, like = affine(module, node), constant(module, conv.weight)
    if norm is None or like is None or arguments_of(node)[0] is not conv.input:
        return None
    scale, shift = norm
    outputs, inputs = like.shape[:2]
    if len(scale) != outputs or inputs * conv.groups != outputs or tuple(conv.stride) != UNIT:
        return None
    weight = scale.new_zeros(outputs, inputs, 1, 1, 1)
    channels = torch.arange(outputs, device=weight.device)
    weight[channels, channels % inputs, 0, 0, 0] = scale
    return replace(conv, bias=None, padding=(0, 0, 0), dilation=UNIT), weight, shift


def alike(large: Conv, v: Tensor, small: Conv, w: Tensor) -> bool:
    """Whether the taps of the small kernel are the inner taps of the large one."""
    if large.input is not small.input or large.groups != small.groups or v.shape[:2] != w.shape[:2]:
        return False
    if tuple(large.stride) != tuple(small.stride):
        return False
    for axis in range(3):
        a, b = v.shape[2 + axis], w.shape[2 + axis]
        beyond = 2 * large.padding[axis] - large.dilation[axis] * (a - 1)
        if beyond != 2 * small.padding[axis] - small.dilation[axis] * (b - 1) or a < b or (a - b) % 2:
            return False
        if b > 1 and large.dilation[axis] != small.dilation[axis]:
            return False
    return True

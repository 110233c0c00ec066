"""A convolution over a concatenation becomes a sum of convolutions, one per part with its share of the weights.

    conv(cat(a, b), w) + c = conv(a, w[:, :A]) + (conv(b, w[:, A:]) + c)

This saves nothing by itself. It is done if a part is an upsampled map, which `UpsampleConv` then merges with its
convolution; all other parts stay together in one convolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from smp3d_export.optimise.rewrite import Conv, Miss, Rewrite, replace
from smp3d_export.optimise.upsample_conv import fitting_scale, is_upsampling
from smp3d_export.program.graph import add_constant, arguments_of, aten, constant, is_call


@dataclass(frozen=True)
class Match:
    conv: Conv
    weight: Tensor
    upsampled: tuple[tuple[Node, slice], ...]
    """The upsampled parts, each with its slice of the input channels."""
    rest: tuple[tuple[Node, slice], ...]


class ConcatConv(Rewrite):
    name = "concat-conv"

    def match(self, module: GraphModule, node: Node) -> Match | Miss | None:
        conv = Conv.of(node)
        if conv is None or not is_call(conv.input, aten.cat.default):
            return None
        parts, *axis = arguments_of(conv.input)
        if not any(is_upsampling(part) for part in parts):
            return None
        if axis != [1]:
            return Miss("the concatenation is not along the channels")
        if len(conv.input.users) > 1:
            return Miss("the concatenation has a second user")
        taken, rest, start = [], [], 0
        for part in parts:
            channels = part.meta["val"].shape[1]
            share = (part, slice(start, start + channels))
            start += channels
            fits = is_upsampling(part) and not isinstance(fitting_scale(module, conv, part), Miss)
            (taken if fits else rest).append(share)
        if not taken:
            return Miss("no upsampled part can be merged into the convolution")
        weight = constant(module, conv.weight)
        assert weight is not None
        return Match(conv, weight, tuple(taken), tuple(rest))

    def apply(self, module: GraphModule, node: Node, match: Match) -> None:
        graph = module.graph
        conv = match.conv
        with graph.inserting_before(node):
            terms = []
            if match.rest:
                nodes = [part for part, _ in match.rest]
                joined = nodes[0] if len(nodes) == 1 else graph.call_function(aten.cat.default, (nodes, 1))
                terms.append((joined, [share for _, share in match.rest]))
            terms += [(part, [share]) for part, share in match.upsampled]
            total: Node | None = None
            for source, shares in terms:
                weight = add_constant(module, channels_of(match.weight, shares), conv.weight)
                bias = conv.bias if total is None else None
                arguments = (source, weight, bias, conv.stride, conv.padding, conv.dilation)
                term = graph.call_function(aten.conv3d.default, arguments)
                total = term if total is None else graph.call_function(aten.add.Tensor, (total, term))
        assert total is not None
        replace(node, total)


def channels_of(weight: Tensor, shares: list[slice]) -> Tensor:
    """The part of a weight that belongs to some of the input channels."""
    return torch.cat([weight[:, share] for share in shares], dim=1)

"""A batch normalisation folds into the convolution or transposed convolution before it.

    (conv(x, w) + b) * s + t = conv(x, w * s) + b * s + t

with one `s` per output channel. Exact in inference, where mean and variance are constants. So is an instance
normalisation that keeps running statistics, which then computes the same from the same arguments.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.fx import GraphModule, Node

from smp3d_export.optimise.rewrite import Miss, Rewrite, affine, replace
from smp3d_export.program.graph import add_constant, arguments_of, aten, constant, is_call


@dataclass(frozen=True)
class Match:
    conv: Node
    weight: Tensor
    bias: Tensor
    transposed: bool


class FoldBatchNorm(Rewrite):
    name = "fold-batch-norm"

    def match(self, module: GraphModule, node: Node) -> Match | Miss | None:
        tracking = is_call(node, aten.instance_norm.default) and not arguments_of(node)[5]
        if not tracking and not is_call(node, aten.batch_norm.default):
            return None
        conv = arguments_of(node)[0]
        transposed = is_call(conv, aten.conv_transpose3d.input)
        if not transposed and not is_call(conv, aten.conv3d.default):
            return Miss("it does not follow a convolution")
        if len(conv.users) > 1:
            return Miss("the convolution has a second user")
        arguments = arguments_of(conv)
        weight, bias = (constant(module, argument) for argument in (*arguments, None)[1:3])
        norm = affine(module, node)
        if weight is None or norm is None:
            return Miss("its weights are not constants, or it is in training mode")
        scale, shift = norm
        if bias is not None:
            shift = shift + bias.double() * scale
        if transposed:
            scale = by_inputs(scale, weight, groups=arguments[6] if len(arguments) > 6 else 1)
        else:
            scale = scale[:, None]
        scaled = weight.double().mul_(scale[:, :, None, None, None])
        return Match(conv, scaled.to(weight.dtype), shift.to(weight.dtype), transposed)

    def apply(self, module: GraphModule, node: Node, match: Match) -> None:
        input, weight, *rest = arguments_of(match.conv)
        with module.graph.inserting_before(match.conv):
            scaled = add_constant(module, match.weight, weight)
            bias = add_constant(module, match.bias, weight, "bias")
            operator = aten.conv_transpose3d.input if match.transposed else aten.conv3d.default
            new = module.graph.call_function(operator, (input, scaled, bias, *rest[1:]))
        replace(node, new)
        module.graph.erase_node(match.conv)


def by_inputs(scale: Tensor, weight: Tensor, groups: int) -> Tensor:
    """The scale per output channel, shaped like a transposed convolution's weight: (inputs, outputs per group)."""
    return scale.reshape(groups, -1).repeat_interleave(len(weight) // groups, 0)

"""A nearest upsampling and the convolution after it become one transposed convolution.

    conv(upsample(x, s), w) = conv_transpose(x, v, stride=s, padding=1)      kernel 3, padding 1, per axis:
    v[t] = sum(w[k] for k in 0..2 if 0 <= t + k - 2 < s),  t = 0 .. s + 1

Output voxel y takes w[k] times the upsampled voxel y + k - 1 = s·x + r, that is input voxel x. The transposed
convolution adds v[t] times x at y = s·x + t - 1, hence t = r - k + 2. At s = (2, 2, 2) an output voxel costs 8
multiplications instead of 27. Exact, borders included: zero padding around the upsampled map contributes nothing, and
neither does missing input to the transposed convolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from smp3d_export.optimise.rewrite import Conv, Miss, Rewrite, replace
from smp3d_export.program.graph import add_constant, arguments_of, aten, constant, is_call


@dataclass(frozen=True)
class Match:
    source: Node
    scale: tuple[int, ...]
    conv: Conv
    weight: Tensor


CHANNELS = 64


class UpsampleConv(Rewrite):
    name = "upsample-conv"

    def match(self, module: GraphModule, node: Node) -> Match | Miss | None:
        conv = Conv.of(node)
        if conv is None or not is_upsampling(conv.input):
            return None
        scale = fitting_scale(module, conv, conv.input)
        if isinstance(scale, Miss):
            return scale
        weight = constant(module, conv.weight)
        assert weight is not None
        return Match(conv.input.all_input_nodes[0], scale, conv, weight)

    def apply(self, module: GraphModule, node: Node, match: Match) -> None:
        conv = match.conv
        with module.graph.inserting_before(node):
            if match.scale == (1, 1, 1):  # nothing is upsampled
                arguments = (match.source, *node.args[1:])
                new = module.graph.call_function(aten.conv3d.default, arguments)
            else:
                weight = add_constant(module, transposed_kernel(match.weight, match.scale), conv.weight)
                arguments = (match.source, weight, conv.bias, match.scale, (1, 1, 1))
                new = module.graph.call_function(aten.conv_transpose3d.input, arguments)
        replace(node, new)


def is_upsampling(node: object) -> bool:
    return is_call(node, aten.upsample_nearest3d.vec)


def fitting_scale(module: GraphModule, conv: Conv, upsampling: Node) -> tuple[int, ...] | Miss:
    """The integer factors of an upsampling that can be merged into a convolution, or why it cannot be merged."""
    weight = constant(module, conv.weight)
    if weight is None:
        return Miss("the weight is not a constant")
    if (miss := conv.mismatch(weight)) is not None:
        return miss
    _, size, factors = arguments_of(upsampling)
    if size is not None or factors is None:
        return Miss("it upsamples to a size, not by a factor")
    if any(factor != int(factor) or factor < 1 for factor in factors):
        return Miss(f"the factors {tuple(factors)} are not whole numbers")
    if len(upsampling.users) > 1:
        return Miss("the upsampled map has a second user")
    return tuple(int(factor) for factor in factors)


def transposed_kernel(weight: Tensor, scale: tuple[int, ...]) -> Tensor:
    """(out, in, 3, 3, 3) to (in, out, s + 2, s + 2, s + 2), with the scale s of each axis."""
    taps = [torch.zeros(s + 2, 3, dtype=torch.float64) for s in scale]
    for matrix, s in zip(taps, scale, strict=True):
        for t in range(s + 2):
            for k in range(3):
                matrix[t, k] = float(0 <= t + k - 2 < s)
    weight = weight.detach()
    outputs, inputs = weight.shape[:2]
    kernel = weight.new_empty(inputs, outputs, *(s + 2 for s in scale))
    # In parts, because all of it in float64 would be several times as large as the weights of the largest layer.
    for source, target in zip(weight.split(CHANNELS, 1), kernel.split(CHANNELS), strict=True):
        target.copy_(torch.einsum("oiabc,xa,yb,zc->ioxyz", source.double(), *taps))
    return kernel

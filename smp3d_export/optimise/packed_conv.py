"""A convolution to very few channels computes a block of neighbouring voxels at once, as the channels of one place.

    conv(x, w) = unpack(conv(x, v, stride=b, padding=1))      kernel 3, padding 1, block b, per axis:
    v[j][t] = w[t - j] for 0 <= t - j < 3, else 0;  j = 0 .. b - 1, t = 0 .. b + 1

Output voxel b·i + j is channel j of place i: it reads input voxels b·i + j + k - 1, which are the taps t = j + k of a
kernel of b + 2 that moves by b. Processors compute 8 or 16 channels in the time of one, so that a network's head of one
class wastes nearly all of its work: in blocks of 4 by 4 it has 16 channels and reads its input a quarter as often.
More operations on paper, many of them with zeros; less time.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.fx import GraphModule, Node

from smp3d_export.optimise.rewrite import Conv, Miss, Rewrite, replace
from smp3d_export.program.graph import add_constant, aten, constant, divides, size_of

# Classes to blocks along H and W, the first that the map's sizes are multiples of. Head of 16 channels, 128x128x64, two
# cores with AVX-512: one class from 77 to 32 ms in OpenVINO and from 45 to 38 in ONNX Runtime, three classes from 79 to
# 46 and from 65 to 59. Blocks along D, the fastest axis, gain less, and in ONNX Runtime nothing.
BLOCKS = {1: ((4, 4), (2, 2)), 2: ((2, 2),), 3: ((2, 2),), 4: ((2, 2),)}
LEAST_INPUTS = 8


@dataclass(frozen=True)
class Match:
    conv: Conv
    weight: Tensor
    block: tuple[int, int]


class PackedConv(Rewrite):
    name = "packed-conv"

    def match(self, module: GraphModule, node: Node) -> Match | Miss | None:
        conv = Conv.of(node)
        if conv is None:
            return None
        weight = constant(module, conv.weight)
        if weight is None or weight.shape[0] not in BLOCKS:
            return None
        if weight.shape[1] < LEAST_INPUTS:
            return Miss("it has few input channels as well")
        if (miss := conv.mismatch(weight)) is not None:
            return miss
        for block in BLOCKS[weight.shape[0]]:
            if all(divides(b, conv.input, axis) for b, axis in zip(block, (2, 3), strict=True)):
                return Match(conv, weight, block)
        return Miss("H and W of the map are no multiples of 2 at every shape of the contract")

    def apply(self, module: GraphModule, node: Node, match: Match) -> None:
        conv, (b, c), classes = match.conv, match.block, match.weight.shape[0]
        call = module.graph.call_function
        with module.graph.inserting_before(node):
            weight = add_constant(module, packed_kernel(match.weight, match.block), conv.weight)
            bias = conv.bias
            if bias is not None:
                held = constant(module, bias)
                assert held is not None
                bias = add_constant(module, held.repeat_interleave(b * c), bias)
            places = call(aten.conv3d.default, (conv.input, weight, bias, (b, c, 1), (1, 1, 1)))
            n, h, w, d = (size_of(conv.input, axis) for axis in (0, 2, 3, 4))
            rows, columns = (call(aten.sym_size.int, (places, axis)) for axis in (2, 3))
            apart = call(aten.view.default, (places, (n, classes, b, c, rows, columns, d)))
            woven = call(aten.permute.default, (apart, (0, 1, 4, 2, 5, 3, 6)))
            new = call(aten.reshape.default, (woven, (n, classes, h, w, d)))
        replace(node, new)


def packed_kernel(weight: Tensor, block: tuple[int, int]) -> Tensor:
    """(classes, in, 3, 3, 3) to (classes · b · c, in, b + 2, c + 2, 3)."""
    classes, inputs = weight.shape[:2]
    b, c = block
    kernel = weight.new_zeros(classes, b, c, inputs, b + 2, c + 2, 3)
    for i in range(b):
        for j in range(c):
            kernel[:, i, j, :, i : i + 3, j : j + 3] = weight.detach()
    return kernel.flatten(0, 2)

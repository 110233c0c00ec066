"""A convolution to very few channels computes a block of neighbouring voxels at once, as channels of one position.

    conv(x, w) = unpack(conv(x, v, stride=b, padding=1))      kernel 3, padding 1, block b, per axis:
    v[j][t] = w[t - j] for 0 <= t - j < 3, else 0;  j = 0 .. b - 1, t = 0 .. b + 1

Output voxel b·i + j is channel j at position i. It reads input voxels b·i + j + k - 1, that is taps t = j + k of a
kernel of b + 2 with stride b. CPUs compute 8 or 16 channels in the time of one, so a head with one class wastes nearly
all of its work. In blocks of 4 by 4 it has 16 channels and reads its input a quarter as often. That is more operations
on paper, many of them with zeros, but less time.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.fx import GraphModule, Node

from smp3d_export.optimise.rewrite import Conv, Miss, Rewrite, replace
from smp3d_export.program.graph import add_constant, aten, constant, divides, size_of

# Number of classes -> blocks along H and W, of which the first that divides the map's sizes is used. Measured on a head
# with 16 channels, 128x128x64, two cores with AVX-512: one class goes from 77 to 32 ms in OpenVINO and from 45 to 38 ms
# in ONNX Runtime, three classes from 79 to 46 ms and from 65 to 59 ms. Blocks along D, the fastest axis, gain less, and
# nothing in ONNX Runtime.
BLOCKS = {1: ((4, 4), (2, 2)), 2: ((2, 2),), 3: ((2, 2),), 4: ((2, 2),)}
MIN_INPUTS = 8


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
        if weight.shape[1] < MIN_INPUTS:
            return Miss("it has few input channels too")
        if (miss := conv.mismatch(weight)) is not None:
            return miss
        for block in BLOCKS[weight.shape[0]]:
            if all(divides(b, conv.input, axis) for b, axis in zip(block, (2, 3), strict=True)):
                return Match(conv, weight, block)
        return Miss("H and W of the map are not multiples of 2 at every shape of the contract")

    def apply(self, module: GraphModule, node: Node, match: Match) -> None:
        conv, (b, c), classes = match.conv, match.block, match.weight.shape[0]
        call = module.graph.call_function
        with module.graph.inserting_before(node):
            weight = add_constant(module, packed_kernel(match.weight, match.block), conv.weight)
            bias = conv.bias
            if bias is not None:
                values = constant(module, bias)
                assert values is not None
                bias = add_constant(module, values.repeat_interleave(b * c), bias)
            packed = call(aten.conv3d.default, (conv.input, weight, bias, (b, c, 1), (1, 1, 1)))
            n, h, w, d = (size_of(conv.input, axis) for axis in (0, 2, 3, 4))
            rows, columns = (call(aten.sym_size.int, (packed, axis)) for axis in (2, 3))
            blocks = call(aten.view.default, (packed, (n, classes, b, c, rows, columns, d)))
            interleaved = call(aten.permute.default, (blocks, (0, 1, 4, 2, 5, 3, 6)))
            new = call(aten.reshape.default, (interleaved, (n, classes, h, w, d)))
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

"""Taps of a dilated convolution that only ever read padding are removed.

Along an axis of n voxels, a tap n or more voxels from the centre reads zeros outside the map for every output voxel,
even with a stride, because the centre never leaves the map. So with padding = dilation >= n, the outer taps of a kernel
of 3 and the axis's padding can be removed.

`DilatedTaps` does that along frozen axes. Along a dynamic axis, taps that read padding at the contract's maximum do so
at every smaller size, but not at every larger one. `TapsUpToMax` removes those too, in files that refuse larger sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import ClassVar

from torch import Tensor
from torch.fx import GraphModule, Node

from smp3d_export.optimise.rewrite import Conv, Miss, Rewrite, replace
from smp3d_export.program.graph import add_constant, aten, constant

LARGEST = "largest"
"""Key in a node's `meta`: the shape (N, C, H, W, D) of its value at the contract's maximum."""


@dataclass(frozen=True)
class Match:
    conv: Conv
    weight: Tensor
    axes: tuple[int, ...]
    """The volume axes along which only the central tap remains."""


class DilatedTaps(Rewrite):
    name = "dilated-taps"
    reach: ClassVar = "its taps reach into the map, or its size is not frozen"

    def match(self, module: GraphModule, node: Node) -> Match | Miss | None:
        conv = Conv.of(node)
        if conv is None or max(conv.dilation) == 1:
            return None
        weight = constant(module, conv.weight)
        largest = self.largest(conv.input)
        if weight is None or largest is None:
            return Miss("the weight or the largest size of the map is unknown")
        axes = tuple(
            axis
            for axis in range(3)
            if weight.shape[2 + axis] == 3 and conv.padding[axis] == conv.dilation[axis] >= largest[2 + axis]
        )
        return Match(conv, weight, axes) if axes else Miss(self.reach)

    def largest(self, node: Node) -> Sequence[float] | None:
        """The largest shape (N, C, H, W, D) of a node's value, infinite along dynamic axes; None if it is unknown."""
        value = node.meta.get("val")
        return None if value is None else [size if isinstance(size, int) else inf for size in value.shape]

    def apply(self, module: GraphModule, node: Node, match: Match) -> None:
        conv, weight = match.conv, match.weight
        padding, dilation = list(conv.padding), list(conv.dilation)
        for axis in match.axes:
            weight = weight.narrow(2 + axis, 1, 1)
            padding[axis], dilation[axis] = 0, 1
        with module.graph.inserting_before(node):
            arguments = (
                conv.input,
                add_constant(module, weight, conv.weight),
                conv.bias,
                conv.stride,
                tuple(padding),
                tuple(dilation),
                conv.groups,
            )
            new = module.graph.call_function(aten.conv3d.default, arguments)
        replace(node, new)


class TapsUpToMax(DilatedTaps):
    name = "taps-up-to-max"
    reach: ClassVar = "its taps reach into the map at the contract's maximum"

    def largest(self, node: Node) -> Sequence[float] | None:
        return node.meta.get(LARGEST)

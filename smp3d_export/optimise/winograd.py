"""A convolution of kernel 3 becomes six of kernel (1, 3, 3) for every four planes: half the multiplications.

Winograd's minimal filtering F(4, 3) along H (Lavin and Gray, https://arxiv.org/abs/1509.09308). Four output planes read
six input planes d0 .. d5 of every four, and

    y = A (m0 .. m5),  m = conv(v, u),  v = B d,  u = G w      per channel, along H alone

    v0 = d0 + (d4 - 5 d2) / 4                   y0 = m0 + m1 + m2 +   m3 +   m4
    v1, v2 = (d4 - 4 d2) ± (d3 - 4 d1)          y1 =      m1 - m2 + 2 m3 - 2 m4
    v3, v4 = (d4 - d2) ± 2 (d3 - d1)            y2 =      m1 + m2 + 4 m3 + 4 m4
    v5 = d1 + (d5 - 5 d3) / 4                   y3 =      m1 - m2 + 8 m3 - 8 m4 + m5

with the rows of G in `FILTERS`: 6 · 9 multiplications for four voxels, not 4 · 27. Along one axis the constants stay
small, and in fp32 so does the error: within a few units of the last place of the largest value. In 16 bits it does not.

Each is a chain of sums and factors, which OpenVINO runs as one kernel. Of a convolution of dilation r, r planes stand
for one: what it reads are planes r apart.

What follows in the same stage, activations and residual sums, is done on y0 .. y3 as they are, and the next such
convolution takes them for its d1 .. d4; what else goes into the sum is cut for it. Only what reads the whole map has it
put together.

It trades work for memory traffic, and weights twice as large, so that it is a form of its own: it wins where there are
many channels to a voxel, by up to 1.4 of a whole network, and loses where there are few, or on an engine that does the
same inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from sys import maxsize
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from smp3d_export.optimise.rewrite import Conv, Miss, Rewrite, replace
from smp3d_export.program.graph import add_constant, aten, constant, divides, size_of

TILE = 4
FILTERS = (
    (1, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 4),
)
# Below it the planes cost more to combine than the multiplications saved: with 16 channels it takes 1.2 times as long
# in ONNX Runtime, with 32 it takes 0.77, with 64 0.71, with 512 0.65 (two cores with AVX-512).
LEAST_CHANNELS = 32

FOURS = "in fours"
"""Key in a node's `meta`: its value in four nodes, the first to the fourth of every four planes, by how far apart those
planes are."""
VOXELWISE: dict[Any, Any] = {
    aten.relu.default: aten.relu.default,
    aten.relu_.default: aten.relu.default,
    aten.silu.default: aten.silu.default,
    aten.silu_.default: aten.silu.default,
    aten.add.Tensor: aten.add.Tensor,
    aten.add_.Tensor: aten.add.Tensor,
}
"""Operators that treat every voxel alike, and what does the same without changing its input."""


@dataclass(frozen=True)
class Match:
    conv: Conv
    weight: Tensor


class Winograd(Rewrite):
    name = "winograd"

    def match(self, module: GraphModule, node: Node) -> Match | Miss | None:
        conv = Conv.of(node)
        if conv is None:
            return None
        weight = constant(module, conv.weight)
        if weight is None:
            return None
        if (miss := conv.mismatch(weight, dilated=True)) is not None:
            return miss
        if min(weight.shape[:2]) < LEAST_CHANNELS:
            return Miss(f"it has fewer than {LEAST_CHANNELS} channels")
        if not divides(TILE * conv.dilation[0], conv.input, 2):
            return Miss(f"H of the map is no multiple of {TILE * conv.dilation[0]} at every shape of the contract")
        return Match(conv, weight)

    def apply(self, module: GraphModule, node: Node, match: Match) -> None:
        conv = match.conv
        apart, *across = conv.dilation
        call = module.graph.call_function

        def add(a: Node, b: Node) -> Node:
            return call(aten.add.Tensor, (a, b))

        def sub(a: Node, b: Node) -> Node:
            return call(aten.sub.Tensor, (a, b))

        def times(a: Node, factor: float) -> Node:
            return call(aten.mul.Tensor, (a, factor))

        def shifted(a: Node, by: int) -> Node:
            return call(aten.constant_pad_nd.default, (a, (0, 0, 0, 0, by, -by)))

        with module.graph.inserting_before(node):
            d1, d2, d3, d4 = in_fours(conv.input, apart)
            d0, d5 = shifted(d4, apart), shifted(d1, -apart)
            far, near = add(times(d2, -4), d4), add(times(d1, -4), d3)
            wide, close = sub(d4, d2), times(sub(d3, d1), 2)
            combined = (
                add(times(add(times(d2, -5), d4), 1 / 4), d0),
                add(far, near),
                sub(far, near),
                add(wide, close),
                sub(wide, close),
                add(times(add(times(d3, -5), d5), 1 / 4), d1),
            )
            m = []
            for number, (v, filter) in enumerate(zip(combined, filters(match.weight), strict=True)):
                u = add_constant(module, filter, conv.weight)
                bias = conv.bias if number == 1 else None  # which goes into every y once
                m.append(call(aten.conv3d.default, (v, u, bias, (1, 1, 1), (0, *across), (1, *across))))
            even, odd = add(m[1], m[2]), sub(m[1], m[2])
            even2, odd2 = add(m[3], m[4]), sub(m[3], m[4])
            y = (
                add(add(even, even2), m[0]),
                add(times(odd2, 2), odd),
                add(times(even2, 4), even),
                add(add(times(odd2, 8), odd), m[5]),
            )
            new = together(y, apart, conv.input, match.weight.shape[0])
        replace(node, new)
        new.meta[FOURS] = {apart: y}

    def leave(self, module: GraphModule, node: Node) -> None:
        """Where part of what an activation or a sum reads is there in fours, it is computed so."""
        sources = node.all_input_nodes
        if node.target not in VOXELWISE or node.kwargs or len(sources) != len(node.args):
            return
        if in_place(node) and len(sources[0].users) > 1:  # which read what it writes, if they come later
            return
        shapes = [each.meta["val"].shape if "val" in each.meta else None for each in (node, *sources)]
        if None in shapes or any(shape != shapes[0] for shape in shapes):
            return
        for apart in {apart for source in sources for apart in source.meta.get(FOURS, {})}:
            whole = [source for source in sources if apart not in source.meta.get(FOURS, {})]
            if any(overwritten(source) for source in whole) or (whole and not self.wanted(module, node, apart)):
                continue
            with module.graph.inserting_before(node):
                operands = zip(*(in_fours(source, apart) for source in sources), strict=True)
                parts = tuple(module.graph.call_function(VOXELWISE[node.target], args) for args in operands)
                new = together(parts, apart, node, node.meta["val"].shape[1])
            replace(node, new)
            new.meta[FOURS] = {apart: parts}
            return

    def wanted(self, module: GraphModule, node: Node, apart: int) -> bool:
        """Whether a value is read in fours, as it is or by operators that treat every voxel alike."""
        for user in node.users:
            match = self.match(module, user)
            if isinstance(match, Match) and match.conv.dilation[0] == apart:
                return True
            if user.target in VOXELWISE and self.wanted(module, user, apart):
                return True
        return False


def together(fours: Sequence[Node], apart: int, like: Node, channels: int) -> Node:
    """The whole map of its four parts, of the size of the node `like`."""
    call = like.graph.call_function
    n, h, w, d = (size_of(like, axis) for axis in (0, 2, 3, 4))
    if apart == 1:
        tiles = call(aten.stack.default, (fours, 3))
    else:
        count = size_of(like, 2, TILE * apart)
        parts = [call(aten.view.default, (part, (n, channels, count, apart, w, d))) for part in fours]
        tiles = call(aten.cat.default, (parts, 3))
    return call(aten.view.default, (tiles, (n, channels, h, w, d)))


def in_fours(node: Node, apart: int) -> tuple[Node, ...]:
    """Of every four planes of a value along H that are so far apart, the first to the fourth; at the place set."""
    known = node.meta.get(FOURS, {})
    if apart in known:
        return known[apart]
    parts = cut(node, apart)
    if not overwritten(node):
        node.meta[FOURS] = {**known, apart: parts}
    return parts


def cut(node: Node, apart: int) -> tuple[Node, ...]:
    call = node.graph.call_function
    if apart == 1:
        return tuple(call(aten.slice.Tensor, (node, 2, start, maxsize, TILE)) for start in range(TILE))
    n, c, w, d = (size_of(node, axis) for axis in (0, 1, 3, 4))
    count, rows = size_of(node, 2, TILE * apart), size_of(node, 2, TILE)
    tiles = call(aten.reshape.default, (node, (n, c, count, TILE * apart, w, d)))
    parts = (call(aten.slice.Tensor, (tiles, 3, apart * k, apart * (k + 1))) for k in range(TILE))
    return tuple(call(aten.reshape.default, (part, (n, c, rows, w, d))) for part in parts)


def in_place(node: Node) -> bool:
    return VOXELWISE.get(node.target, node.target) != node.target


def overwritten(node: Node) -> bool:
    """Whether an operator in place changes a value, so that what is cut of it is not the same later on."""
    return any(in_place(user) and user.args[0] is node for user in node.users)


def filters(weight: Tensor) -> list[Tensor]:
    """(out, in, 3, 3, 3) to six times (out, in, 1, 3, 3)."""
    w = weight.detach()
    made = []
    for row in FILTERS:
        u = torch.zeros_like(w[:, :, :1], dtype=torch.float64)
        for k, factor in enumerate(row):
            u += factor * w[:, :, k : k + 1].double()
        made.append(u.to(w.dtype))
    return made

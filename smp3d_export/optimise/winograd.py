"""A convolution of kernel 3 becomes six of kernel (1, 3, 3) for every four planes: half the multiplications.

Winograd's minimal filtering F(4, 3) along H (Lavin and Gray, https://arxiv.org/abs/1509.09308). Four output planes read
six input planes d0 .. d5 of every four, and

    y = A (m0 .. m5),  m = conv(v, u),  v = B d,  u = G w      per channel, along H alone

    v0 = 4 d0 - 5 d2 + d4                       y0 = m0 + m1 + m2 +   m3 +   m4
    v1, v2 = (d4 - 4 d2) ± (d3 - 4 d1)          y1 =      m1 - m2 + 2 m3 - 2 m4
    v3, v4 = (d4 - d2) ± 2 (d3 - d1)            y2 =      m1 + m2 + 4 m3 + 4 m4
    v5 = 4 d1 - 5 d3 + d5                       y3 =      m1 - m2 + 8 m3 - 8 m4 + m5

with the rows of G in `FILTERS`: 6 · 9 multiplications for four voxels, not 4 · 27. Along one axis the constants stay
small, and in fp32 so does the error: within a few units of the last place of the largest value. In 16 bits it does not.

What follows in the same stage, activations and residual sums, is done on y0 .. y3 as they are, and the next such
convolution takes them for its d1 .. d4: only what reads the whole map has it put together.

It trades work for memory traffic, and weights twice as large, so that it is a form of its own: it wins where there are
many channels to a voxel, by up to 1.4 of a whole network, and loses where there are few, or on an engine that does the
same inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from sys import maxsize
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from smp3d_export.graph import add_constant, aten, constant, divides, size_of
from smp3d_export.optimise.rewrite import Conv, Miss, Rewrite, replace

TILE = 4
FILTERS = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
# Below it the planes cost more to combine than the multiplications saved: with 16 channels it takes 1.2 times as long
# in ONNX Runtime, with 32 it takes 0.77, with 64 0.71, with 512 0.65 (two cores with AVX-512).
LEAST_CHANNELS = 32

FOURS = "in fours"
"""Key in a node's `meta`: every fourth plane of its value, four nodes."""
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
        if (miss := conv.mismatch(weight)) is not None:
            return miss
        if min(weight.shape[:2]) < LEAST_CHANNELS:
            return Miss(f"it has fewer than {LEAST_CHANNELS} channels")
        if not divides(TILE, conv.input, 2):
            return Miss("H of the map is no multiple of 4 at every shape of the contract")
        return Match(conv, weight)

    def apply(self, module: GraphModule, node: Node, match: Match) -> None:
        conv = match.conv
        call = module.graph.call_function

        def add(a: Node, b: Node, times: int = 1) -> Node:
            """a + times · b"""
            return call(aten.add.Tensor, (a, b), {"alpha": times} if times != 1 else {})

        def planes(a: Node, start: int, end: int = maxsize) -> Node:
            return call(aten.slice.Tensor, (a, 2, start, end))

        def pad(a: Node, before: int, after: int) -> Node:
            return call(aten.constant_pad_nd.default, (a, (0, 0, 0, 0, before, after)))

        with module.graph.inserting_before(node):
            d1, d2, d3, d4 = in_fours(conv.input)
            # Padded before they are cut, for one plane less of a map of one tile would be an axis of none.
            d0, d5 = planes(pad(d4, 1, 0), 0, -1), planes(pad(d1, 0, 1), 1)
            far, near = add(d4, d2, -4), add(d3, d1, -4)
            wide, close = add(d4, d2, -1), add(d3, d1, -1)
            combined = (
                add(add(d4, d2, -5), d0, 4),
                add(far, near),
                add(far, near, -1),
                add(wide, close, 2),
                add(wide, close, -2),
                add(add(d5, d3, -5), d1, 4),
            )
            m = []
            for number, (v, filter) in enumerate(zip(combined, filters(match.weight), strict=True)):
                u = add_constant(module, filter, conv.weight)
                bias = conv.bias if number == 1 else None  # which goes into every y once
                m.append(call(aten.conv3d.default, (v, u, bias, (1, 1, 1), (0, 1, 1))))
            even, odd = add(m[1], m[2]), add(m[1], m[2], -1)
            even2, odd2 = add(m[3], m[4]), add(m[3], m[4], -1)
            y = (
                add(add(even, even2), m[0]),
                add(odd, odd2, 2),
                add(even, even2, 4),
                add(add(odd, odd2, 8), m[5]),
            )
            tiles = call(aten.stack.default, (y, 3))
            n, h, w, d = (size_of(conv.input, axis) for axis in (0, 2, 3, 4))
            new = call(aten.view.default, (tiles, (n, match.weight.shape[0], h, w, d)))
        replace(node, new)
        new.meta[FOURS] = y


def in_fours(node: Node) -> tuple[Node, ...]:
    """Every fourth plane of a value along H, from the first to the fourth on; at the place set in the graph."""
    if FOURS not in node.meta:
        node.meta[FOURS] = carried(node) or tuple(
            node.graph.call_function(aten.slice.Tensor, (node, 2, start, maxsize, TILE)) for start in range(TILE)
        )
    return node.meta[FOURS]


def carried(node: Node) -> tuple[Node, ...] | None:
    """The same through an operator that treats every voxel alike, where all that it reads is there in fours."""
    sources = node.all_input_nodes
    if node.target not in VOXELWISE or node.kwargs or len(sources) != len(node.args):
        return None
    found = [source.meta.get(FOURS) or carried(source) for source in sources]
    if any(fours is None for fours in found):
        return None
    operator = VOXELWISE[node.target]
    return tuple(node.graph.call_function(operator, parts) for parts in zip(*found, strict=True))


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

"""A convolution with kernel 3 becomes six with kernel (1, 3, 3) for every four planes: half the multiplications.

Winograd's minimal filtering F(4, 3) along H (Lavin and Gray, https://arxiv.org/abs/1509.09308). Four output planes
y0 .. y3 read six input planes d0 .. d5:

    y = A (m0 .. m5),  m = conv(v, u),  v = B d,  u = G w      per channel, along H only

    v0 = d0 + (d4 - 5 d2) / 4                   y0 = m0 + m1 + m2 +   m3 +   m4
    v1, v2 = (d4 - 4 d2) ± (d3 - 4 d1)          y1 =      m1 - m2 + 2 m3 - 2 m4
    v3, v4 = (d4 - d2) ± 2 (d3 - d1)            y2 =      m1 + m2 + 4 m3 + 4 m4
    v5 = d1 + (d5 - 5 d3) / 4                   y3 =      m1 - m2 + 8 m3 - 8 m4 + m5

with the rows of G in `FILTERS`: 6 · 9 multiplications for four voxels instead of 4 · 27. Along a single axis the
constants stay small, and so does the error in fp32: a few units in the last place of the largest value. In 16 bits the
error is too large.

Each v and y is a chain of sums and factors, which OpenVINO runs as one kernel. With dilation r the planes that a
convolution reads are r apart, so r adjacent planes take the place of one.

A map is split into four *phases*: phase k holds planes k, k + 4, k + 8, ... along H. Activations and residual sums in
the same stage work on the phases y0 .. y3 directly, and the next such convolution takes them as its d1 .. d4. Other
operands of a sum are split for it. The phases are merged only for operators that read the whole map.

It trades work for memory traffic and doubles the weights, so it is opt-in. With many channels per voxel a whole
network becomes up to 1.4 times faster. With few channels, or on an engine that does the same internally, it is slower.
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
# With fewer channels, combining the planes costs more than the saved multiplications. Time in ONNX Runtime relative to
# the plain convolution: 1.2 with 16 channels, 0.77 with 32, 0.71 with 64, 0.65 with 512 (two cores with AVX-512).
MIN_CHANNELS = 32

PHASES = "phases"
"""Key in a node's `meta`: spacing of the planes (the dilation) -> the four nodes that hold the phases of its value."""
VOXELWISE: dict[Any, Any] = {
    aten.relu.default: aten.relu.default,
    aten.relu_.default: aten.relu.default,
    aten.silu.default: aten.silu.default,
    aten.silu_.default: aten.silu.default,
    aten.add.Tensor: aten.add.Tensor,
    aten.add_.Tensor: aten.add.Tensor,
}
"""Operators that treat every voxel alike -> the same operator without writing in place."""


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
        if min(weight.shape[:2]) < MIN_CHANNELS:
            return Miss(f"it has fewer than {MIN_CHANNELS} channels")
        if not divides(TILE * conv.dilation[0], conv.input, 2):
            return Miss(f"H of the map is not a multiple of {TILE * conv.dilation[0]} at every shape of the contract")
        return Match(conv, weight)

    def apply(self, module: GraphModule, node: Node, match: Match) -> None:
        conv = match.conv
        spacing, *in_plane = conv.dilation
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
            d1, d2, d3, d4 = split_phases(conv.input, spacing)
            d0, d5 = shifted(d4, spacing), shifted(d1, -spacing)
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
                bias = conv.bias if number == 1 else None  # m1 goes into every y once
                m.append(call(aten.conv3d.default, (v, u, bias, (1, 1, 1), (0, *in_plane), (1, *in_plane))))
            even, odd = add(m[1], m[2]), sub(m[1], m[2])
            even2, odd2 = add(m[3], m[4]), sub(m[3], m[4])
            y = (
                add(add(even, even2), m[0]),
                add(times(odd2, 2), odd),
                add(times(even2, 4), even),
                add(add(times(odd2, 8), odd), m[5]),
            )
            new = merge_phases(y, spacing, conv.input, match.weight.shape[0])
        replace(node, new)
        new.meta[PHASES] = {spacing: y}

    def visit_unmatched(self, module: GraphModule, node: Node) -> None:
        """Compute an activation or a sum by phases if one of its operands is already split."""
        sources = node.all_input_nodes
        if node.target not in VOXELWISE or node.kwargs or len(sources) != len(node.args):
            return
        if in_place(node) and len(sources[0].users) > 1:  # later users would read what it writes
            return
        shapes = [each.meta["val"].shape if "val" in each.meta else None for each in (node, *sources)]
        if None in shapes or any(shape != shapes[0] for shape in shapes):
            return
        for spacing in {spacing for source in sources for spacing in source.meta.get(PHASES, {})}:
            whole = [source for source in sources if spacing not in source.meta.get(PHASES, {})]
            if any(overwritten(source) for source in whole) or (
                whole and not self.read_by_phases(module, node, spacing)
            ):
                continue
            with module.graph.inserting_before(node):
                operands = zip(*(split_phases(source, spacing) for source in sources), strict=True)
                phases = tuple(module.graph.call_function(VOXELWISE[node.target], args) for args in operands)
                new = merge_phases(phases, spacing, node, node.meta["val"].shape[1])
            replace(node, new)
            new.meta[PHASES] = {spacing: phases}
            return

    def read_by_phases(self, module: GraphModule, node: Node, spacing: int) -> bool:
        """Whether a matching convolution reads a value, directly or through voxelwise operators."""
        for user in node.users:
            match = self.match(module, user)
            if isinstance(match, Match) and match.conv.dilation[0] == spacing:
                return True
            if user.target in VOXELWISE and self.read_by_phases(module, user, spacing):
                return True
        return False


def merge_phases(phases: Sequence[Node], spacing: int, like: Node, channels: int) -> Node:
    """The whole map made of its four phases, with the size of the node `like`."""
    call = like.graph.call_function
    n, h, w, d = (size_of(like, axis) for axis in (0, 2, 3, 4))
    if spacing == 1:
        tiles = call(aten.stack.default, (phases, 3))
    else:
        count = size_of(like, 2, TILE * spacing)
        parts = [call(aten.view.default, (phase, (n, channels, count, spacing, w, d))) for phase in phases]
        tiles = call(aten.cat.default, (parts, 3))
    return call(aten.view.default, (tiles, (n, channels, h, w, d)))


def split_phases(node: Node, spacing: int) -> tuple[Node, ...]:
    """The four phases of a value along H, made only once. The caller sets the insertion point."""
    known = node.meta.get(PHASES, {})
    if spacing in known:
        return known[spacing]
    phases = slice_phases(node, spacing)
    if not overwritten(node):
        node.meta[PHASES] = {**known, spacing: phases}
    return phases


def slice_phases(node: Node, spacing: int) -> tuple[Node, ...]:
    call = node.graph.call_function
    if spacing == 1:
        return tuple(call(aten.slice.Tensor, (node, 2, start, maxsize, TILE)) for start in range(TILE))
    n, c, w, d = (size_of(node, axis) for axis in (0, 1, 3, 4))
    count, rows = size_of(node, 2, TILE * spacing), size_of(node, 2, TILE)
    tiles = call(aten.reshape.default, (node, (n, c, count, TILE * spacing, w, d)))
    parts = (call(aten.slice.Tensor, (tiles, 3, spacing * k, spacing * (k + 1))) for k in range(TILE))
    return tuple(call(aten.reshape.default, (part, (n, c, rows, w, d))) for part in parts)


def in_place(node: Node) -> bool:
    return VOXELWISE.get(node.target, node.target) != node.target


def overwritten(node: Node) -> bool:
    """Whether an in-place operator changes a value, so that phases sliced from it would go stale."""
    return any(in_place(user) and user.args[0] is node for user in node.users)


def filters(weight: Tensor) -> list[Tensor]:
    """(out, in, 3, 3, 3) to six filters (out, in, 1, 3, 3)."""
    w = weight.detach()
    result = []
    for row in FILTERS:
        u = torch.zeros_like(w[:, :, :1], dtype=torch.float64)
        for k, factor in enumerate(row):
            u += factor * w[:, :, k : k + 1].double()
        result.append(u.to(w.dtype))
    return result

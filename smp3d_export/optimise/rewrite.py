"""The base class of rewrites: each finds its pattern node by node and says why a near miss does not fit."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from smp3d_export.program.graph import arguments_of, aten, constant, is_call


@dataclass(frozen=True)
class Miss:
    """Why a node that looks like a rewrite's pattern does not fit it."""

    reason: str


class Rewrite(abc.ABC):
    """An exact change of the graph: the same function with less work."""

    name: ClassVar[str]

    @abc.abstractmethod
    def match(self, module: GraphModule, node: Node) -> Any | Miss | None:
        """What `apply` needs to rewrite `node`; a `Miss` if the node nearly fits; None if it is unrelated."""

    @abc.abstractmethod
    def apply(self, module: GraphModule, node: Node, match: Any) -> None:
        """Rewrite `node`."""

    def visit_unmatched(self, module: GraphModule, node: Node) -> None:  # noqa: B027  most rewrites have nothing to do there
        """Called at every other node, in order: an earlier rewrite may change how the node is best computed."""

    def run(self, module: GraphModule) -> int:
        """Rewrite every match and return their number. Running it again changes nothing."""
        fired = 0
        for node in list(module.graph.nodes):
            match = self.match(module, node)
            if match is None or isinstance(match, Miss):
                self.visit_unmatched(module, node)
            else:
                self.apply(module, node, match)
                fired += 1
        if fired:
            module.graph.eliminate_dead_code()
            module.graph.lint()
            module.recompile()
        return fired


@dataclass(frozen=True)
class Conv:
    """The arguments of a convolution node, including defaults."""

    input: Node
    weight: Node
    bias: Node | None
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int

    @classmethod
    def of(cls, node: Any) -> Conv | None:
        """The arguments of an `aten.conv3d` node; None for any other node, and if the padding is given by name."""
        if not is_call(node, aten.conv3d.default):
            return None
        defaults: tuple[Any, ...] = (None, (1, 1, 1), (0, 0, 0), (1, 1, 1), 1)
        input, weight, *rest = arguments_of(node)
        bias, stride, padding, dilation, groups = (*rest, *defaults[len(rest) :])
        return cls(input, weight, bias, triple(stride), triple(padding), triple(dilation), groups)

    def mismatch(self, weight: Tensor, *, dilated: bool = False) -> Miss | None:
        """Why it is not a plain convolution with kernel 3 that keeps the map's size; None if it is."""
        if tuple(weight.shape[2:]) != (3, 3, 3):
            return Miss(f"the kernel is {tuple(weight.shape[2:])}, not 3")
        plain = self.stride == (1, 1, 1) and self.groups == 1 and self.padding == self.dilation
        if plain and (dilated or self.dilation == (1, 1, 1)):
            return None
        return Miss("padding, stride, dilation and groups are not all 1")


def affine(module: GraphModule, node: Node) -> tuple[Tensor, Tensor] | None:
    """Scale and shift per channel, in float64, of a normalisation in inference; None in training mode.

    `node` is an `aten.batch_norm`, or an `aten.instance_norm`, which has the same arguments.

    x * s + t with s = gamma / sqrt(variance + eps) and t = beta - mean * s
    """
    _, gamma, beta, mean, variance, training, _, epsilon = arguments_of(node)[:8]
    mean, variance = constant(module, mean), constant(module, variance)
    if training or mean is None or variance is None:
        return None
    scale = torch.rsqrt(variance.double() + epsilon)
    if (g := constant(module, gamma)) is not None:
        scale = scale * g.double()
    shift = -mean.double() * scale
    if (b := constant(module, beta)) is not None:
        shift = shift + b.double()
    return scale, shift


def triple(value: Any) -> tuple[int, ...]:
    return tuple(value) * 3 if len(value) == 1 else tuple(value)


def replace(node: Node, new: Node) -> None:
    """Replace `node` by `new` for all its users."""
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)

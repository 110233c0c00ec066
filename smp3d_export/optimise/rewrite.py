"""What every rewrite of the captured graph has: it finds its pattern node by node, and says why one does not fit."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

aten = torch.ops.aten


@dataclass(frozen=True)
class Miss:
    """A node of the kind that a rewrite looks for, which does not fit all the same."""

    reason: str


class Rewrite(abc.ABC):
    """An exact change of the graph: the same function by less work."""

    name: ClassVar[str]

    @abc.abstractmethod
    def match(self, module: GraphModule, node: Node) -> Any | Miss | None:
        """What `apply` needs to rewrite at `node`; `Miss` where it nearly fits; None where it is of another kind."""

    @abc.abstractmethod
    def apply(self, module: GraphModule, node: Node, match: Any) -> None:
        """Rewrite at `node`."""

    def run(self, module: GraphModule) -> int:
        """Rewrite wherever the pattern stands, and say how often; running it again changes nothing."""
        fired = 0
        for node in list(module.graph.nodes):
            match = self.match(module, node)
            if match is not None and not isinstance(match, Miss):
                self.apply(module, node, match)
                fired += 1
        if fired:
            module.graph.eliminate_dead_code()
            module.graph.lint()
            module.recompile()
        return fired


@dataclass(frozen=True)
class Conv:
    """The arguments of a convolution node, those left out filled in."""

    input: Node
    weight: Node
    bias: Node | None
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int

    @classmethod
    def of(cls, node: Any) -> Conv | None:
        """Of `aten.conv3d`; None for any other node, and for padding by name."""
        if not is_call(node, aten.conv3d.default):
            return None
        defaults: tuple[Any, ...] = (None, (1, 1, 1), (0, 0, 0), (1, 1, 1), 1)
        input, weight, *rest = arguments_of(node)
        bias, stride, padding, dilation, groups = (*rest, *defaults[len(rest) :])
        return cls(input, weight, bias, triple(stride), triple(padding), triple(dilation), groups)


def is_call(node: Any, operator: Any) -> bool:
    return isinstance(node, Node) and node.op == "call_function" and node.target is operator


def arguments_of(node: Node) -> tuple[Any, ...]:
    """The positional arguments of a node, which `torch.fx` types too widely to use."""
    return tuple(node.args)


def triple(value: Any) -> tuple[int, ...]:
    return tuple(value) * 3 if len(value) == 1 else tuple(value)


def constant(module: GraphModule, node: Node | None) -> Tensor | None:
    """The parameter or buffer that a node stands for."""
    if node is None or node.op != "get_attr":
        return None
    value: Any = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value


def add_constant(module: GraphModule, tensor: Tensor) -> Node:
    """A node for a new weight; its name tells that it is one of ours. Insert at the place set in the graph."""
    number = sum(name.startswith("rewritten_") for name, _ in module.named_parameters(recurse=False))
    name = f"rewritten_{number}"
    module.register_parameter(name, nn.Parameter(tensor.contiguous(), requires_grad=False))
    return module.graph.get_attr(name)


def replace(node: Node, new: Node) -> None:
    """Put `new` in the place of `node`, for all that use it."""
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)

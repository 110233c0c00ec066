"""Tiny graphs for testing rewrites, and checks that apply to every rewrite."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from smp3d_export.contract import ShapeContract
from smp3d_export.optimise import graph_module, note_largest_sizes
from smp3d_export.optimise.rewrite import Miss, Rewrite
from smp3d_export.program.capture import capture
from smp3d_export.sources.network import randomise_normalisations

CONTRACT = ShapeContract.of((1, 4, 5, 6, 7), multiple=(1, 1, 1))


class Tiny(nn.Module):
    """A function of one input and some layers."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.layers)


def conv(inputs: int = 4, outputs: int = 3, kernel: int = 3, **options) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, kernel, **{"padding": kernel // 2, **options})


def module_of(model: nn.Module, contract: ShapeContract = CONTRACT) -> GraphModule:
    torch.manual_seed(0)
    randomise_normalisations(model)
    module = graph_module(capture(model.eval(), contract))
    note_largest_sizes(module, contract.max)
    return module


def misses(rewrite: Rewrite, module: GraphModule) -> list[str]:
    found = [rewrite.match(module, node) for node in module.graph.nodes]
    return [match.reason for match in found if isinstance(match, Miss)]


def check(rewrite: Rewrite, model: nn.Module, times: int = 1, contract: ShapeContract = CONTRACT) -> GraphModule:
    """Assert that a rewrite fires `times` times, agrees at several shapes, and does nothing in a second run."""
    module = module_of(model, contract)
    assert rewrite.run(module) == times
    assert rewrite.run(module) == 0
    with torch.no_grad():
        for shape in contract.parity_shapes().values():
            x = torch.randn(shape)
            expected = model(x)
            assert float((module(x) - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    return module


def must_not_fire(rewrite: Rewrite, model: nn.Module, reason: str | None, contract: ShapeContract = CONTRACT) -> None:
    """Assert that a rewrite does not fire: it nearly fits but for `reason`, or is unrelated if there is no reason."""
    module = module_of(model, contract)
    found = misses(rewrite, module)
    assert all(reason is not None and reason in text for text in found)
    assert bool(found) == (reason is not None)
    assert rewrite.run(module) == 0

"""Channels-last-3d: equal values and the right layout, also for maps that are split into planes and merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Interpreter

from smp3d_export import backends as targets
from smp3d_export.backends import inductor
from smp3d_export.backends.compile.runner import Compiled
from smp3d_export.contract import ShapeContract
from smp3d_export.optimise import for_cpu
from smp3d_export.precision import Precision
from smp3d_export.program.capture import Captured, capture
from smp3d_export.program.graph import aten
from smp3d_export.program.memory_format import channels_last
from smp3d_export.settings import Settings


class Stages(nn.Module):
    """Two stages, the second dilated or not, and a final convolution with kernel 1 and stride 2."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.entry = nn.Conv3d(1, 32, 3, padding=1)
        self.first = nn.Conv3d(32, 32, 3, padding=1)
        self.second = nn.Conv3d(32, 32, 3, padding=dilation, dilation=dilation)
        self.last = nn.Conv3d(32, 5, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.entry(x))
        x = F.relu(self.first(x)) + x
        return self.last(F.relu(self.second(x)) + x)


def rewritten(model: nn.Module) -> Captured:
    """The CPU variant, in which maps are split into planes and merged."""
    contract = ShapeContract.of((1, 1, 16, 6, 4), multiple=(8, 2, 2))
    captured = for_cpu(capture(model.eval(), contract), Precision.FP32).captured
    assert captured.rewrites == {"winograd": 2}
    return captured


class Layouts(Interpreter):
    """Runs a graph, and keeps the strides and shape of the map that the last convolution reads."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is aten.conv3d.default:
            self.last = args[0].stride(), args[0].shape
        return super().call_function(target, args, kwargs)


@pytest.mark.parametrize("dilation", [1, 2])
def test_a_map_that_is_put_together_is_channels_last(dilation: int) -> None:
    """Compares every stride: PyTorch checks the batch stride too, even for a single volume."""
    torch.manual_seed(0)
    model = Stages(dilation)
    captured = rewritten(model)
    module = channels_last(captured)
    with torch.no_grad():
        for shape in captured.contract.parity_shapes().values():
            x = torch.randn(shape)
            expected = model(x)
            run = Layouts(module)
            found = run.run(x)
            strides, (_, c, h, w, d) = run.last
            assert strides == (c * h * w * d, 1, c * w * d, c * d, c)
            assert found.is_contiguous()
            assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_an_axis_that_is_cut_elsewhere_stays() -> None:
    """Maps whose channels are split, or merged with the batch, are left as they are."""

    class Split(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            n, c, h, w, d = x.shape
            groups = x.reshape(n, 2, c // 2, h, w, d).flip(1).reshape(n, c, h, w, d)
            volumes = torch.stack([groups, x]).sin().reshape(2 * n, c, h, w, d)
            return volumes[:n] + volumes[n:]

    model = Split().eval()
    captured = capture(model, ShapeContract.of((1, 4, 3, 5, 7), multiple=(1, 1, 1)))
    module = channels_last(captured)
    x = torch.randn(2, 4, 3, 5, 7)
    assert torch.equal(module(x), model(x))


@pytest.mark.skipif(not targets.find("compile").support(Precision.FP32, "cpu").ready, reason="no C++ compiler")
def test_the_compiler_knows_the_layout_of_a_single_volume(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Stages(dilation=1)
    captured = rewritten(model)
    program, _ = inductor.program(captured, Settings())
    x = torch.randn(captured.contract.opt)
    with torch.no_grad():
        (found,) = Compiled(program, captured.contract, tmp_path)(x)
        assert float((found - model(x)).abs().max()) <= 1e-5

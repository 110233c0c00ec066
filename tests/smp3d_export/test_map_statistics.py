"""Normalisations and means of large maps in OpenVINO, on volumes that are mostly of one value, like air."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from torch import Tensor, nn

import smp3d_export
from smp3d_export.arrays import volume


class Network(nn.Module):
    """Layers that compute statistics of a map, each between two convolutions; an output a layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.widen = nn.Conv3d(1, 4, 1)
        self.layers = nn.ModuleDict(
            {
                "instance": nn.InstanceNorm3d(4, affine=True),
                "groups": nn.GroupNorm(2, 4),
                "one_group": nn.GroupNorm(1, 4),
                "plain_groups": nn.GroupNorm(2, 4, affine=False),
                "pooled": nn.AdaptiveAvgPool3d(1),
            }
        )
        self.head = nn.Conv3d(4, 2, 1)
        for name, weight in self.layers.named_parameters():
            nn.init.uniform_(weight, 0.5, 2) if name.endswith("weight") else nn.init.normal_(weight)
        self.eval()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.widen(x)
        return {name: self.head(nn.functional.leaky_relu(layer(x))) for name, layer in self.layers.items()}


def export(shape: tuple[int, ...], folder: Path, **options: Any) -> smp3d_export.runtime.Runner:
    """The network's artifact, with N from 1 to 2 and the volume up to a shape."""
    report = smp3d_export.export(
        Network(), shape=shape, max=(2, *shape[1:]), to="openvino", output=folder / "net", bench=False, **options
    )
    report.raise_for_failure()
    return smp3d_export.load(folder / "net")


def errors(run: smp3d_export.runtime.Runner, image: np.ndarray) -> dict[str, float]:
    """The largest error of every output as a part of its range, against float64."""
    with torch.inference_mode():
        exact = {name: value.numpy() for name, value in Network().double()(torch.from_numpy(image).double()).items()}
    return {name: float(np.abs(value - exact[name]).max() / np.ptp(exact[name])) for name, value in run(image).items()}


def scan(shape: tuple[int, ...]) -> np.ndarray:
    """Air of -3, and a fiftieth of the voxels above 2."""
    values = np.random.default_rng(0).standard_normal(shape, np.float32)
    return np.where(values > 2, values, np.float32(-3))


def operators(folder: Path) -> set[str]:
    return {operation.get_type_name() for operation in openvino.Core().read_model(folder / "net/model.xml").get_ops()}


@pytest.mark.parametrize("opset", [20, 21])  # from 21 on, a group normalisation is one operator
def test_most_of_a_large_volume_may_have_one_value(opset: int, tmp_path: Path) -> None:
    run = export((1, 1, 48, 40, 56), tmp_path, opset=opset)
    for shape in ((1, 1, 48, 40, 56), (2, 1, 40, 40, 48)):
        found = errors(run, scan(shape))
        assert max(found.values()) < 5e-6, found
    assert not operators(tmp_path) & {"MVN", "GroupNormalization"}


def test_a_small_map_keeps_one_operator(tmp_path: Path) -> None:
    run = export((1, 1, 8, 8, 4), tmp_path)
    found = errors(run, volume((2, 1, 8, 8, 4), 0))
    assert max(found.values()) < 5e-6, found
    assert "MVN" in operators(tmp_path)


def test_half_precision_has_room_for_large_values_and_for_constant_maps(tmp_path: Path) -> None:
    shape = (1, 1, 72, 64, 64)
    run = export(shape, tmp_path, precision="fp16")
    found = errors(run, scan(shape) * np.float32(2000))
    assert max(found.values()) < 1e-2, found
    assert all(np.isfinite(value).all() for value in run(np.zeros(shape, np.float32)).values())
    assert "MVN" not in operators(tmp_path)

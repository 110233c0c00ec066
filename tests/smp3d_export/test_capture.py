"""Capture of networks that compute with sizes, over every range that a contract may have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from making import export, load, manifest
from torch import Tensor, nn

from smp3d_export.arrays import volume
from smp3d_export.contract import ShapeContract
from smp3d_export.program.capture import capture

MULTIPLE, SMALLEST = 2, 8


class Pooled(nn.Module):
    """Shrinks its input to one voxel at the smallest size and resizes it back, as PAN does with its last map."""

    def forward(self, x: Tensor) -> Tensor:
        half = F.max_pool3d(x, 4)
        return x + F.interpolate(F.max_pool3d(half, 2), size=x.shape[2:], mode="trilinear", align_corners=True)


@pytest.mark.parametrize("multiple", [MULTIPLE, 1])
@pytest.mark.parametrize(
    "largest", [SMALLEST + MULTIPLE, 2 * SMALLEST - MULTIPLE, 2 * SMALLEST, 2 * SMALLEST + MULTIPLE]
)
def test_no_size_is_baked_in_wherever_the_range_ends(multiple: int, largest: int, tmp_path: Path) -> None:
    contract = ShapeContract.of(
        (1, 1, SMALLEST, SMALLEST, SMALLEST),
        multiple=(multiple,) * 3,
        min_size=(SMALLEST,) * 3,
        max=(2, 1, largest, largest, largest),
    )
    model = Pooled().eval()
    export("onnx", capture(model, contract), tmp_path)
    run = load(tmp_path, manifest("onnx", contract))
    for shape in (contract.min, contract.max, (1, 1, SMALLEST, largest, SMALLEST + MULTIPLE)):
        image = volume(shape, seed=0)
        np.testing.assert_allclose(run(image)["masks"], model(torch.from_numpy(image)).numpy(), atol=1e-5)

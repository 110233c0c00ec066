"""Adaptive average pooling by matrices against PyTorch's own, at any size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from smp3d_export.architectures.pooling import AdaptiveAvgPool3d, bin_weights

sizes = st.integers(1, 40)


@given(
    st.integers(1, 8), st.tuples(st.integers(1, 2), st.integers(1, 3), *[st.integers(1, 14)] * 3), st.integers(0, 99)
)
def test_it_equals_pytorchs(bins: int, shape: tuple[int, ...], seed: int) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(AdaptiveAvgPool3d(bins)(x), F.adaptive_avg_pool3d(x, bins))


@given(st.integers(1, 8), sizes)
def test_every_bin_is_an_average(bins: int, size: int) -> None:
    """The weights of a bin are equal over one run of voxels and add up to 1; no voxel is left out."""
    weights = bin_weights(bins, size, torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(bins, dtype=torch.float64))
    assert (weights.sum(dim=0) > 0).all()
    for row in weights:
        (inside,) = row.nonzero(as_tuple=True)
        assert inside.tolist() == list(range(int(inside[0]), int(inside[-1]) + 1))
        assert row[inside].unique().numel() == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_it_keeps_the_type(dtype: torch.dtype) -> None:
    x = torch.rand(1, 2, 5, 4, 7).to(dtype)
    y = AdaptiveAvgPool3d(3)(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), F.adaptive_avg_pool3d(x.double(), 3), rtol=1e-2, atol=1e-2)

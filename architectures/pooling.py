"""Adaptive average pooling whose graph holds for every size of volume.

PyTorch's own has no ONNX operator when the size is dynamic. Bin i of b over n voxels averages the voxels

    floor(i·n / b) <= v < ceil((i + 1)·n / b),    that is    i·n < (v + 1)·b  and  v·b < (i + 1)·n

so pooling an axis is a product with a b×n matrix of weights, made by whole-number comparisons of an `arange`. It is
exact, n may be a symbol, and n may be less than b.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AdaptiveAvgPool3d(nn.Module):
    """(N, C, H, W, D) to (N, C, bins, bins, bins)."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        if self.bins == 1:  # a plain mean, which every backend has
            return F.adaptive_avg_pool3d(x, 1)
        h, w, d = (bin_weights(self.bins, size, x) for size in x.shape[2:])
        x = (h @ x.flatten(3)).unflatten(3, x.shape[3:])
        return w @ (x @ d.T)

    def extra_repr(self) -> str:
        return f"bins={self.bins}"


def bin_weights(bins: int, size: int, like: Tensor) -> Tensor:
    """(bins, size): the weight of every voxel of an axis in every bin, on the device and in the type of `like`."""
    bin_ = torch.arange(bins, device=like.device).unsqueeze(1)
    voxel = torch.arange(size, device=like.device)
    inside = ((bin_ * size < (voxel + 1) * bins) & (voxel * bins < (bin_ + 1) * size)).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)

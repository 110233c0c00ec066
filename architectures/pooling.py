"""Adaptive average pooling whose graph is valid for every volume size.

ONNX has no operator for PyTorch's own pooling with dynamic sizes. Bin i of b over n voxels averages the voxels v with

    floor(i·n / b) <= v < ceil((i + 1)·n / b),    that is    i·n < (v + 1)·b  and  v·b < (i + 1)·n

so pooling an axis is a product with a b×n weight matrix, computed by integer comparisons of an `arange`. It is exact,
n may be symbolic, and n may be less than b.
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
        if self.bins == 1:  # a plain mean, which every backend supports
            return F.adaptive_avg_pool3d(x, 1)
        h, w, d = (bin_weights(self.bins, size, x) for size in x.shape[2:])
        x = (h @ x.flatten(3)).unflatten(3, x.shape[3:])
        return w @ (x @ d.T)

    def extra_repr(self) -> str:
        return f"bins={self.bins}"


def bin_weights(bins: int, size: int, like: Tensor) -> Tensor:
    """(bins, size): the weight of every voxel of an axis in every bin, with the device and dtype of `like`."""
    bin_ = torch.arange(bins, device=like.device).unsqueeze(1)
    voxel = torch.arange(size, device=like.device)
    inside = ((bin_ * size < (voxel + 1) * bins) & (voxel * bins < (bin_ + 1) * size)).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)

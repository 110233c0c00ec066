"""Several networks as one, so that one artifact holds an ensemble."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn


class Average(nn.Module):
    """The mean of what its members compute, as nnU-Net takes it of the logits of its folds.

    nnU-Net averages whole volumes, after its sliding window and its mirrored passes. Both are linear in the logits of
    a patch, so that averaging each patch gives the same.
    """

    def __init__(self, members: Iterable[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, H, W, D) to logits (N, classes, H, W, D)."""
        first, *others = self.members
        total = first(image)
        for member in others:
            total = total + member(image)
        return total / len(self.members)

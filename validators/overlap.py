"""Two label maps, class by class: how many voxels each has, and how many they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Overlap:
    """One class: its voxels in the eager network's label map, in the artifact's, and in both."""

    label: int
    expected: int
    found: int
    common: int

    @property
    def size(self) -> float:
        """The mean of its voxels in the two maps."""
        return (self.expected + self.found) / 2

    @property
    def differing(self) -> int:
        """The voxels that are of the class in one map alone."""
        return self.expected + self.found - 2 * self.common

    @property
    def dice(self) -> float:
        """The Dice coefficient; 1 for a class that neither map has."""
        return self.common / self.size if self.size else 1.0


def overlaps(found: Array, expected: Array, classes: int | None = None) -> tuple[Overlap, ...]:
    """Every class of two label maps of one shape; by default there are as many as the maps have."""
    if classes is None:
        classes = int(max(found.max(), expected.max())) + 1
    pairs = np.bincount((expected.astype(np.int64) * classes + found.astype(np.int64)).ravel(), minlength=classes**2)
    table = pairs.reshape(classes, classes)
    sizes = zip(table.sum(1), table.sum(0), table.diagonal(), strict=True)
    return tuple(Overlap(label, *map(int, row)) for label, row in enumerate(sizes))


def is_label_map(output: Array) -> bool:
    """Whether an output gives every voxel a class: masks (N, classes, H, W, D), or class numbers (N, H, W, D)."""
    return output.ndim == 5 or (output.ndim == 4 and output.dtype.kind != "f")


def label_map(masks: Array, threshold: float) -> Array:
    """The class of every voxel: masks (N, classes, H, W, D) to (N, H, W, D); class numbers stay as they are."""
    if masks.ndim == 4:
        return masks
    return masks.argmax(axis=1) if masks.shape[1] > 1 else (masks[:, 0] > threshold).astype(np.int64)

"""Volumes in memory: their type, and seeded ones to compare networks on."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Volume = NDArray[np.float32]
"""(N, C, H, W, D) in native, contiguous float32."""
Outputs = dict[str, NDArray[Any]]
"""The outputs of a network by name."""

GRID = 8  # voxels between the points of the smooth part
NOISE = 0.3


def volume(shape: Sequence[int], seed: int) -> Volume:
    """A volume (N, C, H, W, D) of about zero mean and unit deviation, the same for the same shape and seed.

    It is smooth, as tissue is, with noise, as scanners add.
    """
    rng = np.random.default_rng([seed, zlib.crc32(repr(tuple(shape)).encode())])
    n, c, *sizes = shape
    smooth = rng.standard_normal((n, c, *(size // GRID + 2 for size in sizes)), dtype=np.float32)
    for axis, size in enumerate(sizes, start=2):
        smooth = np.moveaxis(np.tensordot(interpolation(size), smooth, axes=(1, axis)), 0, axis)
    smooth /= max(float(smooth.std()), 1e-6)
    smooth += NOISE * rng.standard_normal(shape, dtype=np.float32)
    return np.ascontiguousarray(smooth, dtype=np.float32)


def interpolation(size: int) -> NDArray[np.float32]:
    """The matrix (size, points) that interpolates linearly between grid points."""
    position = np.arange(size) / GRID
    left = position.astype(int)
    weights = np.zeros((size, size // GRID + 2), np.float32)
    weights[np.arange(size), left] = 1 - (position - left)
    weights[np.arange(size), left + 1] = position - left
    return weights

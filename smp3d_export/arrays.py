"""Volumes in memory: their type, and seeded volumes to compare networks on."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smp3d_export.errors import UsageError

Volume = NDArray[np.float32]
"""(N, C, H, W, D) in native, contiguous float32."""
Outputs = dict[str, NDArray[Any]]
"""The outputs of a network by name."""

GRID = 8  # voxels between the grid points of the smooth part
NOISE = 0.3

NUMBERS = "buif"
"""Kinds of NumPy types that become float32: bool, unsigned and signed integers, floats."""


def as_volume(image: ArrayLike) -> Volume:
    """An array, or what NumPy can read as one, in native float32, contiguous and writable: the layout of every backend.

    It is copied only if it is not in that layout already. NaN and infinity pass: they are data.

    Raises:
        UsageError: it does not hold real numbers, or one is too large for float32.
    """
    try:
        array = np.asarray(image)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"the image is a {type(image).__name__} that NumPy cannot read: {error}") from error
    if array.dtype.kind not in NUMBERS:
        raise UsageError(f"the image is of type {array.dtype}; it must hold real numbers: float, integer or bool")
    try:
        with np.errstate(over="raise"):
            ready = np.require(array, np.float32, ("C_CONTIGUOUS", "ALIGNED", "WRITEABLE"))
    except FloatingPointError:
        raise UsageError(f"the image is of type {array.dtype} and has values that float32 cannot hold") from None
    # To NumPy an axis of size 1 is contiguous whatever its stride; PyTorch refuses a negative one.
    return ready.reshape(-1).reshape(array.shape)


def volume(shape: Sequence[int], seed: int) -> Volume:
    """A volume (N, C, H, W, D) with about zero mean and unit deviation, the same for the same shape and seed.

    It is smooth like tissue, with noise like a scanner's.
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

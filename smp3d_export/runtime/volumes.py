"""Volumes on disk: `.npy`, `.npz` and NIfTI, H, W and D as stored, to float32 arrays (N, C, H, W, D)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smp3d_export.arrays import Volume
from smp3d_export.contract import Shape, ShapeContract
from smp3d_export.errors import ShapeError, UsageError
from smp3d_export.runtime.formats import UNREADABLE, is_nifti, stored, unreadable


@dataclass(frozen=True)
class Normalisation:
    """`(x - mean) / std`. If they are None, the volume's own mean and standard deviation are used (z-score)."""

    mean: float | None = None
    std: float | None = None

    def __post_init__(self) -> None:
        """Raises `UsageError` for a mean that is not a number, or a standard deviation that is not above 0."""
        if self.mean is None or self.std is None:
            return
        if not math.isfinite(self.mean) or not math.isfinite(self.std) or self.std <= 0:
            raise UsageError(
                f"--normalize is {self}; the mean must be a number and the standard deviation a number above 0"
            )

    def __call__(self, volume: Volume) -> Volume:
        mean = float(volume.mean(dtype=np.float64)) if self.mean is None else self.mean
        std = float(volume.std(dtype=np.float64)) if self.std is None else self.std
        if std == 0:
            raise UsageError("a volume whose voxels are all equal cannot be z-scored: its standard deviation is 0")
        return ((volume - np.float32(mean)) / np.float32(std)).astype(np.float32)

    def __str__(self) -> str:
        return "zscore" if self.std is None else f"{self.mean},{self.std}"


def volume_shape(path: Path) -> Shape:
    """The shape (N, C, H, W, D) that `read_volume` would give, from the file's header alone.

    Raises:
        UsageError: the file does not exist, has no header, or holds no volume of 3 to 5 axes.
    """
    return arranged(path, stored(path).shape)


def read_volume(path: Path, normalisation: Normalisation | None = None) -> Volume:
    """A volume as float32 (N, C, H, W, D), normalised. Axes that the file lacks (N, or N and C) have size 1.

    An array is stored as ([N,] [C,] H, W, D). A NIfTI file has its channels last, in its fourth axis (time) or its
    fifth (vectors), as nibabel gives them: (H, W, D, C) or (H, W, D, 1, C).

    Raises:
        UsageError: the file does not exist, cannot be read or normalised, or holds no volume of 3 to 5 axes.
    """
    found = stored(path)
    shape = arranged(path, found.shape)
    try:
        array = found.read()
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    if is_nifti(path):
        array = np.moveaxis(array.reshape(*array.shape[:3], -1), -1, 0)
    volume = np.ascontiguousarray(array.reshape(shape), np.float32)
    if not np.isfinite(volume).all():
        raise UsageError(f"{str(path)!r} has voxels that are not finite numbers")
    if normalisation is None:
        return volume
    try:
        return normalisation(volume)
    except UsageError as error:
        raise UsageError(f"{str(path)!r}: {error}") from None


def check_channels(path: Path, shape: Sequence[int], channels: int) -> None:
    """Refuse a volume (N, C, H, W, D) whose channels are not the network's.

    Raises:
        UsageError: the message says how to move the channels if they seem to be at the other end.
    """
    _, found, *sizes = shape
    if found == channels:
        return
    message = f"{str(path)!r} has {found} channel{'s' * (found > 1)}, but the network takes {channels}"
    last = sizes[-1]
    if is_nifti(path):
        if found > 1 and sizes[0] == channels:
            message += (
                ": the channels of a NIfTI file are its fourth axis, but here they seem to be the first; move them "
                "with np.moveaxis(array, 0, -1)"
            )
    elif found > 1 and (last == channels or last < min(found, *sizes[:-1])):
        named = "" if last == channels else f", {last},"
        message += (
            f": its last axis{named} looks like the channels; move it to the front with np.moveaxis(array, -1, -4)"
        )
    raise UsageError(message)


def arranged(path: Path, shape: tuple[int, ...]) -> Shape:
    """The axes of a stored array as (N, C, H, W, D)."""
    if not is_nifti(path) or len(shape) < 4:
        n, c, h, w, d = (1,) * (5 - len(shape)) + shape
        return n, c, h, w, d
    h, w, d, *others = shape
    if min(others) > 1 and len(others) > 1:
        raise UsageError(
            f"{str(path)!r} holds an array {shape}: {others[0]} time points and {others[1]} values per voxel. A volume "
            "can have one of the two, as its channels"
        )
    return 1, math.prod(others), h, w, d


def crop_to(contract: ShapeContract, volume: Volume) -> Volume:
    """The centre of a volume, cut to the nearest valid sizes that fit.

    Raises:
        ShapeError: the volume has other channels, or an axis smaller than the contract's minimum.
    """
    slices = []
    for axis, size in zip(contract.axes, volume.shape, strict=True):
        fits = min(size, axis.max) // axis.multiple * axis.multiple
        if fits < axis.min or (axis.name == "C" and size != axis.opt):
            raise ShapeError(f"{axis.name} of the sample is {size}, outside the contract ({axis})")
        start = (size - fits) // 2
        slices.append(slice(start, start + fits))
    return np.ascontiguousarray(volume[tuple(slices)])

"""Volumes on disk: `.npy`, `.npz` and NIfTI, axes as stored (H, W, D), to float32 arrays (N, C, H, W, D)."""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from smp3d_export.arrays import Volume
from smp3d_export.contract import ShapeContract
from smp3d_export.errors import ShapeError, UsageError

NIFTI = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Normalisation:
    """`(x - mean) / std`; of the volume's own mean and standard deviation where they are None (z-score)."""

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


def read_volume(path: Path) -> Volume:
    """A volume as float32 (N, C, H, W, D); axes that the file lacks, N or N and C, are 1.

    Raises:
        UsageError: the file does not exist, cannot be read, or holds no volume of 3 to 5 axes.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {str(path)!r}")
    try:
        array = _read(path)
    except UsageError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"{str(path)!r} cannot be read as a volume: {error}") from error
    if array.dtype.kind not in "fiub" or not 3 <= array.ndim <= 5:
        raise UsageError(
            f"{str(path)!r} holds an array {array.shape} of {array.dtype}; a volume is numeric and has the axes "
            "H, W, D, optionally with C, or N and C, in front"
        )
    volume = array.reshape((1,) * (5 - array.ndim) + array.shape).astype(np.float32)
    if not np.isfinite(volume).all():
        raise UsageError(f"{str(path)!r} has voxels that are not finite numbers")
    return volume


def _read(path: Path) -> NDArray[np.generic]:
    name = path.name.lower()
    if name.endswith(".npy"):
        return np.load(path, allow_pickle=False)
    if name.endswith(".npz"):
        with np.load(path, allow_pickle=False) as archive:
            if len(archive.files) != 1:
                raise UsageError(
                    f"{str(path)!r} holds {len(archive.files)} arrays ({', '.join(archive.files)}), not one"
                )
            return archive[archive.files[0]]
    if name.endswith(NIFTI):
        try:
            import nibabel
        except ImportError:
            raise UsageError(
                f"reading {path.name} takes nibabel: pip install 'smp3d-export[nifti]', or save the volume as .npy"
            ) from None
        from nibabel.filebasedimages import ImageFileError

        try:
            image = nibabel.load(path)
            return np.asarray(image.dataobj)  # pyright: ignore[reportAttributeAccessIssue]
        except ImageFileError as error:
            raise UsageError(f"{str(path)!r} cannot be read as a volume: {error}") from error
    raise UsageError(f"{path.name} is not a volume that can be read: use .npy, .npz, .nii or .nii.gz")


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

"""Files that hold a volume (`.npy`, `.npz`, NIfTI): the array's shape and type from the header, and its values."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from smp3d_export.errors import UsageError

NIFTI = (".nii", ".nii.gz")
SUFFIXES = (".npy", ".npz", *NIFTI)
UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)
"""Errors that reading a damaged file raises."""


@dataclass(frozen=True)
class Stored:
    """An array in a file: its shape and type from the header, and how to read its values."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], NDArray[Any]]


def is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(NIFTI)


def stored(path: Path) -> Stored:
    """The numeric array of 3 to 5 axes in a file."""
    if not path.is_file():
        raise UsageError(f"there is no file {str(path)!r}")
    name = path.name.lower()
    try:
        if name.endswith(".npy"):
            with path.open("rb") as file:
                shape, dtype = npy_header(file)
            found = Stored(shape, dtype, lambda: np.load(path, allow_pickle=False))
        elif name.endswith(".npz"):
            found = in_archive(path)
        elif is_nifti(path):
            found = in_nifti(path)
        else:
            raise UsageError(f"{path.name} cannot be read as a volume: use .npy, .npz, .nii or .nii.gz")
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    if found.dtype.kind not in "fiub" or not 3 <= len(found.shape) <= 5 or 0 in found.shape:
        axes = (
            "H, W, D, optionally with C behind"
            if is_nifti(path)
            else "H, W, D, optionally with C, or N and C, in front"
        )
        raise UsageError(
            f"{str(path)!r} holds an array {found.shape} of {found.dtype}; a volume is numeric and has the axes {axes}"
        )
    return found


def npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the array in an open `.npy` file."""
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(file)
    return shape, dtype


def in_archive(path: Path) -> Stored:
    """The one array of a `.npz` file."""
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if len(names) != 1:
            raise UsageError(f"{str(path)!r} holds {len(names)} arrays ({', '.join(names)}), not one")
        with archive.open(archive.namelist()[0]) as file:
            shape, dtype = npy_header(file)

    def read() -> NDArray[Any]:
        with np.load(path, allow_pickle=False) as content:
            return content[names[0]]

    return Stored(shape, dtype, read)


def in_nifti(path: Path) -> Stored:
    """The image of a NIfTI file."""
    try:
        import nibabel
        from nibabel.filebasedimages import ImageFileError
        from nibabel.spatialimages import HeaderDataError
    except ImportError:
        raise UsageError(
            f"reading {path.name} needs nibabel: pip install 'smp3d-export[nifti]', or save the volume as .npy"
        ) from None
    try:
        image: Any = nibabel.load(path)
    except (ImageFileError, HeaderDataError) as error:
        raise unreadable(path, error) from error
    return Stored(image.shape, image.get_data_dtype(), lambda: np.asarray(image.dataobj))


def unreadable(path: Path, error: Exception) -> UsageError:
    return UsageError(f"{str(path)!r} cannot be read as a volume: {error}")

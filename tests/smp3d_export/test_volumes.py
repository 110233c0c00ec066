"""Volumes on disk: the formats, the axes, what is no volume, and the cut to a contract."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from smp3d_export.contract import ShapeContract
from smp3d_export.errors import ShapeError, UsageError
from smp3d_export.runtime.volumes import Normalisation, check_channels, crop_to, read_volume, volume_shape

ARRAY = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)


def write(path: Path, array: np.ndarray) -> Path:
    if path.name.endswith(".npy"):
        np.save(path, array)
    elif path.name.endswith(".npz"):
        np.savez(path, volume=array)
    else:
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    return path


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.nii", "a.nii.gz"])
def test_axes_stay_as_stored(tmp_path: Path, name: str) -> None:
    volume = read_volume(write(tmp_path / name, ARRAY))
    assert volume.dtype == np.float32
    assert np.array_equal(volume, ARRAY[None, None])


@pytest.mark.parametrize("shape", [(2, 3, 4), (5, 2, 3, 4), (1, 5, 2, 3, 4)])
def test_missing_axes_are_added_in_front(tmp_path: Path, shape) -> None:
    assert read_volume(write(tmp_path / "a.npy", np.zeros(shape))).shape == (1,) * (5 - len(shape)) + shape


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.npy", np.zeros((3, 4)), "a volume is numeric and has the axes"),
        ("a.npy", np.array([[["x"]]]), "a volume is numeric"),
        ("a.npy", np.full((1, 1, 1), np.nan), "not finite"),
        ("a.npy", b"", "cannot be read as a volume"),
        ("a.npz", b"PK\x03\x04", "cannot be read as a volume"),
        ("a.nii.gz", b"nonsense", "cannot be read as a volume"),
        ("a.dcm", b"", "use .npy, .npz, .nii or .nii.gz"),
    ],
)
def test_files_that_are_no_volumes(tmp_path: Path, name: str, content, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else write(path, content)
    with pytest.raises(UsageError, match=says):
        read_volume(path)


def test_pickled_arrays_are_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UsageError, match="a volume is numeric"):
        read_volume(tmp_path / "a.npy")


NIFTI_AXES = {
    "channels": ((2, 3, 4, 5), (1, 5, 2, 3, 4)),
    "one channel": ((2, 3, 4, 1), (1, 1, 2, 3, 4)),
    "vectors": ((2, 3, 4, 1, 5), (1, 5, 2, 3, 4)),
    "time": ((2, 3, 4, 5, 1), (1, 5, 2, 3, 4)),
}


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("case", NIFTI_AXES)
def test_the_channels_of_nifti_are_its_last_axis(tmp_path: Path, case: str, name: str) -> None:
    stored, expected = NIFTI_AXES[case]
    array = np.arange(np.prod(stored), dtype=np.float32).reshape(stored)
    path = write(tmp_path / name, array)
    volume = read_volume(path)
    assert volume.shape == volume_shape(path) == expected
    assert np.array_equal(
        volume[0, -1], array[..., -1, 0] if case == "time" else array.reshape(*stored[:3], -1)[..., -1]
    )


def test_a_nifti_file_with_two_axes_of_channels_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", np.zeros((2, 3, 4, 5, 6), np.float32))
    with pytest.raises(UsageError, match=r"5 time points and 6 values per voxel"):
        read_volume(path)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.nii.gz"])
def test_the_shape_is_read_from_the_header(tmp_path: Path, name: str) -> None:
    """The voxels of a damaged file are not touched."""
    path = write(tmp_path / name, np.random.default_rng(0).random((5, 40, 30, 20)))
    expected = read_volume(path).shape
    assert volume_shape(path) == expected
    if not name.endswith("z"):
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(UsageError, match="cannot be read as a volume"):
            read_volume(path)


CHANNELS = {
    # file, stored axes, channels of the network, what is said
    "last": ("a.npy", (8, 8, 6, 2), 2, "its last axis looks like the channels"),
    "last, of two volumes": ("a.npz", (2, 8, 8, 6, 3), 3, "its last axis looks like the channels"),
    "last, but others": ("a.npy", (8, 8, 6, 4), 1, "its last axis, 4, looks like the channels"),
    "first, in NIfTI": ("a.nii.gz", (2, 8, 8, 6), 2, "the channels of a NIfTI file are its fourth axis"),
    "others": ("a.npy", (4, 8, 8, 8), 1, "has 4 channels, but the network takes 1$"),
    "none": ("a.npy", (8, 8, 8), 2, "has 1 channel, but the network takes 2$"),
}


@pytest.mark.parametrize("case", CHANNELS)
def test_other_channels_are_refused_with_what_is_likely_wrong(tmp_path: Path, case: str) -> None:
    name, stored, channels, says = CHANNELS[case]
    path = write(tmp_path / name, np.zeros(stored, np.float32))
    with pytest.raises(UsageError, match=says):
        check_channels(path, volume_shape(path), channels)


def test_normalisation() -> None:
    volume = np.random.default_rng(0).normal(7, 3, (1, 1, 4, 4, 4)).astype(np.float32)
    assert np.allclose(Normalisation(7, 2)(volume), (volume - 7) / 2)
    scored = Normalisation()(volume)
    assert abs(scored.mean()) < 1e-5
    assert abs(scored.std() - 1) < 1e-5
    with pytest.raises(UsageError, match="cannot be z-scored"):
        Normalisation()(np.ones((1, 1, 2, 2, 2), np.float32))


CONTRACT = ShapeContract.of((1, 1, 32, 32, 32), multiple=(16, 16, 16))


def test_a_volume_is_cut_to_the_centre_that_the_contract_takes() -> None:
    volume = np.random.default_rng(0).random((1, 1, 35, 48, 200), np.float32)
    assert np.array_equal(crop_to(CONTRACT, volume), volume[:, :, 1:33, :, 68:132])


@pytest.mark.parametrize("shape", [(1, 2, 32, 32, 32), (1, 1, 32, 15, 32)])
def test_a_volume_that_cannot_fit_is_refused(shape) -> None:
    with pytest.raises(ShapeError, match="of the sample is"):
        crop_to(CONTRACT, np.zeros(shape, np.float32))

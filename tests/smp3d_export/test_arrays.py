"""Volumes in memory: seeded ones, and whatever a user has as the one layout that backends take."""

from __future__ import annotations

import re

import numpy as np
import pytest
from layouts import layouts, refused

from smp3d_export.arrays import as_volume, volume
from smp3d_export.errors import UsageError


def test_they_are_seeded() -> None:
    assert np.array_equal(volume((1, 1, 9, 8, 7), 1), volume((1, 1, 9, 8, 7), 1))
    assert not np.array_equal(volume((1, 1, 9, 8, 7), 1), volume((1, 1, 9, 8, 7), 2))


@pytest.mark.parametrize("shape", [(1, 1, 32, 48, 16), (2, 3, 17, 1, 40)])
def test_they_are_smooth_with_noise(shape) -> None:
    image = volume(shape, 0)
    assert image.shape == shape
    assert image.dtype == np.float32
    assert abs(image.mean()) < 0.5
    assert 0.5 < image.std() < 2
    assert not np.array_equal(image[0, 0], image[-1, -1]) or shape[:2] == (1, 1)
    steps = np.diff(image, axis=4)
    assert steps.std() < image.std()


WHOLE = np.arange(2 * 1 * 4 * 3 * 2, dtype=np.float32).reshape(2, 1, 4, 3, 2)


@pytest.mark.parametrize("name", layouts(WHOLE))
def test_every_layout_becomes_native_contiguous_float32(name: str) -> None:
    found = as_volume(layouts(WHOLE)[name])
    assert type(found) is np.ndarray
    assert np.array_equal(found, WHOLE)
    assert found.dtype == np.float32
    assert found.dtype.isnative
    assert found.flags.c_contiguous
    assert found.flags.aligned
    assert found.flags.writeable
    assert found.strides == WHOLE.copy().strides


def test_what_is_right_already_is_not_copied() -> None:
    assert np.shares_memory(as_volume(WHOLE), WHOLE)


def test_broadcast_bool_and_special_values_are_data() -> None:
    assert as_volume(np.broadcast_to(np.True_, (1, 1, 2, 2, 2))).tolist() == np.ones((1, 1, 2, 2, 2)).tolist()
    found = as_volume(np.array([np.nan, np.inf, -np.inf, 1e-300]))
    assert np.array_equal(found, np.array([np.nan, np.inf, -np.inf, 0], np.float32), equal_nan=True)


@pytest.mark.parametrize("says", refused(WHOLE.shape))
def test_what_is_not_numbers_is_refused_by_name(says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        as_volume(refused(WHOLE.shape)[says])

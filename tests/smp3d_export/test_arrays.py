"""Seeded volumes: the same for the same seed, of a scan's scale, and smooth."""

from __future__ import annotations

import numpy as np
import pytest

from smp3d_export.arrays import volume


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

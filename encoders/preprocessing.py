"""An image or volume, prepared as those that the published weights were trained on. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from smp3d_export.errors import UsageError


def preprocess_input(
    x: np.ndarray,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_space: str = "RGB",
    input_range: Sequence[float] | None = None,
) -> np.ndarray:
    """Order, scale and normalise the channels; see `get_preprocessing_params` for the values.

    Args:
        x: (..., C) in the order RGB, from 0 to 255 or from 0 to 1; it is not changed. One channel is taken for all.
        mean: subtracted, per channel, after the scaling.
        std: divided by, per channel.
        input_space: `BGR` reverses the channels.
        input_range: where it ends at 1, an `x` that goes beyond is divided by 255.

    Raises:
        UsageError: `x` has another number of channels than `mean` or `std`.
    """
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and x.shape[-1] not in (1, len(values)):
            raise UsageError(f"the last axis of x is {x.shape[-1]}, but {name} has {len(values)} channels: move C last")
    if input_space == "BGR":
        x = np.flip(x, axis=-1).copy()
    if input_range is not None and input_range[1] == 1 and x.max() > 1:
        x = x / 255.0
    if mean is not None:
        x = x - np.asarray(mean)
    if std is not None:
        x = x / np.asarray(std)
    return x

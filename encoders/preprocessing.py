"""Prepare an image or volume like those that the published weights were trained on. Imports no torch."""

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
        x: (..., C), channels in RGB order, values 0 to 255 or 0 to 1; it is not changed. A single channel is broadcast.
        mean: per channel, subtracted after scaling.
        std: per channel; the result is divided by it.
        input_space: `BGR` reverses the channels.
        input_range: if it ends at 1, an `x` with larger values is divided by 255.

    Raises:
        UsageError: the number of channels of `x` is neither 1 nor the length of `mean` and `std`.
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

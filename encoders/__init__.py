"""Name -> encoder: the registry over the table of encoders. Importing it imports no torch."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from smp3d_export.encoders.catalogue import SPECS
from smp3d_export.encoders.spec import DEFAULT_STRIDES, STAGES, TIMM_PREFIX, EncoderSpec, as_strides
from smp3d_export.encoders.weights import no_weights, published_weights
from smp3d_export.errors import UsageError, unknown

if TYPE_CHECKING:
    import numpy as np

    from smp3d_export.encoders.base import Encoder

__all__ = [
    "ENCODERS",
    "EncoderSpec",
    "encoder_spec",
    "get_encoder",
    "get_encoder_names",
    "get_preprocessing_fn",
    "get_preprocessing_params",
]


TIMM_2D_PREFIX = "timm-"


def index(specs: Iterable[EncoderSpec]) -> Mapping[str, EncoderSpec]:
    """The rows by name. A duplicate name is a bug in the table."""
    by_name: dict[str, EncoderSpec] = {}
    for spec in specs:
        if by_name.setdefault(spec.name, spec) is not spec:
            raise RuntimeError(f"two encoders are called {spec.name!r}")
    return MappingProxyType(by_name)


ENCODERS = index(SPECS)


def encoder_spec(name: str) -> EncoderSpec:
    """The row of an encoder. For `tu-NAME` it comes from timm_3d, which is then imported.

    Raises:
        UsageError: no encoder has that name (the message suggests the nearest), or timm_3d is not installed.
    """
    if name.startswith(TIMM_PREFIX):
        return importlib.import_module("smp3d_export.encoders.timm").timm_spec(name)
    try:
        return ENCODERS[name]
    except KeyError:
        if name.startswith(TIMM_2D_PREFIX):
            raise no_timm_encoder(name) from None
        raise unknown("encoder", name, ENCODERS, "smp3d-export list encoders") from None


def no_timm_encoder(name: str) -> UsageError:
    """The error for a `timm-NAME` of the published package, with the encoder here that is the same or nearest."""
    network = name.removeprefix(TIMM_2D_PREFIX)
    # As near as resnest50d and resnet50: names less alike have nothing else in common.
    nearest = get_close_matches(network, ENCODERS, n=2, cutoff=0.75)
    hint = f" Nearest: {', '.join(nearest)}." if nearest else ""
    if network in ENCODERS:
        hint = f" The same network in 3D is {network}."
    return UsageError(
        f"there is no encoder {name!r}: in the published package, {TIMM_2D_PREFIX}NAME is a 2D network, which takes no "
        f"volumes.{hint} Models of timm_3d are called {TIMM_PREFIX}NAME, with pip install 'smp3d-export[timm]'. "
        "All: smp3d-export list encoders"
    )


def get_encoder_names() -> list[str]:
    return list(ENCODERS)


def get_encoder(
    name: str,
    in_channels: int = 3,
    depth: int = 5,
    weights: str | os.PathLike[str] | None = None,
    output_stride: int = 32,
    strides: Sequence[Sequence[int]] = DEFAULT_STRIDES,
) -> Encoder:
    """An encoder that maps (N, C, H, W, D) to a list of `depth + 1` feature maps, starting with the input.

    Args:
        name: a row of the table, as `smp3d-export list encoders` prints it, or `tu-NAME` for a model of timm_3d.
        in_channels: C of the input.
        depth: how many of the five stages run.
        weights: name of published weights (downloaded on first use), or a file or folder of weights.
        output_stride: 8 or 16 dilates the last stages, so that their maps shrink by no more than this.
        strides: one (H, W, D) triple per stage.

    Raises:
        UsageError: an argument is invalid (the message lists the valid ones), or the weights cannot be fetched.
        CheckpointError: the weights file cannot be read or belongs to another encoder.
    """
    spec = encoder_spec(name)
    if not 1 <= depth <= STAGES:
        raise UsageError(f"encoder_depth is {depth}; it must be 1 to {STAGES}")
    if in_channels < 1:
        raise UsageError(f"in_channels is {in_channels}; it must be at least 1")
    build = functools.partial(
        spec.build,
        in_channels=in_channels,
        depth=depth,
        strides=as_strides(strides, depth),
        output_stride=output_stride,
    )
    if weights is None:
        return build()
    return importlib.import_module("smp3d_export.encoders.published").load(spec, weights, build)


def get_preprocessing_params(encoder_name: str, pretrained: str = "imagenet") -> dict[str, Any]:
    """`input_space`, `input_range`, `mean` and `std` of the images that the published weights were trained on.

    Raises:
        UsageError: there is no such encoder, or it has no weights of that name.
    """
    weights = published_weights(encoder_spec(encoder_name).name).get(pretrained)
    if weights is None:
        raise no_weights(encoder_name, pretrained)
    return {
        "input_space": weights.input_space,
        "input_range": list(weights.input_range),
        "mean": list(weights.mean),
        "std": list(weights.std),
    }


def get_preprocessing_fn(encoder_name: str, pretrained: str = "imagenet") -> Callable[..., np.ndarray]:
    """A function that prepares a channels-last array like the images that the published weights were trained on.

    Raises:
        UsageError: there is no such encoder, or it has no weights of that name.
    """
    preprocess = importlib.import_module("smp3d_export.encoders.preprocessing").preprocess_input
    return functools.partial(preprocess, **get_preprocessing_params(encoder_name, pretrained))

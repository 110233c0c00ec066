"""Name -> encoder: the registry over the table of encoders. Importing it imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from smp3d_export.encoders.catalogue import SPECS
from smp3d_export.encoders.spec import DEFAULT_STRIDES, STAGES, EncoderSpec, as_strides
from smp3d_export.errors import UsageError, unknown

if TYPE_CHECKING:
    from smp3d_export.encoders.base import Encoder

__all__ = ["ENCODERS", "EncoderSpec", "encoder_spec", "get_encoder", "get_encoder_names"]


def index(specs: Iterable[EncoderSpec]) -> Mapping[str, EncoderSpec]:
    """The rows by name; a name that stands twice is an error of ours."""
    by_name: dict[str, EncoderSpec] = {}
    for spec in specs:
        if by_name.setdefault(spec.name, spec) is not spec:
            raise RuntimeError(f"two encoders are called {spec.name!r}")
    return MappingProxyType(by_name)


ENCODERS = index(SPECS)


def encoder_spec(name: str) -> EncoderSpec:
    """The row of an encoder.

    Raises:
        UsageError: no encoder has that name; the message has the nearest.
    """
    try:
        return ENCODERS[name]
    except KeyError:
        raise unknown("encoder", name, ENCODERS, "smp3d-export list encoders") from None


def get_encoder_names() -> list[str]:
    return list(ENCODERS)


def get_encoder(
    name: str,
    in_channels: int = 3,
    depth: int = 5,
    weights: str | None = None,
    output_stride: int = 32,
    strides: Sequence[Sequence[int]] = DEFAULT_STRIDES,
) -> Encoder:
    """An encoder that maps (N, C, H, W, D) to a list of `depth + 1` feature maps, the input being the first.

    Args:
        name: a row of the table, as `smp3d-export list encoders` prints it.
        in_channels: C of the input.
        depth: how many of the five stages run.
        weights: name of published weights.
        output_stride: 8 or 16 makes the last stages dilated, so that their maps are no smaller than by that.
        strides: a triple for H, W and D for each stage.

    Raises:
        UsageError: an argument that cannot be, with the ones that can.
    """
    spec = encoder_spec(name)
    if not 1 <= depth <= STAGES:
        raise UsageError(f"encoder_depth is {depth}; it must be 1 to {STAGES}")
    if in_channels < 1:
        raise UsageError(f"in_channels is {in_channels}; it must be at least 1")
    if weights is not None:
        raise UsageError(
            f"encoder_weights is {weights!r}, but published weights cannot be loaded yet: "
            "pass encoder_weights=None and load a checkpoint of your own"
        )
    encoder = spec.build(in_channels=in_channels, depth=depth, strides=as_strides(strides, depth))
    encoder.dilate(output_stride)
    return encoder

"""The columns of the encoder table, and the strides of an encoder. Imports no torch."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from smp3d_export.encoders.weights import published_weights
from smp3d_export.errors import UsageError

if TYPE_CHECKING:
    from smp3d_export.encoders.base import Encoder

Triple = tuple[int, int, int]
Strides = tuple[Triple, ...]

STAGES = 5
TIMM_PREFIX = "tu-"
DEFAULT_STRIDES: Strides = ((2, 2, 2),) * STAGES


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """One encoder of a family.

    `channels` has one entry for the feature map after each of the five stages. `parameters` counts the 3D weights with
    one input channel.
    """

    name: str
    channels: tuple[int, int, int, int, int]
    parameters: int

    family: ClassVar[str]
    implementation: ClassVar[str]
    """`module:class` of the family's encoder, imported when one is built."""
    stem: ClassVar[str]
    """Key of the weight whose second dimension is the number of input channels."""
    further_stems: ClassVar[tuple[str, ...]] = ()
    """Keys of other such weights, in families that feed the input into several convolutions."""
    classifier: ClassVar[tuple[str, ...]] = ()
    """Prefixes of keys in published weights that belong to the classifier, which an encoder does not have."""
    renames: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Regular expressions for older spellings of keys in published weights, each with its replacement."""
    unet_center: ClassVar[bool] = False
    """Whether a Unet puts two more convolutions between the encoder and its decoder."""
    undilatable: ClassVar[str | None] = None
    """Why the last stages cannot be dilated; None if they can."""
    entry_channels: ClassVar[int | None] = None
    """Channels of the full-size feature map, in families that have one; in the others that map is the input."""

    @property
    def has_first_map(self) -> bool:
        """Whether the first stage gives a feature map; Mix Vision Transformers start with the second."""
        return self.channels[0] > 0

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of its published weights."""
        return tuple(published_weights(self.name))

    def build(self, *, in_channels: int, depth: int, strides: Strides, output_stride: int = 32) -> Encoder:
        """The encoder for `in_channels` with `depth` stages; `strides` has one triple for each of the five stages."""
        module, _, name = self.implementation.partition(":")
        cls = getattr(importlib.import_module(f"smp3d_export.encoders.{module}"), name)
        encoder = cls(self, in_channels=in_channels, depth=depth, strides=strides)
        encoder.dilate(output_stride)
        return encoder


def as_strides(strides: Sequence[Sequence[int]], depth: int) -> Strides:
    """`strides` as five triples; stages after the first `depth` are not used and get stride 2.

    Raises:
        UsageError: there are fewer than `depth` or more than five triples, or a stride is not 1, 2, 3 or 4.
    """
    if not depth <= len(strides) <= STAGES:
        raise UsageError(
            f"strides has {len(strides)} triples; an encoder of depth {depth} takes {depth} to {STAGES}, "
            "written like 2,2,2/2,2,1/..."
        )
    triples = []
    for stage, stride in enumerate(strides, start=1):
        if len(stride) != 3 or any(s not in (1, 2, 3, 4) for s in stride):
            raise UsageError(
                f"stride {tuple(stride)} of stage {stage} must be three numbers (H, W, D), each 1, 2, 3 or 4"
            )
        triples.append((int(stride[0]), int(stride[1]), int(stride[2])))
    return tuple(triples[:depth]) + DEFAULT_STRIDES[depth:]


def product(strides: Sequence[Triple]) -> Triple:
    """The total stride per volume axis."""
    total = (1, 1, 1)
    for h, w, d in strides:
        total = (total[0] * h, total[1] * w, total[2] * d)
    return total

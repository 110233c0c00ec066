"""The table of published weights: where each lies and what its images looked like. Imports no torch."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from smp3d_export.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """Weights of a 2D encoder in a repository of the Hugging Face hub, at a pinned revision.

    The images that they were trained on had `input_space` as the order of their channels, and were scaled to
    `input_range` before `mean` was subtracted and `std` divided by.
    """

    repo_id: str
    revision: str
    mean: list[float]
    std: list[float]
    input_range: list[float]
    input_space: str = "RGB"


def published_weights(encoder: str) -> Mapping[str, PublishedWeights]:
    """The published weights of an encoder by name; none, for an encoder that the table lacks."""
    return table().get(encoder, {})


def no_weights(encoder: str, name: object, *, instead: str = "") -> UsageError:
    """The error for a `name` that no published weights of the encoder have; `instead` says what else it is not."""
    known = ", ".join(published_weights(encoder)) or "none"
    return UsageError(f"{encoder} has no published weights {str(name)!r}{instead}. It has: {known}")


@functools.cache
def table() -> dict[str, dict[str, PublishedWeights]]:
    rows = json.loads(Path(__file__).with_name("pretrained.json").read_text(encoding="utf-8"))
    return {
        encoder: {name: PublishedWeights(**facts) for name, facts in weights.items()}
        for encoder, weights in rows.items()
    }

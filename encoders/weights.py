"""The table of published weights: where to fetch them and how their training images were prepared. Imports no torch."""

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

    The training images had their channels in the order `input_space` and were scaled to `input_range`. Then `mean` was
    subtracted and the result divided by `std`.
    """

    repo_id: str
    revision: str
    mean: list[float]
    std: list[float]
    input_range: list[float]
    input_space: str = "RGB"


def published_weights(encoder: str) -> Mapping[str, PublishedWeights]:
    """The published weights of an encoder by name; empty for an encoder that is not in the table."""
    return table().get(encoder, {})


def no_weights(encoder: str, name: object, *, instead: str = "") -> UsageError:
    """The error for a `name` that is not among the encoder's published weights; `instead` says what else it is not."""
    known = ", ".join(published_weights(encoder)) or "none"
    return UsageError(f"{encoder} has no published weights {str(name)!r}{instead}. It has: {known}")


@functools.cache
def table() -> dict[str, dict[str, PublishedWeights]]:
    rows = json.loads(Path(__file__).with_name("pretrained.json").read_text(encoding="utf-8"))
    return {
        encoder: {name: PublishedWeights(**facts) for name, facts in weights.items()}
        for encoder, weights in rows.items()
    }

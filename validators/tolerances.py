"""How far an artifact may be from the eager fp32 network: a table by precision, and by target where it must differ."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """`relative` bounds the largest error as a part of the output's range; `labels` is the least agreement of labels.

    `reason` says why the bounds are these.
    """

    relative: float
    labels: float
    reason: str


TOLERANCES: dict[tuple[str, str | None], Tolerance] = {
    ("fp32", None): Tolerance(
        1e-4, 0.9999, "the order of float32 sums differs; through a hundred layers that stays below 1e-5 of the range"
    ),
}


def tolerance(precision: str, target: str) -> Tolerance:
    return TOLERANCES.get((precision, target)) or TOLERANCES[precision, None]

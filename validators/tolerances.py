"""How far an artifact may be from the eager fp32 network: a table by precision, and by target where it must differ."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """`relative` bounds the largest error as a part of the output's range; `labels` is the least agreement of labels.

    `dice` is the least Dice coefficient of a class between the two label maps; what is None is not asked for. `reason`
    says why the bounds are these.
    """

    relative: float | None
    labels: float | None
    reason: str
    dice: float | None = None

    def admits(self, relative: float, labels: float | None, dice: tuple[float, ...] | None) -> bool:
        """Whether a measurement is within the bounds; an output without voxels has neither labels nor Dice."""
        return (
            (self.relative is None or relative <= self.relative)
            and (self.labels is None or labels is None or labels >= self.labels)
            and (self.dice is None or dice is None or min(dice) >= self.dice)
        )

    def __str__(self) -> str:
        bounds = []
        if self.relative is not None:
            bounds.append(f"{self.relative:.0e}")
        if self.labels is not None:
            bounds.append(f"{self.labels:.2%} of the labels")
        if self.dice is not None:
            bounds.append(f"a Dice of {self.dice:g}")
        return " and ".join(bounds)


LOW = "a product of the low precision has 8 or 11 bits; what is lost adds up over a hundred layers, most at borders"

TOLERANCES: dict[tuple[str, str | None], Tolerance] = {
    ("fp32", None): Tolerance(
        1e-4, 0.9999, "the order of float32 sums differs; through a hundred layers that stays below 1e-5 of the range"
    ),
    ("fp16", None): Tolerance(3e-2, 0.995, LOW),
    ("bf16", None): Tolerance(3e-2, 0.995, LOW),
    ("tf32", None): Tolerance(3e-2, 0.995, LOW),
    ("int8", None): Tolerance(
        None, None, "single voxels may be far off; what counts is that the classes keep their regions", dice=0.97
    ),
}


def tolerance(precision: str, target: str) -> Tolerance:
    return TOLERANCES.get((precision, target)) or TOLERANCES[precision, None]

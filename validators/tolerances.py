"""How far an artifact may be from the eager fp32 network: a table by precision, and by target where it must differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from smp3d_export.validators.overlap import Overlap


@dataclass(frozen=True)
class Tolerance:
    """The bounds of a measurement; what is None is not asked for.

    Attributes:
        relative: the largest error, as a part of the output's range.
        labels: the least part of the voxels with the same label.
        reason: why the bounds are these.
        dice: the least Dice coefficient of a class between the two label maps.
        small: a class of fewer voxels is judged by voxels, not by Dice: as many may differ as in a class of this size.
    """

    relative: float | None
    labels: float | None
    reason: str
    dice: float | None = None
    small: int = 0

    @property
    def differing(self) -> int:
        """How many voxels of a small class may differ."""
        return 0 if self.dice is None else round(2 * self.small * (1 - self.dice))

    def is_small(self, overlap: Overlap) -> bool:
        """Whether a class is judged by voxels."""
        return overlap.size < self.small

    def keeps(self, overlap: Overlap) -> bool:
        """Whether a class is within the bounds."""
        if self.dice is None:
            return True
        return overlap.differing <= self.differing if self.is_small(overlap) else overlap.dice >= self.dice

    def admits(self, relative: float, labels: float | None, classes: Sequence[Overlap]) -> bool:
        """Whether a measurement is within the bounds; an output without voxels has neither labels nor classes."""
        return (
            (self.relative is None or relative <= self.relative)
            and (self.labels is None or labels is None or labels >= self.labels)
            and all(map(self.keeps, classes))
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
        None,
        None,
        "single voxels may be far off; what counts is that the classes keep their regions. In a class of few voxels a "
        "single one moves Dice too far, to 0 in a class that eager never predicts; the 12 voxels that may differ there "
        "are fewer than a ball of 3 voxels across has, the smallest finding",
        dice=0.97,
        small=200,
    ),
}


REPEATED = Tolerance(1e-3, 0.9999, "one program on one input, run twice: at most the order of sums differs")


def tolerance(precision: str, target: str) -> Tolerance:
    return TOLERANCES.get((precision, target)) or TOLERANCES[precision, None]

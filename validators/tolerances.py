"""How far an artifact may be from the eager fp32 network: a table by precision, and by target if that differs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from smp3d_export.validators.overlap import Overlap


@dataclass(frozen=True)
class Tolerance:
    """The bounds of a measurement. A bound that is None does not apply.

    Attributes:
        relative: the largest error, as a part of the output's range.
        labels: the smallest share of voxels with the same label.
        reason: why the bounds are these.
        dice: the smallest Dice coefficient of a class between the two label maps.
        small: a class with fewer voxels is judged by voxels, not Dice: as many may differ as in a class of this size.
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

    def missed(self, relative: float, labels: float | None, classes: Sequence[Overlap]) -> list[tuple[float, str]]:
        """The bounds that a measurement misses, worst first: the error as a multiple of what is allowed, and in words.

        An output without voxels has neither labels nor classes.
        """
        found = []
        if self.relative is not None and not relative <= self.relative:
            text = f"differs from eager by {relative:.1e} of its range, more than {self.relative:.0e}"
            found.append((relative / self.relative, text))
        if self.labels is not None and labels is not None and labels < self.labels:
            text = f"agrees with eager in {percent(labels)} of the labels, fewer than {percent(self.labels)}"
            found.append(((1 - labels) / (1 - self.labels), text))
        bound = 0.0 if self.dice is None else self.dice
        for overlap in classes if self.dice is not None else ():
            if self.is_small(overlap):
                if overlap.differing > self.differing:
                    text = (
                        f"differs in {overlap.differing} voxels of class {overlap.label}, which has {overlap.expected} "
                        f"voxels in eager's labels and {overlap.found} here; {self.differing} may differ"
                    )
                    found.append((overlap.differing / max(1, self.differing), text))
            elif overlap.dice < bound:
                text = f"has a Dice of {rounded_down(overlap.dice):g} in class {overlap.label}, less than {bound:g}"
                found.append(((1 - overlap.dice) / (1 - bound), text))
        return sorted(found, reverse=True)

    def __str__(self) -> str:
        bounds = []
        if self.relative is not None:
            bounds.append(f"{self.relative:.0e}")
        if self.labels is not None:
            bounds.append(f"{self.labels:.2%} of the labels")
        if self.dice is not None:
            bounds.append(f"a Dice of {self.dice:g}")
        return " and ".join(bounds)


def rounded_down(part: float) -> float:
    """A fraction to four decimals, never rounded up to a bound that it misses."""
    return math.floor(part * 1e4 + 1e-6) / 1e4


def percent(part: float) -> str:
    """A fraction in percent, never rounded up to 100 %."""
    return f"{math.floor(part * 1e4 + 1e-6) / 1e2:g} %"


LOW = "products have 8 or 11 bits; rounding adds up over a hundred layers, most of all at the borders of regions"

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

"""Parity: the artifact's outputs beside the eager network's, on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smp3d_export.validators.tolerances import Tolerance

Array = NDArray[Any]
Outputs = Mapping[str, Array]
Run = Callable[[NDArray[np.float32]], Outputs]


@dataclass(frozen=True)
class Case:
    """An input to compare on. `make` gives it when its turn comes; `skip` says why it is not run."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], NDArray[np.float32]]
    skip: str | None = None


@dataclass(frozen=True)
class Measurement:
    """How far one output is from the eager one.

    `largest` and `p999` (the 99.9th percentile) are absolute errors, `range` is that of the eager output. `relative` is
    the largest error as a part of it, or of a tenth of the largest absolute value where the output hardly varies.
    `labels` is the part of the voxels with the same label and `dice` the Dice coefficient of each class between the two
    label maps; None for an output that has no voxels.
    """

    case: str
    shape: tuple[int, ...]
    output: str
    largest: float
    p999: float
    range: float
    relative: float
    labels: float | None
    dice: tuple[float, ...] | None
    passed: bool


@dataclass(frozen=True)
class Parity:
    """The verdict: it passed where every measurement did, and at least one was made.

    `of` is what was compared: the `artifact`, or the ONNX `graph` that it was made of, where it cannot run here.
    """

    measurements: tuple[Measurement, ...]
    not_run: tuple[tuple[str, str], ...]
    tolerance: Tolerance
    of: str = "artifact"

    @property
    def passed(self) -> bool:
        return bool(self.measurements) and all(m.passed for m in self.measurements)

    @property
    def relative(self) -> float:
        """The worst largest error, as a part of the output's range."""
        return max((m.relative for m in self.measurements), default=float("nan"))

    @property
    def labels(self) -> float | None:
        """The worst agreement of labels."""
        return min((m.labels for m in self.measurements if m.labels is not None), default=None)

    @property
    def dice(self) -> float | None:
        """The worst Dice coefficient of a class."""
        return min((min(m.dice) for m in self.measurements if m.dice is not None), default=None)

    def with_case(self, other: Parity, what: str) -> Parity:
        """This and another's measurements, which are of the same cases in another way."""
        added = tuple(replace(m, case=f"{m.case}, {what}") for m in other.measurements)
        return replace(self, measurements=self.measurements + added)

    def shortfall(self) -> str:
        """What it fails by, in a line."""
        if not self.measurements:
            return "nothing could be compared"
        worst = max(self.measurements, key=lambda m: (not m.passed, m.relative))
        labels = "" if worst.labels is None else f" and {worst.labels:.4%} of the labels equal"
        return (
            f"{worst.output} differs from eager by {worst.relative:.1e} of its range{labels} at the {worst.case} shape "
            f"{worst.shape}; allowed are {self.tolerance}"
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "of": self.of,
            "relative": finite(self.relative),
            "labels": self.labels,
            "dice": self.dice,
            "tolerance": asdict(self.tolerance),
            "cases": [
                asdict(m) | {name: finite(getattr(m, name)) for name in ("largest", "p999", "range", "relative")}
                for m in self.measurements
            ],
            "not_run": [{"case": case, "reason": reason} for case, reason in self.not_run],
        }


class Reference:
    """The eager network's outputs, computed once for each case however many artifacts are compared."""

    def __init__(self, eager: Run, cases: Iterable[Case], *, label_threshold: float = 0.0, keep: bool = False) -> None:
        self.eager = eager
        self.cases = tuple(cases)
        self.label_threshold = label_threshold
        self._kept: dict[str, Outputs] | None = {} if keep else None

    def outputs(self, case: Case, image: NDArray[np.float32]) -> Outputs:
        if self._kept is None:
            return self.eager(image)
        if case.name not in self._kept:
            self._kept[case.name] = self.eager(image)
        return self._kept[case.name]


def compare(
    run: Run,
    reference: Reference,
    tolerance: Tolerance,
    step: Callable[[int, int, str], None] = lambda done, total, what: None,
    cases: Sequence[Case] | None = None,
) -> Parity:
    """Run an artifact on the cases of a reference, or some of them, and measure its outputs.

    `step` is told how far it is.
    """
    measurements: list[Measurement] = []
    cases = reference.cases if cases is None else cases
    for number, case in enumerate(cases):
        step(number, len(cases), case.name)
        if case.skip is not None:
            continue
        image = case.make()
        expected = reference.outputs(case, image)
        found = run(image)
        for name, eager in expected.items():
            measurements.append(
                measure(case, name, eager, found.get(name), tolerance, label_threshold=reference.label_threshold)
            )
    not_run = [(case.name, case.skip) for case in cases if case.skip is not None]
    return Parity(tuple(measurements), tuple(not_run), tolerance)


def measure(
    case: Case, name: str, eager: Array, found: Array | None, tolerance: Tolerance, *, label_threshold: float
) -> Measurement:
    """One output beside the eager one. A missing one, another shape, or a number that is not finite fails."""
    spread = float(eager.max()) - float(eager.min())
    if found is None or found.shape != eager.shape or not np.isfinite(found).all() or not np.isfinite(eager).all():
        worst = float("inf")
        return Measurement(case.name, case.shape, name, worst, worst, spread, worst, None, None, passed=False)
    # Rounding goes with the magnitude: of an output that hardly varies a tenth of that stands for the range.
    scale = max(spread, float(np.abs(eager).max()) / 10)
    error = np.abs(found - eager) if eager.dtype.kind == "f" else np.abs(found.astype(np.int64) - eager)
    largest = float(error.max())
    relative = largest / scale if scale > 0 else (0.0 if largest == 0 else float("inf"))
    labels = dice = None
    if eager.ndim > 2:
        ours, theirs = (label_map(array, label_threshold) for array in (found, eager))
        labels = float((ours == theirs).mean())
        dice = dice_per_class(
            ours, theirs, classes=max(2, eager.shape[1]) if eager.ndim == 5 else int(theirs.max()) + 1
        )
    return Measurement(
        case=case.name,
        shape=case.shape,
        output=name,
        largest=largest,
        p999=percentile(error, 0.999),
        range=spread,
        relative=relative,
        labels=labels,
        dice=dice,
        passed=tolerance.admits(relative, labels, dice),
    )


def label_map(masks: Array, threshold: float) -> Array:
    """The class of every voxel: masks (N, classes, H, W, D) to (N, H, W, D); class numbers stay as they are."""
    if masks.ndim == 4:
        return masks
    return masks.argmax(axis=1) if masks.shape[1] > 1 else (masks[:, 0] > threshold).astype(np.int64)


def dice_per_class(ours: Array, theirs: Array, classes: int) -> tuple[float, ...]:
    """Dice coefficient of each class between two label maps; 1 for a class that neither has."""
    scores = []
    for label in range(classes):
        a, b = ours == label, theirs == label
        size = int(a.sum()) + int(b.sum())
        scores.append(2 * int((a & b).sum()) / size if size else 1.0)
    return tuple(scores)


def percentile(values: Array, part: float) -> float:
    """The value below which `part` of the values lie, by partition: sorting a large volume takes seconds."""
    flat = values.ravel()
    index = min(flat.size - 1, int(part * flat.size))
    return float(np.partition(flat, index)[index])


def finite(value: float) -> float | None:
    """For JSON, which has no infinity."""
    return value if np.isfinite(value) else None

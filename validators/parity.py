"""Parity: the artifact's outputs compared with the eager network's, on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smp3d_export.contract import written
from smp3d_export.errors import ExportError, Smp3dExportError, out_of_memory, summary
from smp3d_export.validators.overlap import Array, Overlap, is_label_map, label_map, overlaps
from smp3d_export.validators.tolerances import REPEATED, Tolerance

Outputs = Mapping[str, Array]
Run = Callable[[NDArray[np.float32]], Outputs]
Step = Callable[[int, int, str], None]
"""Called with the number of finished cases, of all cases, and the name of the next."""


@dataclass(frozen=True)
class Case:
    """An input to compare on.

    Attributes:
        name: its name in messages.
        shape: its shape (N, C, H, W, D).
        make: makes the input when it is needed.
        skip: why it is not run; None if it is.
        real: the part along H, W and D that is compared; by default everything.
        made_up: why its voxels are not real. Then only the shape is proved: the outputs have the right shape, are
            finite, and come out the same in a second run. The error is noted but not judged.
    """

    name: str
    shape: tuple[int, ...]
    make: Callable[[], NDArray[np.float32]]
    skip: str | None = None
    real: tuple[slice, slice, slice] | None = None
    made_up: str | None = None


NUMBERS = ("largest", "p999", "range", "relative", "excess")
"""The fields of a measurement that may be infinite, which JSON cannot express."""


@dataclass(frozen=True)
class Measurement:
    """How far one output is from the eager one.

    Attributes:
        case, shape, output: what was compared.
        largest, p999: the largest absolute error, and the 99.9th percentile.
        range: the range of the eager output.
        relative: the largest error as a fraction of that range, or of a tenth of the largest absolute value if the
            output hardly varies.
        labels: the share of voxels with the same label; None for an output that has no voxels.
        dice: the Dice coefficient of each class between the two label maps; None for an output that has no voxels.
        passed: whether it is within the bounds.
        missed: the bounds that it misses, in words.
        excess: the worst error as a multiple of what is allowed, if it misses a bound.
        small: the classes that are judged by voxels, because they have too few for a Dice coefficient.
        problem: what is wrong with the output apart from its values, such as its shape.
        made_up: why the input's voxels are not real; then only the shape is proved.
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
    missed: tuple[str, ...] = ()
    excess: float = 0.0
    small: tuple[Overlap, ...] = ()
    problem: str | None = None
    made_up: str | None = None

    @property
    def worst_class(self) -> tuple[float, int] | None:
        """The smallest Dice coefficient and its class, among the classes that are judged by it."""
        small = {overlap.label for overlap in self.small}
        return min(((dice, label) for label, dice in enumerate(self.dice or ()) if label not in small), default=None)

    @property
    def shortfall(self) -> str:
        """Why it fails, in one line."""
        what = self.problem or "; ".join(self.missed)
        return f"{self.output} {what}, on the input {self.case!r} ({written(self.shape)})"


@dataclass(frozen=True)
class Parity:
    """The verdict: it passed if every measurement did, and at least one was made on real voxels.

    `of` is what was compared: the `artifact`, or the ONNX `graph` that it was made from if it cannot run here.
    """

    measurements: tuple[Measurement, ...]
    not_run: tuple[tuple[str, str], ...]
    tolerance: Tolerance
    of: str = "artifact"

    @property
    def judged(self) -> tuple[Measurement, ...]:
        """The measurements whose values count."""
        return tuple(m for m in self.measurements if m.made_up is None)

    @property
    def passed(self) -> bool:
        return bool(self.judged) and all(m.passed for m in self.measurements)

    @property
    def relative(self) -> float:
        """The worst largest error, as a fraction of the output's range."""
        return max((m.relative for m in self.judged), default=float("nan"))

    @property
    def labels(self) -> float | None:
        """The worst agreement of labels."""
        return min((m.labels for m in self.judged if m.labels is not None), default=None)

    @property
    def dice(self) -> float | None:
        """The worst Dice coefficient of a class that has enough voxels for one."""
        return min((m.worst_class[0] for m in self.judged if m.worst_class is not None), default=None)

    def with_cases(self, other: Parity, what: str) -> Parity:
        """Its measurements and another's, which are of the same cases in another way."""
        added = tuple(replace(m, case=f"{m.case}, {what}") for m in other.measurements)
        return replace(self, measurements=self.measurements + added)

    def shortfall(self) -> str:
        """Why it fails, in one line."""
        failed = [m for m in self.measurements if not m.passed]
        if not failed:
            return "nothing could be compared"
        return max(failed, key=lambda m: (m.problem is not None, m.excess)).shortfall

    def to_dict(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "of": self.of,
            "relative": finite(self.relative),
            "labels": self.labels,
            "dice": self.dice,
            "tolerance": asdict(self.tolerance),
            "cases": [asdict(m) | {name: finite(getattr(m, name)) for name in NUMBERS} for m in self.measurements],
            "not_run": [{"case": case, "reason": reason} for case, reason in self.not_run],
        }


class Reference:
    """The eager network's outputs, computed once per case for all artifacts."""

    def __init__(self, eager: Run, cases: Iterable[Case], *, label_threshold: float = 0.0, keep: bool = False) -> None:
        self._eager = eager
        self.cases = tuple(cases)
        self.label_threshold = label_threshold
        self._kept: dict[str, Outputs] | None = {} if keep else None

    def eager(self, image: NDArray[np.float32]) -> Outputs:
        """Run the network itself.

        Raises:
            ExportError: it failed.
        """
        try:
            return self._eager(image)
        except Smp3dExportError:
            raise
        except Exception as error:
            what = f"the network itself failed at the shape {written(image.shape)}"
            raise ExportError(f"{what}: {summary(error)}") from error

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
    step: Step = lambda done, total, what: None,
) -> Parity:
    """Run an artifact on the cases of a reference, and measure its outputs.

    `step` is called with the progress. A case that the reference has too little memory for is not run.

    Raises:
        RunError: the artifact failed.
        ExportError: the reference failed.
    """
    measurements: list[Measurement] = []
    not_run: list[tuple[str, str]] = []
    cases = reference.cases
    for number, case in enumerate(cases):
        step(number, len(cases), case.name)
        if case.skip is not None:
            not_run.append((case.name, case.skip))
            continue
        image = case.make()
        try:
            expected = reference.outputs(case, image)
        except ExportError as error:
            if not out_of_memory(error):
                raise
            not_run.append((case.name, f"there is not enough memory: {error}"))
            continue
        found = run(image)
        again = run(image) if case.made_up is not None else {}
        for name, eager in expected.items():
            measured = partial(measure, case, name, label_threshold=reference.label_threshold)
            result = measured(eager, found.get(name), tolerance)
            if case.made_up is not None and result.problem is None:
                repeated = measured(found[name], again[name], REPEATED)
                result = by_shape(result, case.made_up, repeated)
            measurements.append(result)
    return Parity(tuple(measurements), tuple(not_run), tolerance)


def by_shape(result: Measurement, made_up: str, repeated: Measurement) -> Measurement:
    """What a made-up input proves: the output has its shape, is finite, and comes out the same when `repeated`."""
    problem = None if repeated.passed else f"differs by {repeated.relative:.1e} of its range when it is run again"
    return replace(result, made_up=made_up, problem=problem, passed=problem is None, missed=(), excess=0.0, small=())


def measure(
    case: Case, name: str, eager: Array, found: Array | None, tolerance: Tolerance, *, label_threshold: float
) -> Measurement:
    """Compare one output with the eager one. A missing output, another shape or a value that is not finite fails."""
    problem = fault(eager, found)
    if found is None or problem is not None:
        worst = float("inf")
        labels, dice = (0.0, (0.0,)) if is_label_map(eager) else (None, None)  # none of them is known to be equal
        return Measurement(
            *(case.name, case.shape, name, worst, worst, float(np.ptp(eager)), worst, labels, dice),
            passed=False,
            problem=problem,
            made_up=case.made_up,
        )
    if case.real is not None and eager.ndim > 2:
        eager, found = (part(array, case) for array in (eager, found))
    spread = float(eager.max()) - float(eager.min())
    # Rounding grows with magnitude. If an output hardly varies, a tenth of its magnitude replaces the range.
    scale = max(spread, float(np.abs(eager).max()) / 10)
    error = np.abs(found - eager) if eager.dtype.kind == "f" else np.abs(found.astype(np.int64) - eager)
    largest = float(error.max())
    relative = largest / scale if scale > 0 else (0.0 if largest == 0 else float("inf"))
    labels, classes = None, ()
    if is_label_map(eager):
        ours, theirs = (label_map(array, label_threshold) for array in (found, eager))
        labels = float((ours == theirs).mean())
        classes = overlaps(ours, theirs, max(2, eager.shape[1]) if eager.ndim == 5 else None)
    missed = tolerance.missed(relative, labels, classes)
    return Measurement(
        case=case.name,
        shape=case.shape,
        output=name,
        largest=largest,
        p999=percentile(error, 0.999),
        range=spread,
        relative=relative,
        labels=labels,
        dice=tuple(overlap.dice for overlap in classes) or None,
        passed=not missed,
        missed=tuple(text for _, text in missed),
        excess=max((excess for excess, _ in missed), default=0.0),
        small=tuple(filter(tolerance.is_small, classes)),
    )


def fault(eager: Array, found: Array | None) -> str | None:
    """What is wrong with an output, other than its values; None if nothing is."""
    if found is None:
        return "is missing"
    if found.shape != eager.shape:
        return f"has the shape {written(found.shape)}, not {written(eager.shape)}"
    if not np.isfinite(eager).all():
        return "has values that are not finite in eager PyTorch itself"
    return None if np.isfinite(found).all() else "has values that are not finite"


def part(output: Array, case: Case) -> Array:
    """The real voxels of an output (..., H, W, D), whose sizes may differ from the input's."""
    assert case.real is not None
    cut = [
        slice(-(-real.start * size // whole), real.stop * size // whole)
        for real, size, whole in zip(case.real, output.shape[-3:], case.shape[-3:], strict=True)
    ]
    return output[..., *cut]


def percentile(values: Array, part: float) -> float:
    """The value below which `part` of the values lie. It partitions, because sorting a large volume takes seconds."""
    flat = values.ravel()
    index = min(flat.size - 1, int(part * flat.size))
    return float(np.partition(flat, index)[index])


def finite(value: float) -> float | None:
    """For JSON, which has no infinity."""
    return value if np.isfinite(value) else None

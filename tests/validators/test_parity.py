"""The measure itself: what it says of equal outputs, and that it fails what is not."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count

import numpy as np
import pytest

from smp3d_export.validators.overlap import label_map, overlaps
from smp3d_export.validators.parity import Case, Parity, Reference, compare, measure, percentile
from smp3d_export.validators.tolerances import TOLERANCES, Tolerance, tolerance

TIGHT = Tolerance(1e-4, 0.9999, "as fp32")
RNG = np.random.default_rng(0)
MASKS = RNG.normal(size=(1, 3, 8, 8, 8)).astype(np.float32)
CASE = Case("optimum", (1, 1, 8, 8, 8), lambda: np.zeros((1, 1, 8, 8, 8), np.float32))


def passes(eager: np.ndarray, found: np.ndarray | None, bound: Tolerance = TIGHT) -> bool:
    return measure(CASE, "masks", eager, found, bound, label_threshold=0).passed


def test_equal_outputs_pass() -> None:
    result = measure(CASE, "masks", MASKS, MASKS.copy(), TIGHT, label_threshold=0)
    assert result.passed
    assert (result.largest, result.relative, result.p999, result.labels) == (0, 0, 0, 1)
    assert result.dice == (1, 1, 1)


def test_one_voxel_over_the_bound_fails() -> None:
    found = MASKS.copy()
    spread = float(MASKS.max() - MASKS.min())
    found[0, 1, 2, 3, 4] += 0.9e-4 * spread
    assert passes(MASKS, found)
    found[0, 1, 2, 3, 4] += 0.3e-4 * spread
    assert not passes(MASKS, found)


def test_labels_fail_where_the_error_is_allowed() -> None:
    assert not passes(MASKS, MASKS + RNG.normal(size=MASKS.shape).astype(np.float32), Tolerance(9, 0.99, ""))


@pytest.mark.parametrize(
    "found",
    [None, MASKS[:, :2], np.full_like(MASKS, np.nan), np.zeros_like(MASKS), np.full_like(MASKS, np.inf)],
    ids=["missing", "other shape", "nan", "all black", "infinite"],
)
def test_broken_outputs_fail(found) -> None:
    assert not passes(MASKS, found)


def test_outputs_that_hardly_vary_are_held_to_their_magnitude() -> None:
    flat = np.full_like(MASKS, 3.0)
    assert passes(flat, flat + np.float32(1e-5))
    assert not passes(flat, flat + np.float32(1e-4))
    black = np.zeros_like(MASKS)
    assert passes(black, black.copy())
    assert not passes(black, black + np.float32(1e-9))


def test_labels() -> None:
    assert np.array_equal(label_map(MASKS, 0), MASKS.argmax(1))
    assert np.array_equal(label_map(MASKS[:, :1], 0.5), MASKS[:, 0] > 0.5)
    numbers = MASKS.argmax(1)
    assert label_map(numbers, 0) is numbers
    assert measure(CASE, "masks", numbers, numbers.copy(), TIGHT, label_threshold=0).dice == (1, 1, 1)


def test_dice() -> None:
    ours, theirs = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    assert [each.dice for each in overlaps(ours, theirs, 3)] == [2 / 3, 0.8, 1.0]
    assert [each.differing for each in overlaps(ours, theirs)] == [1, 1]


# Of a volume of 4096 voxels: those of class 2 for the eager network and for the artifact, and whether int8 passes.
INT8 = tolerance("int8", "onnx")
SMALL_CLASSES = {
    "one voxel of a class that eager never predicts": ((0, 0), (0, 1), True),
    "one of three voxels": ((0, 3), (0, 2), True),
    "one voxel, elsewhere": ((0, 1), (1, 2), True),
    "a ball of three voxels across, lost": ((0, 14), (0, 0), False),
    "a ball of three voxels across, found": ((0, 0), (0, 14), False),
    "all of what may differ": ((0, 190), (0, 202), True),
    "more than that": ((0, 190), (0, 203), False),
    "as many, of more, by Dice": ((0, 205), (6, 211), True),
    "more, by Dice": ((0, 205), (7, 212), False),
}


def masks_with(voxels: tuple[int, int]) -> np.ndarray:
    """Class 2 at these voxels, and a half each of the others."""
    labels = np.arange(4096) % 2
    labels[slice(*voxels)] = 2
    return np.eye(3, dtype=np.float32)[labels].T.reshape(1, 3, 16, 16, 16)


@pytest.mark.parametrize("case", SMALL_CLASSES)
def test_a_class_of_few_voxels_is_judged_by_voxels(case: str) -> None:
    eager, found, passed = SMALL_CLASSES[case]
    result = measure(CASE, "masks", masks_with(eager), masks_with(found), INT8, label_threshold=0)
    assert result.passed == passed
    expected, ours = (stop - start for start, stop in (eager, found))
    assert [(each.label, each.expected, each.found) for each in result.small] == (
        [(2, expected, ours)] if expected + ours < 400 else []
    )
    if not passed:
        says = "voxels of class 2, which has" if result.small else "has a Dice of 0.96"
        assert says in result.shortfall


def test_the_worst_dice_is_of_the_classes_that_are_judged_by_it() -> None:
    run = partial(compare, lambda image: {"masks": masks_with((0, 1))}, tolerance=INT8)
    parity = run(Reference(lambda image: {"masks": masks_with((0, 0))}, [CASE]))
    assert parity.passed
    assert 0.99 < (parity.dice or 0) < 1
    (case,) = parity.to_dict()["cases"]
    assert case["dice"][2] == 0
    assert list(case["small"]) == [{"label": 2, "expected": 0, "found": 1, "common": 0}]


def made_up(run: Callable[[int], np.ndarray], real: bool = True) -> Parity:
    """A real case, and one whose voxels are not; `run` gives the masks of a call by its number."""
    calls = count()
    cases = [CASE] * real + [replace(CASE, name="maximum", made_up="it is larger than every volume")]
    return compare(lambda image: {"masks": run(next(calls))}, Reference(lambda image: {"masks": MASKS}, cases), INT8)


def test_values_on_voxels_that_are_made_up_do_not_count() -> None:
    parity = made_up(lambda call: -MASKS if call else MASKS)
    assert parity.passed
    assert (parity.relative, parity.labels) == (0, 1)
    case = parity.to_dict()["cases"][1]
    assert case["made_up"] == "it is larger than every volume"
    assert case["labels"] < 0.5, "but they are noted"


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (lambda call: -MASKS * call + (1 - call) * MASKS, "differs by .* of its range when it is run again"),
        (
            lambda call: MASKS[..., :4] if call else MASKS,
            "has the shape 1,3,8,8,4, not 1,3,8,8,8",
        ),
        (lambda call: np.full_like(MASKS, np.nan) if call else MASKS, "has values that are not finite"),
    ],
    ids=["another result", "another shape", "not finite"],
)
def test_on_voxels_that_are_made_up_the_rest_counts(run, says: str) -> None:
    parity = made_up(run)
    assert not parity.passed
    assert re.search(f"masks {says}, on the input 'maximum'", parity.shortfall())


def test_made_up_voxels_alone_are_no_proof() -> None:
    parity = made_up(lambda call: MASKS, real=False)
    assert not parity.passed
    assert parity.shortfall() == "nothing could be compared"


def test_only_the_real_part_of_an_input_is_compared() -> None:
    found = MASKS.copy()
    found[..., 4:] = 7
    case = replace(CASE, real=(slice(0, 8), slice(0, 8), slice(0, 4)))
    assert measure(case, "masks", MASKS, found, TIGHT, label_threshold=0).passed
    found[..., 3] = 7
    assert not measure(case, "masks", MASKS, found, TIGHT, label_threshold=0).passed


def test_percentile() -> None:
    assert percentile(np.arange(1000.0), 0.999) == 999
    assert percentile(np.array([5.0]), 0.999) == 5


def test_eager_runs_once_for_each_case_however_many_artifacts() -> None:
    calls = []

    def eager(image):
        calls.append(image.shape)
        return {"masks": MASKS}

    skipped = Case("maximum", (2, 1, 8, 8, 8), lambda: pytest.fail("made"), skip="no memory")
    reference = Reference(eager, [CASE, skipped], keep=True)
    for _ in range(2):
        parity = compare(lambda image: {"masks": MASKS}, reference, TIGHT)
        assert parity.passed
        assert parity.not_run == (("maximum", "no memory"),)
    assert len(calls) == 1


def test_nothing_compared_is_no_pass() -> None:
    assert not compare(lambda image: {}, Reference(lambda image: {}, []), TIGHT).passed


def test_every_row_of_the_table_has_its_reason() -> None:
    assert all(row.reason for row in TOLERANCES.values())
    assert tolerance("fp32", "onnx").relative == 1e-4

"""The measure itself: what it says of equal outputs, and that it fails what is not."""

from __future__ import annotations

import numpy as np
import pytest

from smp3d_export.validators.parity import Case, Reference, compare, dice_per_class, label_map, measure, percentile
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
    assert dice_per_class(ours, theirs, 3) == (2 / 3, 0.8, 1.0)


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

"""The verdict table as a terminal of 80 columns shows it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from smp3d_export.errors import ParityError
from smp3d_export.report import console
from smp3d_export.validators.parity import Case, Parity, Reference, compare
from smp3d_export.validators.tolerances import tolerance
from smp3d_export.validators.verdict import Report, Verdict

MASKS = np.random.default_rng(0).normal(size=(1, 2, 8, 8, 8)).astype(np.float32)


def parity(precision: str, *found: np.ndarray) -> Parity:
    """The verdict on outputs, one for each case; the last case is the worst."""
    outputs = iter(found)
    cases = [Case(name, MASKS.shape, lambda: MASKS) for name in ("optimum", "minimum", "maximum")[: len(found)]]
    return compare(lambda image: {"masks": next(outputs)}, Reference(lambda _: {"masks": MASKS}, cases),
                   tolerance(precision, "onnx"))  # fmt: skip


def shown(*verdicts: Verdict, width: int = 80, speed: bool = True) -> str:
    terminal = Console(width=width, force_terminal=False, record=True, file=None, quiet=False)
    with terminal.capture() as capture:
        console.show(Report(network="unet/resnet18", verdicts=verdicts), terminal, speed=speed)
    return capture.get()


def verdict(measured: Parity, target: str = "onnx", **more) -> Verdict:
    error = None if measured.passed else ParityError(measured.shortfall())
    return Verdict(target=target, precision="fp32", folder=Path("net"), parity=measured, error=error, **more)


NAN = np.where(np.arange(8) < 1, np.float32(np.nan), MASKS)


def test_an_output_that_is_not_finite_has_no_labels_in_common() -> None:
    measured = parity("fp32", MASKS, NAN)
    (row,) = (line for line in shown(verdict(measured)).splitlines() if line.startswith("  onnx"))
    assert "100 %" not in row
    assert "0 %" in row
    assert measured.to_dict()["labels"] == 0
    assert measured.to_dict()["relative"] is None


SOME = np.where(np.arange(8) < 1, -MASKS, MASKS)


@pytest.mark.parametrize(
    ("precision", "found", "says"),
    [
        ("fp32", (MASKS, MASKS + np.float32(0.1) * np.ptp(MASKS)), "differs from eager by 1.0e-01 of its range, more "
         "than 1e-04, on the input 'minimum' (1,2,8,8,8)"),
        ("fp32", (SOME,), "; agrees with eager in 87.5 % of the labels, fewer than 99.99 %, on the input"),
        ("int8", (MASKS, SOME), "has a Dice of 0.8"),
        ("int8", (MASKS, SOME), ", less than 0.97, on the input 'minimum'"),
        ("int8", (MASKS * 3, SOME), ", less than 0.97, on the input 'minimum'"),
        ("fp32", (MASKS, NAN), "masks has values that are not finite, on the input 'minimum'"),
        ("int8", (SOME, NAN), "masks has values that are not finite, on the input 'minimum'"),
        ("fp32", (MASKS[:, :, :4],), "masks has the shape 1,2,4,8,8, not 1,2,8,8,8, on the input 'optimum'"),
    ],
)  # fmt: skip
def test_what_a_verdict_fails_by_is_what_missed_its_bound(precision: str, found, says: str) -> None:
    text = parity(precision, *found).shortfall()
    assert says in text
    assert ("of its range" in text) == (precision == "fp32" and "differs" in text)

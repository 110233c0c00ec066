"""The verdict table as a terminal of 80 columns shows it."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from smp3d_export.errors import ParityError
from smp3d_export.progress import Reporter
from smp3d_export.report import console, timings
from smp3d_export.validators.bench import Bench, Row
from smp3d_export.validators.parity import Case, Parity, Reference, compare
from smp3d_export.validators.throughput import Ratio, Throughput, Timing
from smp3d_export.validators.tolerances import tolerance
from smp3d_export.validators.verdict import Report, Verdict

MASKS = np.random.default_rng(0).normal(size=(1, 2, 8, 8, 8)).astype(np.float32)


def parity(precision: str, *found: np.ndarray) -> Parity:
    """The verdict on outputs, one for each case; the last case is the worst."""
    outputs = iter(found)
    cases = [Case(name, MASKS.shape, lambda: MASKS) for name in ("optimum", "minimum", "maximum")[: len(found)]]
    return compare(lambda image: {"masks": next(outputs)}, Reference(lambda _: {"masks": MASKS}, cases),
                   tolerance(precision, "onnx"))  # fmt: skip


def shown(*verdicts: Verdict, speed: bool = True) -> str:
    file = io.StringIO()
    console.show(Report(network="unet/resnet18", verdicts=verdicts), Console(file=file, width=80), speed=speed)
    return file.getvalue()


def verdict(measured: Parity, target: str = "onnx", **more) -> Verdict:
    error = None if measured.passed else ParityError(measured.shortfall())
    return Verdict(target=target, precision="fp32", folder=Path("net"), files=("model.onnx",), parity=measured,
                   error=error, **more)  # fmt: skip


NAN = np.where(np.arange(8) < 1, np.float32(np.nan), MASKS)


def test_an_output_that_is_not_finite_has_no_labels_in_common() -> None:
    measured = parity("fp32", MASKS, NAN)
    (row,) = (line for line in shown(verdict(measured)).splitlines() if line.startswith("  onnx"))
    assert "100 %" not in row
    assert "0 %" in row
    assert measured.to_dict()["labels"] == 0
    assert measured.to_dict()["relative"] is None


TIMING = Timing(first=2.0, p50=1.2134, p90=1.3, p99=1.4, voxels_per_second=1e6)
RATIO = Ratio(1.9234, (1.8812, 1.9567))
SPEED = Throughput(
    shape=(1, 1, 8, 8, 8),
    rounds=5,
    threads=1,
    artifact=TIMING,
    baselines={"eager": TIMING, "eager autocast": TIMING},
    ratios={"eager": RATIO, "eager autocast": RATIO},
    cores=64,
)


def test_columns_of_speed_are_there_if_it_was_asked_for() -> None:
    passed = parity("fp32", MASKS)
    without = shown(verdict(passed), speed=False)
    assert "not run" not in without
    assert "speed-up" not in without
    asked = shown(verdict(passed, throughput=SPEED), verdict(passed, "trt", not_run="there is no GPU"))
    assert "speed-up" in asked
    assert "not run" in asked


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_it_fits_into_80_columns_and_what_wraps_stays_indented(precision: str) -> None:
    long = "this machine has no NVIDIA GPU with a driver, and a reason that is longer than a line of a terminal is"
    on_graph = replace(parity(precision, MASKS, MASKS), of="graph", not_run=(("maximum", long),))
    text = shown(
        verdict(
            parity(precision, MASKS, SOME), {"fp32": "torchscript", "int8": "openvino"}[precision], throughput=SPEED
        ),
        verdict(on_graph, "trt-rtx", not_run=long),
        verdict(replace(on_graph, of="artifact"), "openvino", throughput=SPEED),
    )
    table, *folders = text.rstrip().split("\n\n")
    assert max(map(len, text.splitlines())) <= 80
    assert len([line for line in table.splitlines() if line.startswith("  ")]) == len(table.splitlines())
    assert folders[-1].splitlines() == ["net/: model.onnx"] * 3


@pytest.mark.parametrize(
    ("terminal", "no_color", "coloured"), [(True, "", True), (True, "1", False), (False, "", False)]
)
def test_colours_are_for_terminals_that_want_them(
    terminal: bool, no_color: str, coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm-256color")
    file = io.StringIO()
    console.show(
        Report(network="net", verdicts=(verdict(parity("fp32", MASKS, SOME)),)),
        Console(force_terminal=terminal, file=file, width=80),
    )
    assert ("\x1b[31m" in file.getvalue() or "\x1b[32m" in file.getvalue()) == coloured


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


def test_a_stage_is_a_line_of_80_columns_whose_detail_wraps_in_its_column() -> None:
    file = io.StringIO()
    with Reporter(Console(file=file, width=80)).stage("torchscript") as stage:
        stage.detail = "a short one"
    with Reporter(Console(file=file, width=80)).stage("onnx") as stage:
        stage.detail = ", ".join(f"{number}.0 ms variant" for number in range(8))
    first, second, *more = file.getvalue().splitlines()
    assert first.startswith("  ✓ torchscript a short one ")
    assert first.endswith(" s")
    assert second.startswith("  ✓ onnx        0.0 ms variant")
    assert more
    assert all(line.startswith(" " * 16) for line in more)
    assert {len(line) for line in (first, second)} == {77}


def test_timings_fit_into_80_columns() -> None:
    names = ("eager", "best eager", "onnx", "openvino", "torchscript")
    rows = [
        Row(name, shape, TIMING, 5, 123.4, 0.5, None if name == "eager" else RATIO, 10**9)
        for shape in ((1, 1, 8, 8, 8), (1, 1, 256, 256, 128))
        for name in names
    ]
    precisions: dict[str, str] = dict.fromkeys(names[2:], "fp32")
    file = io.StringIO()
    timings.show(Bench("eager", 2, precisions, 130.0, tuple(rows)), Console(file=file, width=80))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert len([line for line in lines if "1.92×" in line]) == 2 * (len(names) - 1), "no row wraps"

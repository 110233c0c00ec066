"""The report for a terminal, in 80 columns."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from smp3d_export.validators.parity import Parity
from smp3d_export.validators.throughput import Ratio
from smp3d_export.validators.tolerances import percent, rounded_down
from smp3d_export.validators.verdict import Report, Verdict

NOT_RUN = "not run"


def show(report: Report, console: Console, *, speed: bool = True) -> None:
    """Print the verdict table, what was not run, what failed, and where the artifacts are.

    `speed` says whether speed was requested, and so gets columns.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("  target")
    table.add_column("precision")
    table.add_column("largest error", justify="right")
    baseline = next((verdict.throughput.against for verdict in report.verdicts if verdict.throughput), "eager")
    table.add_column("labels", justify="right")
    if speed:
        for heading in (baseline, "here"):
            table.add_column(heading, justify="right")
        table.add_column("speed-up")
    for verdict in report.verdicts:
        table.add_row(*row(verdict)[: len(table.columns)])
    console.print(table)
    for verdict in report.verdicts:
        for line, colour in remarks(verdict):
            remark(console, line, colour)
    measured = next((verdict.throughput for verdict in report.verdicts if verdict.throughput), None)
    if measured is not None and (measured.cores or 0) > measured.threads:
        remark(
            console,
            f"timed on {measured.threads} of {measured.cores} cores; --threads {measured.cores} uses all",
            "dim",
        )
    folders = [f"{verdict.folder}/: {', '.join(verdict.files)}" for verdict in report.verdicts if verdict.folder]
    if folders:
        console.print("\n" + "\n".join(folders), markup=False, highlight=False, soft_wrap=True)


def remark(console: Console, text: str, style: str) -> None:
    """Print a remark under the table, indented on every line."""
    grid = Table.grid()
    grid.add_column()
    grid.add_column(overflow="fold")  # a path that is longer than a line is needed whole
    grid.add_row("  ", Text(text, style=style))
    console.print(grid)


def remarks(verdict: Verdict) -> Iterator[tuple[str, str]]:
    """Remarks on a verdict that do not fit into its row, each with a colour."""
    parity, target = verdict.parity, verdict.label
    if verdict.not_run is not None and verdict.error is None:
        yield f"{target}: {NOT_RUN}: {verdict.not_run}", "yellow"
    if parity is not None and parity.of == "graph" and parity.measurements:
        passes = "passes" if parity.passed else "fails"
        error = f"largest error {agreement(parity)}, labels {labels(parity)}"
        colour = "green" if parity.passed else "red"
        yield f"{target}: the ONNX graph it was made from {passes} parity: {error}", colour
    for case, reason in parity.not_run if parity is not None and verdict.not_run is None else ():
        yield f"{target}: parity at the {case} shape {NOT_RUN}: {reason}", "yellow"
    for line in judged_otherwise(parity) if parity is not None else ():
        yield f"{target}: {line}", ""
    if verdict.throughput is not None:
        if verdict.throughput.speedup < 1:
            yield f"{target}: slower than {verdict.throughput.against}", "red"
        for name, timing in list(verdict.throughput.baselines.items())[1:]:
            speed, _ = speedup(verdict.throughput.ratios[name])
            yield f"{target}: {speed} against {name}, {milliseconds(timing.p50)}", ""
    if verdict.error is not None:
        yield f"✗ {target}: {verdict.error}", "red"


def judged_otherwise(parity: Parity) -> Iterator[str]:
    """What was not judged by a Dice coefficient: classes of few voxels, and inputs that are made up."""
    small: dict[str, list[str]] = {}
    for measured in parity.judged if parity.tolerance.dice is not None else ():
        for overlap in measured.small:
            small.setdefault(f"class {overlap.label}", []).append(measured.case)
    bounds = parity.tolerance
    for name, cases in small.items():
        where = ", ".join(dict.fromkeys(cases))
        yield (
            f"{name} has fewer than {bounds.small} voxels on the input {where}, so it is judged by voxels: "
            f"{bounds.differing} may differ"
        )
    made_up = {m.case: m.made_up for m in parity.measurements if m.made_up is not None}
    for case, reason in made_up.items():
        yield f"on the input {case} only the shape of the outputs and a second run are checked: {reason}"


def row(verdict: Verdict) -> tuple[str, ...]:
    parity, throughput = verdict.parity, verdict.throughput
    cells = [f"  {verdict.label}", verdict.precision]
    if parity is None or parity.of == "graph" or not parity.measurements:
        cells += [NOT_RUN, NOT_RUN]
    else:
        cells += [f"[{'green' if parity.passed else 'red'}]{agreement(parity)}[/]", labels(parity)]
    if throughput is None:
        return (*cells, NOT_RUN, NOT_RUN, NOT_RUN)
    speed, colour = speedup(throughput.ratios[throughput.against])
    cells += [milliseconds(throughput.baseline.p50), milliseconds(throughput.artifact.p50)]
    return (*cells, f"[{colour}]{speed}[/]")


def agreement(parity: Parity) -> str:
    """The worst measurement and its bound: the largest error, or the Dice coefficient if that decides."""
    bounds = parity.tolerance
    if bounds.relative is not None:
        return f"{parity.relative:.0e} of {bounds.relative:.0e}"
    if bounds.dice is None:
        return f"{parity.relative:.0e}"
    return "by voxels" if parity.dice is None else f"Dice {rounded_down(parity.dice):.4f} of {bounds.dice}"


def labels(parity: Parity) -> str:
    """The share of voxels with the same label, at worst."""
    return "–" if parity.labels is None else percent(parity.labels)


def speedup(ratio: Ratio) -> tuple[str, str]:
    """A ratio with its interval, and its colour."""
    low, high = ratio.interval
    return f"{ratio.speedup:.3g}× {low:.3g}–{high:.3g}", "green" if ratio.speedup >= 1 else "red"


def milliseconds(seconds: float) -> str:
    """A time with about three digits, in seconds from 10 s up."""
    if seconds >= 10:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.01 else f"{seconds * 1e3:.1f} ms"

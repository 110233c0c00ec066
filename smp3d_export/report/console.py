"""The report as a terminal shows it, in 80 columns."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table

from smp3d_export.report import Report, Verdict

NOT_RUN = "not run"


def show(report: Report, console: Console) -> None:
    """Print the verdict table, what was not run, what failed, and where the artifacts are."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("  target")
    table.add_column("precision")
    table.add_column("largest error", justify="right")
    baseline = next((verdict.throughput.against for verdict in report.verdicts if verdict.throughput), "eager")
    for heading in ("labels", baseline, "here"):
        table.add_column(heading, justify="right")
    table.add_column("speed-up")
    for verdict in report.verdicts:
        table.add_row(*row(verdict))
    console.print(table)
    for verdict in report.verdicts:
        if verdict.not_run is not None:
            graph = ""
            if verdict.parity is not None and verdict.parity.measurements:
                sign = "agrees" if verdict.parity.passed else "does not agree"
                graph = f"; its graph {sign} in ONNX Runtime"
            why = f"  {verdict.target}: {NOT_RUN}, for {verdict.not_run}{graph}"
            console.print(why, style="yellow", markup=False, highlight=False)
        for case, reason in verdict.parity.not_run if verdict.parity else ():
            console.print(f"  parity at the {case} shape: {NOT_RUN}, for {reason}", style="yellow", highlight=False)
        if verdict.error is not None:
            console.print(f"  ✗ {verdict.target}: {verdict.error}", style="red", markup=False, highlight=False)
    for verdict in report.verdicts:
        if verdict.folder is not None:
            console.print(
                f"\n{verdict.folder}/: {', '.join(verdict.files)}", markup=False, highlight=False, soft_wrap=True
            )


def row(verdict: Verdict) -> tuple[str, ...]:
    parity, throughput = verdict.parity, verdict.throughput
    cells = [f"  {verdict.target}", verdict.precision]
    if parity is None:
        cells += [NOT_RUN, NOT_RUN]
    else:
        bound = parity.tolerance.relative
        error = f"{parity.relative:.0e}" + (f" of {bound:.0e}" if bound is not None else "")
        cells += [f"[{'green' if parity.passed else 'red'}]{error}[/]", percent(parity.labels)]
    if throughput is None:
        return (*cells, NOT_RUN, NOT_RUN, NOT_RUN)
    low, high = throughput.interval
    colour = "green" if throughput.speedup >= 1 else "red"
    slower = " slower" if throughput.speedup < 1 else ""
    speed = f"[{colour}]{throughput.speedup:.3g}×[/] {low:.3g}–{high:.3g}{slower}"
    return (*cells, milliseconds(throughput.baseline.p50), milliseconds(throughput.artifact.p50), speed)


def percent(part: float | None) -> str:
    """Never rounded up to all of them."""
    if part is None:
        return "–"
    return f"{math.floor(part * 1e6) / 1e4:g} %"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.01 else f"{seconds * 1e3:.1f} ms"

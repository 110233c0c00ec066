"""The timings of `bench` for a terminal, in 80 columns."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from smp3d_export.report.console import milliseconds, speedup
from smp3d_export.validators.bench import BEST_EAGER, MATRIX_SIZE, Bench, Row


def show(result: Bench, console: Console) -> None:
    """Print a table for each shape, then what applies to all of them."""
    for shape in dict.fromkeys(row.shape for row in result.rows):
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        console.print(" × ".join(map(str, shape)), style="bold", highlight=False)
        table.add_column("")
        for heading in ("p50", "p90", "p99", "first", "Mvoxel/s", "GFLOP/s"):
            table.add_column(heading, justify="right")
        table.add_column(f"against {result.against}")
        for row in result.rows:
            if row.shape == shape:
                table.add_row(*cells(row))
        console.print(table)
        for row in result.rows:
            if row.shape == shape and row.peak_memory:
                console.print(memory(row), highlight=False)
        console.print()
    precisions = ", ".join(f"{name} {precision}" for name, precision in result.precisions.items())
    console.print(f"{precisions} · {result.threads} threads", highlight=False)
    console.print(
        f"GFLOP/s count the network as captured. A {MATRIX_SIZE}² matrix product in fp32 reached "
        f"{result.matrix_gflops:.0f} GFLOP/s in the same rounds.",
        highlight=False,
    )
    if any(row.name == BEST_EAGER for row in result.rows):
        console.print(
            f"{BEST_EAGER}: eager PyTorch with the rewrites of artifacts, in channels-last-3d", highlight=False
        )


def memory(row: Row) -> str:
    """The peak memory of a side in a line."""
    on_gpu = "" if row.device_peak is None else f", and {row.device_peak / 1e9:.2f} GB on the GPU"
    return f"{row.name}: {(row.peak_memory or 0) / 1e9:.2f} GB of peak memory, alone in a process{on_gpu}"


def cells(row: Row) -> tuple[str, ...]:
    timing = row.timing
    times = [milliseconds(seconds) for seconds in (timing.p50, timing.p90, timing.p99, timing.first)]
    gflops = "–" if row.gflops is None else f"{row.gflops:.3g}"
    against = "–"
    if row.ratio is not None:
        text, colour = speedup(row.ratio)
        against = f"[{colour}]{text}[/]"
    return (escape(row.name), *times, f"{timing.voxels_per_second / 1e6:.3g}", gflops, against)

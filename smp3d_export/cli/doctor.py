"""What this machine can do: targets by precision, processor, memory, versions. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from smp3d_export import backends, hardware
from smp3d_export.precision import Precision


def examine() -> dict[str, Any]:
    """Everything that `doctor` shows, as plain data."""
    grid = {row.name: {str(p): asdict(row.support(p)) for p in Precision} for row in backends.ROWS}
    return {"targets": grid, "hardware": hardware.describe(), "versions": hardware.versions()}


def show(findings: dict[str, Any], console: Console) -> None:
    machine = findings["hardware"]
    memory = f"{machine['memory'] / 1e9:.0f} GB" if machine["memory"] else "unknown"
    features = ", ".join(machine["features"]) or "none of note"
    console.print(f"{machine['processor']} · {machine['cores']} cores · {memory} of memory", highlight=False)
    console.print(f"features: {features}", highlight=False)
    console.print(" · ".join(f"{name} {version}" for name, version in findings["versions"].items()), highlight=False)
    for gpu in machine.get("gpus", ()):
        size = f"{gpu['memory'] / 1e9:.0f} GB" if gpu["memory"] else "memory shared with the processor"
        parts = (gpu["name"], f"compute capability {gpu['compute_capability']}", size)
        console.print(" · ".join(parts), highlight=False)
    if not machine.get("gpus"):
        console.print("no NVIDIA GPU", highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("target")
    for precision in Precision:
        table.add_column(precision)
    notes: dict[str, list[str]] = {}
    for target, precisions in findings["targets"].items():
        cells = []
        for precision, support in precisions.items():
            cells.append("[green]✓[/]" if support["ready"] else "[dim]–[/]" if support["never"] else "[yellow]✗[/]")
            if not support["ready"] and not support["never"]:
                fix = f": {support['fix']}" if support["fix"] else ""
                notes.setdefault(f"{support['reason']}{fix}", []).append(f"{target} {precision}")
        table.add_row(target, *cells)
    console.print()
    console.print(table)
    console.print("\n✓ ready   ✗ not here   – the target has none", style="dim", highlight=False)
    for note, where in notes.items():
        names = dict.fromkeys(place.split()[0] for place in where)
        precisions = dict.fromkeys(place.split()[1] for place in where)
        text = f"✗ {', '.join(names)} in {', '.join(precisions)}: {note}"
        console.print(text, style="yellow", highlight=False, markup=False)

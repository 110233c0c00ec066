"""What this machine can do: targets by precision, processor, memory, versions. Imports no torch."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from smp3d_export import hardware
from smp3d_export.targets import TARGETS, Precision, find


def examine() -> dict[str, Any]:
    """Everything that `doctor` shows, as plain data."""
    targets = {}
    for name in TARGETS:
        target = find(name)
        targets[name] = {}
        for precision in Precision:
            support = target.support(precision, "cpu")
            targets[name][precision.value] = {"ready": support.ready, "reason": support.reason, "fix": support.fix}
    return {"targets": targets, "hardware": hardware.describe(), "versions": hardware.versions()}


def show(findings: dict[str, Any], console: Console) -> None:
    machine = findings["hardware"]
    memory = f"{machine['memory'] / 1e9:.0f} GB" if machine["memory"] else "unknown"
    features = ", ".join(machine["features"]) or "none of note"
    console.print(f"{machine['processor']} · {machine['cores']} cores · {memory} of memory", highlight=False)
    console.print(f"features: {features}", highlight=False)
    console.print(" · ".join(f"{name} {version}" for name, version in findings["versions"].items()), highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("target", "precision", "here"):
        table.add_column(heading)
    for target, precisions in findings["targets"].items():
        for precision, support in precisions.items():
            fix = f": {support['fix']}" if support["fix"] else ""
            here = "[green]✓ ready[/]" if support["ready"] else f"[yellow]✗ {support['reason']}{fix}[/]"
            table.add_row(target, precision, here)
    console.print()
    console.print(table)

"""What this machine can export and run: targets by precision, processor, memory, versions. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from smp3d_export import backends, hardware
from smp3d_export.backends import Backend, Support
from smp3d_export.cli.help import PROGRAM
from smp3d_export.device import CPU, CUDA
from smp3d_export.precision import Precision


def examine() -> dict[str, Any]:
    """Everything that `doctor` shows, as plain data."""
    devices = (CPU, CUDA) if hardware.gpus() else (CPU,)
    grid = {row.name: {str(p): cell(row, p, devices) for p in Precision} for row in backends.ROWS}
    return {"targets": grid, "hardware": hardware.describe(), "versions": hardware.versions()}


def cell(row: Backend, precision: Precision, devices: Iterable[str]) -> dict[str, Any]:
    """Whether a target can be exported in a precision on one of the devices, and under `run` whether it runs."""
    export = first_ready(row.support(precision, device) for device in devices)
    return asdict(export) | {"run": asdict(first_ready(row.run_support(precision, device) for device in devices))}


def first_ready(supports: Iterable[Support]) -> Support:
    """The first that is ready; if none is, the last, which is for the most capable device."""
    support = None
    for support in supports:
        if support.ready:
            break
    assert support is not None
    return support


def show(findings: dict[str, Any], console: Console) -> None:
    machine = findings["hardware"]
    memory = f"{machine['memory'] / 1e9:.0f} GB" if machine["memory"] else "unknown"
    features = ", ".join(machine["features"]) or "none that matters"
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
    for target, precisions in findings["targets"].items():
        table.add_row(target, *map(marks, precisions.values()))
    console.print()
    console.print(table)
    console.print("\nFirst mark: can be exported on this machine. Second: can be run.", style="dim", highlight=False)
    console.print("✓ yes   ✗ no   – the target does not have the precision\n", style="dim", highlight=False)
    if "torch" not in findings["versions"]:
        note(console, f"PyTorch is not installed, so only ONNX files can be exported: {PROGRAM} from FILE.onnx")
    for text in notes(findings["targets"]):
        note(console, text)


def marks(found: dict[str, Any]) -> str:
    """The two marks of a cell."""
    if found["never"]:
        return "[dim]–[/]"
    return " ".join("[green]✓[/]" if part["ready"] else "[yellow]✗[/]" for part in (found, found["run"]))


def notes(targets: dict[str, Any]) -> list[str]:
    """What this machine cannot do: a line for each reason, with the targets and precisions it applies to."""
    places: dict[str, list[tuple[str, str]]] = {}
    for target, precisions in targets.items():
        for precision, found in precisions.items():
            for text in [] if found["never"] else refusals(found):
                places.setdefault(text, []).append((target, precision))
    lines = []
    for text, where in places.items():
        names = list(dict.fromkeys(target for target, _ in where))
        some = list(dict.fromkeys(precision for _, precision in where))
        whole = all(sum(not found["never"] for found in targets[name].values()) <= len(some) for name in names)
        lines.append(f"{', '.join(names)}{'' if whole else ' in ' + ', '.join(some)} {text}")
    return lines


def refusals(found: dict[str, Any]) -> list[str]:
    """What a cell cannot do, and why; one line if exporting and running fail for the same reason."""
    export, run = found, found["run"]
    if not export["ready"] and export["reason"] == run["reason"]:
        return [f"cannot be exported or run here: {because(export)}"]
    parts = (("exported", export), ("run", run))
    return [f"cannot be {what} here: {because(part)}" for what, part in parts if not part["ready"]]


def because(part: dict[str, Any]) -> str:
    return str(Support(False, part["reason"], part["fix"]))


def note(console: Console, text: str) -> None:
    grid = Table.grid()
    grid.add_row(Text("✗ ", "yellow"), Text(text, "yellow"))
    console.print(grid)

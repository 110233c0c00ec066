"""The tables that `smp3d-export list` prints."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from smp3d_export.architectures import ARCHITECTURES
from smp3d_export.encoders import ENCODERS
from smp3d_export.errors import UsageError, unknown
from smp3d_export.targets import TARGETS

KINDS = ("architectures", "encoders", "targets")


def rows(what: str, family: str | None = None) -> list[dict[str, Any]]:
    """The rows of one table.

    Raises:
        UsageError: there is no such table, or no such family.
    """
    if what not in KINDS:
        raise unknown("list", what, KINDS, ", ".join(KINDS))
    if family is not None and what != "encoders":
        raise UsageError(f"--family is for encoders, not for {what}")
    if what == "architectures":
        return [{"name": spec.name, "paper": spec.paper} for spec in ARCHITECTURES.values()]
    if what == "targets":
        return [{"name": name} for name in TARGETS]
    families = dict.fromkeys(spec.family for spec in ENCODERS.values())
    if family is not None and family not in families:
        raise unknown("family", family, families, ", ".join(families))
    return [
        {
            "name": spec.name,
            "family": spec.family,
            "parameters": spec.parameters,
            "channels": list(spec.channels),
        }
        for spec in ENCODERS.values()
        if family in (None, spec.family)
    ]


def show(table_rows: list[dict[str, Any]], console: Console) -> None:
    """Print rows as a table, a column for each key."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name, value in table_rows[0].items():
        table.add_column(name, justify="right" if isinstance(value, int) else "left")
    for row in table_rows:
        table.add_row(*(written(name, value) for name, value in row.items()))
    console.print(table)


def written(name: str, value: Any) -> str:
    if name == "parameters":
        return f"{value / 1e6:.1f} M"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

"""The tables of targets in README.md and docs/targets.md are those of the rows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from smp3d_export.backends import ROWS, Backend
from smp3d_export.precision import Precision

ROOT = Path(__file__).parents[1]


def markdown(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table as the pages have it; an empty cell is one space wide."""
    headings = list(headings)
    lines = [f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |") for cells in (headings, *rows)]
    return "\n".join([lines[0], "|---" * len(headings) + "|", *lines[1:]]) + "\n"


def files(row: Backend) -> str:
    return ", ".join(f"`{name}`" for name in row.files)


def needs(row: Backend) -> str:
    return ", ".join([*([f"`smp3d-export[{row.extra}]`"] if row.extra else []), *([row.needs] if row.needs else [])])


def in_short() -> str:
    """The table of README.md."""

    def precisions(row: Backend) -> str:
        return ", ".join([" ".join(row.precisions), *(f"{precision} on a GPU" for precision in row.gpu_precisions)])

    rows = [[f"`{row.name}`", files(row), row.through, needs(row), precisions(row)] for row in ROWS]
    return markdown(("target", "files", "through", "needs", "precisions"), rows)


def by_precision() -> str:
    """The table of docs/targets.md."""

    def mark(row: Backend, precision: Precision) -> str:
        return "✓" if precision in row.precisions else "GPU" if precision in row.gpu_precisions else ""

    rows = [
        [f"`{row.name}`", files(row), needs(row), *(mark(row, precision) for precision in Precision)] for row in ROWS
    ]
    return markdown(("target", "files", "needs", *Precision), rows)


@pytest.mark.parametrize(("page", "table"), [("README.md", in_short()), ("docs/targets.md", by_precision())])
def test_the_page_has_the_rows(page: str, table: str) -> None:
    assert table in (ROOT / page).read_text("utf-8"), f"the table of {page} should be\n{table}"

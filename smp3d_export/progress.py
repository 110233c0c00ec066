"""Progress on stderr: stages with their time, with a bar while they run; plain lines if stderr is not a terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text


@dataclass
class Stage:
    """A running stage. `detail` is shown in its line when it is done."""

    name: str
    detail: str = ""
    _bar: tuple[Progress, TaskID] | None = None

    def step(self, done: int, total: int, what: str = "") -> None:
        """Report that `done` of `total` parts are done, and that `what` is running."""
        if self._bar is not None:
            progress, task = self._bar
            progress.update(task, completed=done, total=total, what=escape(what))


class Reporter:
    """Prints stages to a console; without one it is silent, as the Python API is by default."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console

    def say(self, text: str = "", *, style: str | None = None) -> None:
        """Print a line, wrapped to the terminal."""
        if self.console is not None:
            self.console.print(text, style=style, markup=False, highlight=False)

    def working(self, text: str) -> contextlib.AbstractContextManager[object]:
        """Show a spinner on a terminal during work that is not a stage."""
        if self.console is None or not self.console.is_terminal:
            return contextlib.nullcontext()
        return self.console.status(text)

    @contextlib.contextmanager
    def stage(self, name: str, *, spent: float = 0.0) -> Iterator[Stage]:
        """Time a stage and print its line when it is done. `spent` are the seconds that it took before."""
        stage = Stage(name)
        started = time.perf_counter() - spent
        if self.console is None:
            yield stage
            return
        try:
            if self.console.is_terminal:
                with Progress(
                    TextColumn(" "),
                    SpinnerColumn(),
                    TextColumn("{task.description}"),
                    BarColumn(bar_width=20),
                    TextColumn("{task.fields[what]}", style="dim"),
                    TimeElapsedColumn(),
                    console=self.console,
                    transient=True,
                ) as progress:
                    stage._bar = (progress, progress.add_task(f"{name:<11}", total=None, what=""))
                    yield stage
            else:
                yield stage
        except BaseException:
            self._line("✗", "red", stage, time.perf_counter() - started)
            raise
        self._line("✓", "green", stage, time.perf_counter() - started)

    def _line(self, sign: str, colour: str, stage: Stage, seconds: float) -> None:
        assert self.console is not None
        line = Table.grid(padding=(0, 1))
        line.add_column(width=3, justify="right")
        line.add_column(width=11)
        line.add_column(width=52, overflow="fold")
        line.add_column(width=8, justify="right")
        line.add_row(Text(sign, colour), stage.name, Text(stage.detail), f"{seconds:.1f} s")
        self.console.print(line)


def megabytes(size: int) -> str:
    """Bytes as megabytes, with a decimal for small files."""
    return f"{size / 1e6:.0f} MB" if size >= 10e6 else f"{size / 1e6:.1f} MB"

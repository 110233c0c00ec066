"""The result of a job in several formats: a table maps the name of a format to the function that writes it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TextIO

from smp3d_export.errors import UsageError


class Result(Protocol):
    """The result of a job: the verdicts of an export or of `verify`, the timings of `bench`, or a failure."""

    @property
    def exit_code(self) -> int: ...

    def to_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Failure:
    """A job that failed before it had a result."""

    error: str
    exit_code: int

    def to_dict(self) -> dict[str, Any]:
        return {"error": self.error, "exit_code": self.exit_code}


FORMATS: Mapping[str, str] = MappingProxyType({"json": "smp3d_export.report.json:write"})
"""The kinds that `--report` takes, and the function (result, file) that writes each."""


@dataclass(frozen=True)
class Destination:
    """A format and the file to write it to; None means stdout."""

    format: str
    file: Path | None

    def write(self, result: Result) -> None:
        """Write a result.

        Raises:
            UsageError: the file cannot be written.
        """
        module, _, function = FORMATS[self.format].partition(":")
        write = getattr(importlib.import_module(module), function)
        if self.file is None:
            self._to(sys.stdout, write, result)
            return
        try:
            with self.file.open("w", encoding="utf-8") as file:
                self._to(file, write, result)
        except OSError as error:
            raise UsageError(f"the report {str(self.file)!r} cannot be written: {error.strerror}") from error

    @staticmethod
    def _to(file: TextIO, write: Any, result: Result) -> None:
        write(result, file)
        file.flush()

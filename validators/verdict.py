"""Verdicts: the result of each target of an export, and the exit code of all of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smp3d_export.errors import Smp3dExportError
from smp3d_export.validators.parity import Parity
from smp3d_export.validators.throughput import Throughput

# With several targets, the first of these that applies is the exit code of the command.
EXIT_ORDER = (1, 5, 2, 4, 3, 6)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The result of one target.

    Attributes:
        name: what distinguishes it from others of the same target, if there are any.
        folder: where the artifact is; None if there is none.
        parity, throughput: None if the export did not get that far, or they were not requested.
        not_run: why the artifact cannot run here; its parity is then that of the graph that it was made from.
        error: why it failed. An artifact that is only too slow is kept.
    """

    target: str
    precision: str
    folder: Path | None
    files: tuple[str, ...] = ()
    parity: Parity | None = None
    throughput: Throughput | None = None
    not_run: str | None = None
    error: Smp3dExportError | None = None
    name: str | None = None

    @property
    def label(self) -> str:
        """Its name in tables."""
        return self.name or self.target

    def to_dict(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "precision": self.precision,
            "artifact": None if self.folder is None else str(self.folder),
            "run": "not run" if self.not_run is not None or self.folder is None else "here",
            "not_run": self.not_run,
            "parity": self.parity.to_dict() if self.parity else "not run",
            "throughput": self.throughput.to_dict() if self.throughput else "not run",
            "error": None if self.error is None else str(self.error),
        }


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of an export: a verdict for each target, in the order of the request."""

    network: str
    verdicts: tuple[Verdict, ...]

    @property
    def exit_code(self) -> int:
        codes = {verdict.error.exit_code for verdict in self.verdicts if verdict.error is not None}
        return next((code for code in EXIT_ORDER if code in codes), max(codes, default=0))

    def raise_for_failure(self) -> None:
        """Raise the error that the exit code stands for, if a target failed.

        Raises:
            Smp3dExportError: the error of a target.
        """
        for verdict in self.verdicts:
            if verdict.error is not None and verdict.error.exit_code == self.exit_code:
                raise verdict.error

    def to_dict(self) -> dict[str, Any]:
        return {
            "network": self.network,
            "exit_code": self.exit_code,
            "verdicts": [verdict.to_dict() for verdict in self.verdicts],
        }

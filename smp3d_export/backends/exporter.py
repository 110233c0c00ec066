"""What exporters have in common: whether they can work on this machine, and what they make."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smp3d_export.precision import Precision
from smp3d_export.settings import Settings

if TYPE_CHECKING:
    from onnx import ModelProto

    from smp3d_export.backends import Backend
    from smp3d_export.backends.variant import Variant


@dataclass(frozen=True)
class Support:
    """Whether something can be done on this machine; if not, the reason and how to fix it.

    `never` says that no machine can: the target does not have the precision.
    """

    ready: bool
    reason: str = ""
    fix: str = ""
    never: bool = False

    @classmethod
    def yes(cls) -> Support:
        return cls(True)

    @classmethod
    def no(cls, reason: str, fix: str = "") -> Support:
        return cls(False, reason, fix)

    @classmethod
    def none(cls, target: str, precision: Precision, possible: Iterable[Precision]) -> Support:
        """The target does not have the precision; `possible` are those it has."""
        return cls(False, f"{target} does not have {precision}", f"use --precision {either(possible)}", never=True)

    def __str__(self) -> str:
        """The reason and the fix."""
        return f"{self.reason}: {self.fix}" if self.fix else self.reason


def either(words: Iterable[str]) -> str:
    """`fp32, fp16 or bf16`"""
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


@dataclass(frozen=True)
class Exported:
    """What an exporter made: a line for the user, and facts for the manifest.

    `graph` is the ONNX graph that the artifact was made from. It is compared instead of an artifact that cannot run on
    this machine, and also if this machine computes the artifact in a higher precision than others would.
    """

    summary: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    graph: ModelProto | None = None


class Exporter(abc.ABC):
    """Makes the artifacts of one target, described by its `row` in the table of backends."""

    def __init__(self, row: Backend) -> None:
        self.row = row

    def support(self, precision: Precision, device: str) -> Support:
        """Whether this machine can export to the target, given that its library is installed."""
        return Support.yes()

    def run_support(self, precision: Precision, device: str) -> Support:
        """Whether this machine can run the target's artifacts, given that it has the library and any GPU needed."""
        return Support.yes()

    def check(self, settings: Settings) -> None:  # noqa: B027  most exporters have nothing to refuse
        """Refuse settings that the target does not have, before any work is done.

        Raises:
            UsageError: it names the option and what to use instead.
        """

    @abc.abstractmethod
    def export(self, variant: Variant, settings: Settings, folder: Path) -> Exported:
        """Write the artifact's files into an empty folder.

        Raises:
            ExportError: the conversion failed.
            UsageError: the settings do not fit the variant.
        """

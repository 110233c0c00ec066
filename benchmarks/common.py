"""What the benchmarks share: networks by pair, results as lines of JSON, the machine, pages with tables."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import exp, log
from pathlib import Path
from typing import Any

from smp3d_export import hardware
from smp3d_export.architectures import ArchitectureSpec
from smp3d_export.encoders import ENCODERS, EncoderSpec

ROOT = Path(__file__).parents[1]
CLASSES = 3

Record = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """An architecture with an encoder."""

    architecture: ArchitectureSpec
    encoder: EncoderSpec

    @property
    def name(self) -> str:
        return f"{self.architecture.name.lower()}/{self.encoder.name}"


def families() -> list[EncoderSpec]:
    """The smallest encoder of each family, in the order of the table."""
    smallest: dict[str, EncoderSpec] = {}
    for spec in ENCODERS.values():
        if spec.family not in smallest or spec.parameters < smallest[spec.family].parameters:
            smallest[spec.family] = spec
    return list(smallest.values())


def provenance(packages: Iterable[str], threads: int) -> dict[str, Any]:
    """The day, the machine and the versions that a result is from."""
    versions = hardware.versions()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{hardware.processor()}, {hardware.cores()} cores, {threads} used",
        "versions": {name: versions[name] for name in packages if name in versions},
    }


def listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def read(results: Path, key: str) -> dict[str, Record]:
    """The last record for each value of a key. A line that was cut off by a kill is skipped."""
    records: dict[str, Record] = {}
    for line in results.read_text("utf-8").splitlines() if results.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        records[record[key]] = record
    return records


def append(results: Path, record: Record) -> None:
    """Write a record as a line, after one that was cut off if need be."""
    with results.open("a+b") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        cut_off = file.read() not in (b"", b"\n")
        file.write(b"\n" * cut_off + json.dumps(record, ensure_ascii=False).encode() + b"\n")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[int] = ()) -> list[str]:
    """A Markdown table; `right` are the numbers of columns that are aligned to the right."""
    rules = ["--:" if number in set(right) else "---" for number in range(len(head))]
    return [f"| {' | '.join(cells)} |" for cells in (head, rules, *rows)]


def replace_between(page: Path, start: str, end: str, text: str) -> None:
    """Write anew what stands between two marks of a page."""
    before, _, rest = page.read_text("utf-8").partition(start)
    page.write_text(f"{before}{start}\n{text}{end}{rest.partition(end)[2]}", "utf-8")


def geometric_mean(values: Sequence[float]) -> float:
    return exp(sum(map(log, values)) / len(values)) if values and min(values) > 0 else float("nan")

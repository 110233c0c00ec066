"""The report as JSON, for scripts."""

from __future__ import annotations

import json
from typing import TextIO

from smp3d_export.report import Report


def show(report: Report, file: TextIO) -> None:
    json.dump(report.to_dict(), file, indent=2, ensure_ascii=False)
    file.write("\n")

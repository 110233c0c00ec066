"""A result as JSON, for scripts."""

from __future__ import annotations

import json
from typing import TextIO

from smp3d_export.report import Result


def write(result: Result, file: TextIO) -> None:
    json.dump(result.to_dict(), file, indent=2, ensure_ascii=False)
    file.write("\n")

"""`python -m smp3d_export.runtime FOLDER`: what memory a process takes that loads and runs an artifact alone.

The shape is the contract's optimum. It prints one line of JSON: bytes of memory at the peak, and before the artifact
was loaded; null where the platform does not tell.
"""

import json
import sys
from pathlib import Path

import numpy as np

from smp3d_export.hardware import peak_memory
from smp3d_export.runtime import load


def main() -> None:
    before = peak_memory()
    runner = load(Path(sys.argv[1]), threads=int(sys.argv[2]) if len(sys.argv) > 2 else None)
    runner(np.zeros(runner.contract.opt, np.float32))
    print(json.dumps({"peak": peak_memory(), "before": before}))


if __name__ == "__main__":
    main()

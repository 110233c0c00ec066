"""`python -m smp3d_export.runtime FOLDER [THREADS [DEVICE]]`: the memory that a process takes to run an artifact.

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
    folder, *settings = sys.argv[1:]
    threads, device = (*settings, None, None)[:2]
    runner = load(Path(folder), threads=int(threads) if threads else None, device=device or "cpu")
    runner(np.zeros(runner.contract.opt, np.float32))
    print(json.dumps({"peak": peak_memory(), "before": before}))


if __name__ == "__main__":
    main()

"""`python -m smp3d_export.runtime FOLDER THREADS DEVICE SHAPE...`: the memory that a process takes to run an artifact.

Each SHAPE is N,C,H,W,D. For each it prints a line of JSON: `shape`; `peak`, the most bytes of memory that the process
had when it loaded the artifact and ran it at this shape; `before`, what it had before it loaded anything; and
`device_peak`, bytes on the GPU, null for an artifact that runs on the CPU. Null also stands for what the platform does
not tell.

The shapes run in ascending order, because what a runtime has taken for one shape it may keep for the next. Between two
shapes the peak is reset, if the system can.
"""

import json
import sys
from math import prod
from pathlib import Path

import numpy as np

from smp3d_export import backends, hardware
from smp3d_export.artifact.manifest import read
from smp3d_export.runtime import load


def main() -> None:
    folder, threads, device, *texts = sys.argv[1:]
    shapes = sorted(([int(size) for size in text.split(",")] for text in texts), key=prod)
    before = hardware.peak_memory()
    place = backends.find(read(Path(folder)).target).device(device)
    # The driver counts what libraries keep, as they keep what a run took. What else uses the GPU is in the difference.
    free = None if place == "cpu" else hardware.available_memory(place)
    runner = load(Path(folder), threads=int(threads), device=device)
    loaded = hardware.peak_memory()
    for shape in shapes:
        hardware.return_free_memory()
        hardware.reset_peak_memory()
        runner(np.zeros(shape, np.float32))
        peak = hardware.peak_memory()
        left = None if free is None else hardware.available_memory(place)
        found = {
            "shape": shape,
            "peak": None if peak is None or loaded is None else max(peak, loaded),
            "before": before,
            "device_peak": None if free is None or left is None else max(free - left, 0),
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()

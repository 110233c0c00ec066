"""A trained network on a real scan: what each target and precision costs in Dice against the scan's own labels.

    python benchmarks/real_network.py unet efficientnet-b0 --checkpoint best.pth --scan t1.nii.gz --labels tissue.nii.gz
        --calibration scans --normalize 38.4,74.8

Parity compares an artifact with the eager network; this compares both with the truth. The calibration volumes must not
hold the scan. The exit code is 1 where an artifact loses more in a class than `GOALS` allows.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

from smp3d_export import hardware, runtime
from smp3d_export.architectures import architecture_spec
from smp3d_export.cli import parsing
from smp3d_export.encoders import encoder_spec
from smp3d_export.onnxgraph.emulation import Emulation
from smp3d_export.pipeline import run
from smp3d_export.precision import Precision
from smp3d_export.progress import Reporter
from smp3d_export.runtime.calibration import Calibration
from smp3d_export.runtime.volumes import read_volume
from smp3d_export.sources.named import NamedNetwork, build
from smp3d_export.sources.network import Network
from smp3d_export.sources.request import Request
from smp3d_export.validators.overlap import label_map, overlaps
from smp3d_export.validators.parity import Run

# Precision -> the targets that run it on a processor, and the most that Dice may fall in a class.
GOALS = {
    Precision.FP32: (("onnx", "openvino"), 0.0005),
    Precision.FP16: (("onnx", "openvino"), 0.005),
    Precision.BF16: (("openvino",), 0.005),
    Precision.INT8: (("onnx", "openvino"), 0.01),
}
HALF = "onnx fp16, rounded"
"""ONNX Runtime computes half precision in fp32 on a processor; with every value rounded it is as on a GPU."""


@dataclass(frozen=True)
class Row:
    """One way to run the network. `largest` is the largest difference from eager, `range` that of its outputs."""

    name: str
    dice: tuple[float, ...]
    labels: float
    largest: float
    range: float
    seconds: float
    loss: float = 0.0
    allowed: float | None = None
    parity: str = ""

    @property
    def missed(self) -> bool:
        return self.allowed is not None and self.loss > self.allowed


class Truth:
    """A scan with its labels, and what the eager network makes of it."""

    def __init__(self, network: Network, image: np.ndarray, labels: np.ndarray) -> None:
        self.image, self.labels, self.threshold = image, labels, network.label_threshold
        self.masks = network(image)["masks"]
        self.eager = self.row("eager", network)

    def row(self, name: str, way: Run, **more: Any) -> Row:
        started = time.perf_counter()
        masks = way(self.image)["masks"]
        seconds = time.perf_counter() - started
        ours, theirs = (label_map(array, self.threshold) for array in (masks, self.masks))
        return Row(
            name,
            tuple(each.dice for each in overlaps(ours, self.labels, max(2, masks.shape[1]))),
            float((ours == theirs).mean()),
            float(np.abs(masks - self.masks).max()),
            float(np.ptp(self.masks)),
            seconds,
            **more,
        )

    def artifact(self, name: str, way: Run, allowed: float, parity: str) -> Row:
        way(self.image)  # the first call may allocate
        row = self.row(name, way, allowed=allowed, parity=parity)
        return replace(row, loss=max(a - b for a, b in zip(self.eager.dice, row.dice, strict=True)))


def main() -> None:
    arguments = parsed()
    normalisation = parsing.normalisation(arguments.normalize)
    source = NamedNetwork(
        architecture=architecture_spec(arguments.arch).name,
        encoder=encoder_spec(arguments.encoder).name,
        checkpoint=arguments.checkpoint,
    )
    network = build(source, None)
    image, labels = (read_volume(path) for path in (arguments.scan, arguments.labels))
    if normalisation is not None:
        image = normalisation(image)
    image, labels = (cut(volume, network.model.multiple) for volume in (image, labels))
    truth = Truth(network, image, labels[:, 0].astype(np.int64))
    request = Request(source=source, shape=image.shape, max=image.shape, normalisation=normalisation, bench=False)
    calibration = Calibration(arguments.calibration, normalisation)
    with tempfile.TemporaryDirectory() as folder:
        rows = [truth.eager]
        for row in exported(truth, request, calibration, Path(folder), set(arguments.precision)):
            print(f"{row.name}: {row.loss:+.4f}", file=sys.stderr, flush=True)
            rows.append(row)
    if arguments.json:
        found = {
            "rows": [asdict(row) for row in rows],
            "hardware": hardware.describe(),
            "versions": hardware.versions(),
        }
        print(json.dumps(found, indent=1))
    else:
        show(rows)
    sys.exit(any(row.missed for row in rows))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arch")
    parser.add_argument("encoder")
    for name, what in {
        "checkpoint": "the trained weights",
        "scan": "the volume to run on",
        "labels": "its true classes, as whole numbers",
        "calibration": "a folder of volumes to take the ranges of int8 from, the scan not among them",
    }.items():
        parser.add_argument(f"--{name}", type=Path, required=True, help=what)
    parser.add_argument("--normalize", help="MEAN,STD or zscore, of the scan and of the calibration")
    parser.add_argument("--precision", nargs="*", type=Precision, default=list(GOALS), help="default: all")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def cut(volume: np.ndarray, multiple: tuple[int, ...]) -> np.ndarray:
    """A volume (N, C, H, W, D) without what is over the network's multiples."""
    height, width, depth = (size // k * k for size, k in zip(volume.shape[2:], multiple, strict=True))
    return np.ascontiguousarray(volume[..., :height, :width, :depth])


def exported(
    truth: Truth, request: Request, calibration: Calibration, folder: Path, precisions: set[Precision]
) -> Iterator[Row]:
    """Export to every target in every precision, and run what was made; what missed parity is run too, and says so."""
    for precision in (precision for precision in GOALS if precision in precisions):
        targets, allowed = GOALS[precision]
        ranges = calibration if precision is Precision.INT8 else None
        report = run(
            replace(request, targets=targets, precision=precision, calibration=ranges, output=folder / precision),
            Reporter(Console(stderr=True)),
        )
        for verdict in report.verdicts:
            name = f"{verdict.target} {precision}"
            if verdict.folder is None or verdict.parity is None:
                raise SystemExit(f"{name}: {verdict.error}")
            parity = "passed" if verdict.parity.passed else "missed"
            yield truth.artifact(name, runtime.load(verdict.folder), allowed, parity)
            if f"{name}, rounded" == HALF:
                rounded = Emulation(onnx.load(verdict.folder / "model.onnx"))
                yield truth.artifact(HALF, rounded, allowed, parity)


def show(rows: list[Row]) -> None:
    """`lost` is what Dice fell by most in a class; `error` the largest one, as a part of the range of eager."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for heading in ("", "Dice of each class", "lost", "labels", "error", "s", "parity"):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(
            row.name,
            " ".join(f"{score:.4f}" for score in row.dice),
            f"{row.loss:+.4f}" + (" ✗" if row.missed else ""),
            f"{row.labels:.2%}",
            f"{row.largest / row.range:.1e}",
            f"{row.seconds:.2f}",
            row.parity,
        )
    Console().print(table)


if __name__ == "__main__":
    main()

"""A TensorRT-RTX engine of every architecture, and of Unet with every family of encoders, in each precision.

    python benchmarks/sweep_engines.py                 all of them; writes docs/engines.md
    python benchmarks/sweep_engines.py 'unet/*'        some networks, the page not written

No GPU is needed to build. What the builder was given, the ONNX graph, is compared in ONNX Runtime with the eager
network; the engine itself is not run where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from common import CLASSES, ROOT, Pair, Record, families, listed, provenance, table

from smp3d_export import hardware
from smp3d_export.architectures import ARCHITECTURES
from smp3d_export.backends import find
from smp3d_export.encoders import ENCODERS
from smp3d_export.errors import ParityError
from smp3d_export.pipeline import run
from smp3d_export.precision import Precision
from smp3d_export.sources.named import NamedNetwork, build
from smp3d_export.sources.request import Request

TARGET = "trt-rtx"
PRECISIONS = (Precision.FP32, Precision.FP16, Precision.BF16)
PACKAGES = ("smp3d-export", "torch", "onnx", "onnxruntime", "onnxsim", "tensorrt-rtx")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", default=["*"], help="networks, like 'pan/*' (default: all)")
    arguments = parser.parse_args()
    if not find(TARGET).support(Precision.FP32, "cpu").ready:
        parser.error("pip install 'smp3d-export[trt-rtx]'")
    rows = []
    for pair in pairs():
        if any(fnmatch(pair.name, pattern) for pattern in arguments.patterns):
            for precision in PRECISIONS:
                rows.append(built(pair, precision))
                print(f"{pair.name:32} {precision}  {cell(rows[-1])}", flush=True)
    if arguments.patterns == ["*"]:
        (ROOT / "docs/engines.md").write_text(page(rows), "utf-8")


def pairs() -> list[Pair]:
    """Every architecture with the smallest ResNet, and Unet with the smallest encoder of every family."""
    resnet = ENCODERS["resnet18"]
    networks = [Pair(architecture, resnet) for architecture in ARCHITECTURES.values()]
    networks += [Pair(ARCHITECTURES["Unet"], encoder) for encoder in families()]
    return list({pair.name: pair for pair in networks}.values())


def built(pair: Pair, precision: Precision) -> Record:
    """Export one network in one precision by the pipeline that the command line has."""
    further = pair.architecture.needs(pair.encoder)
    network = NamedNetwork(
        architecture=pair.architecture.name, encoder=pair.encoder.name, arguments={"classes": CLASSES, **further}
    )
    model = build(network).model
    smallest = (1, 1, *model.min_size)
    largest = (2, 1, *(low + 2 * k for low, k in zip(model.min_size, model.multiple, strict=True)))
    row: Record = {"network": pair.name, "precision": str(precision)}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "net"
        request = Request(
            source=network,
            shape=smallest,
            max=largest,
            targets=(TARGET,),
            precision=precision,
            output=place,
            bench=False,
        )
        (verdict,) = run(request).verdicts
        if isinstance(verdict.error, ParityError) and verdict.folder:  # it was built all the same, and is kept beside
            place = verdict.folder
        elif verdict.error is not None:
            return row | {"error": str(verdict.error)}
        manifest = json.loads((place / "manifest.json").read_text())
        return row | {
            "shapes": manifest["engine"]["profile"],
            "engine": manifest["engine"],
            "bytes": manifest["files"]["model.engine"]["bytes"],
            "seconds": manifest["build_seconds"],
            "largest": manifest["parity"]["relative"],
            "labels": manifest["parity"]["labels"],
            "passed": manifest["parity"]["passed"],
            "run": manifest["run"],
        }


def cell(row: Record) -> str:
    if "error" in row:
        return f"failed: {row['error']}"
    kept = "".join(f", {count} {name} in fp32" for name, count in row["engine"]["kept_fp32"].items())
    labels = "" if row["passed"] else f" and {row['labels']:.2%} of the labels: not enough"
    return f"{row['bytes'] / 1e6:.0f} MB in {row['seconds']:.0f} s, graph within {row['largest']:.0e}{labels}{kept}"


def page(rows: Iterable[Record]) -> str:
    rows = list(rows)
    where = provenance(PACKAGES, hardware.cores())
    cells = []
    for network in dict.fromkeys(row["network"] for row in rows):
        mine = [row for row in rows if row["network"] == network]
        profile = next((row["shapes"] for row in mine if "shapes" in row), None)
        low, high = ("×".join(map(str, (n, *sizes))) for n, _, *sizes in (profile[0], profile[2])) if profile else "  "
        cells.append([network, f"{low} to {high}", *map(cell, mine)])
    run = {row["run"] for row in rows if "run" in row}
    good = sum("error" not in row for row in rows)
    lines = [
        "# TensorRT-RTX engines",
        "",
        "Generated by `benchmarks/sweep_engines.py`. Every network has random weights and "
        f"{CLASSES} classes and is exported with",
        "`--to trt-rtx` in each precision, with dynamic batch and volume axes, for the builder's default GPUs.",
        "",
        "Each cell has the engine's size, the seconds for ONNX conversion and build (on a machine with other load),",
        "and the largest error of the builder's ONNX graph, rounded to the precision, compared with the eager network,",
        "as a fraction of the output's range at the worst parity shape. bf16 has only 8 significant bits, so some of",
        "these random networks miss the tolerance of 99.5 % equal labels: their class scores are close everywhere.",
        "",
        f"{good} of {len(rows)} engines were built. Status of the engines: {'; '.join(sorted(run))}.",
        "",
        f"{where['machine']}; {listed(where['versions'])}; {where['date']}",
        "",
        *table(("network", "shapes (N×H×W×D)", *PRECISIONS), cells),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

"""Networks of other libraries, exported to every target with the contract that is found by running them.

    python benchmarks/sweep_foreign.py                            what is not in the results yet
    python benchmarks/sweep_foreign.py 'UNet aoti' '* openvino'   some cells, those that have a result again
    python benchmarks/sweep_foreign.py --table-only               write docs/foreign.md from what there is

A cell is a network and a target. Each runs in a process of its own with a time limit. What is done is a line of JSON in
the results, so the sweep may be killed at any time and started again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from common import CLASSES, ROOT, Record, append, listed, provenance, read, table
from foreign_networks import NETWORKS

from smp3d_export.errors import Smp3dExportError, summary

TARGETS = ("onnx", "openvino", "torchscript", "trt-rtx", "aoti")
SHOWN = ("onnx", "openvino", "torchscript", "aoti", "trt-rtx")
PACKAGES = ("python", "smp3d-export", "torch", "onnx", "onnxruntime", "onnxsim", "openvino", "tensorrt-rtx")
LIBRARIES = ("monai", "dynamic-network-architectures")


def main() -> None:
    arguments = parse()
    if arguments.one is not None:
        name, _, target = arguments.one.rpartition(" ")
        print(json.dumps(exported(name, target, arguments.threads)))
        return
    cells = [f"{name} {target}" for target in TARGETS for name in NETWORKS]
    wanted = [cell for cell in cells if any(fnmatch(cell, pattern) for pattern in arguments.patterns or ["*"])]
    if not wanted:
        sys.exit(f"no cell is called {' or '.join(arguments.patterns)}; they are written like 'UNet onnx'")
    done = read(arguments.results, "cell")
    for cell in [] if arguments.table_only else wanted:
        if cell in done and not arguments.patterns:
            continue
        record = {"cell": cell, **run(cell, arguments), **stamp(arguments.threads)}
        append(arguments.results, record)
        done[cell] = record
        print(f"{cell:42} {record['minutes']:4.1f} min  {shown(record)}  {record['reason'] or ''}", flush=True)
    arguments.table.write_text(page(done), "utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", help="cells to run, also again, like 'UNet *' (default: those missing)")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/foreign.jsonl", help="what is done")
    parser.add_argument("--table", type=Path, default=ROOT / "docs/foreign.md", help="the page to write")
    parser.add_argument("--table-only", action="store_true", help="run nothing")
    parser.add_argument("--threads", type=int, default=1, help="processor cores to use (default: 1)")
    parser.add_argument("--limit", type=float, default=900, metavar="S", help="seconds for a cell (default: 900)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def run(cell: str, arguments: argparse.Namespace) -> Record:
    """Export a cell in a process of its own; however that ends, there is a record."""
    command = [sys.executable, __file__, "--one", cell, "--threads", str(arguments.threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    started = time.monotonic()
    record: Record = {"status": "failed"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=arguments.limit, env=environment, check=False
        )
        if done.returncode == 0:
            record = json.loads(done.stdout.strip().splitlines()[-1])
        else:
            said = done.stderr.strip().splitlines()
            killed = f"killed by signal {-done.returncode}" if done.returncode < 0 else None
            record["reason"] = killed or (said[-1] if said else f"exit code {done.returncode}")
    except subprocess.TimeoutExpired:
        record["reason"] = f"not done within {arguments.limit / 60:g} minutes"
    return record | {"minutes": round((time.monotonic() - started) / 60, 1)}


def exported(name: str, target: str, threads: int) -> Record:
    """Export a network to a target by the pipeline that the command line has, in this process."""
    import torch

    from smp3d_export.pipeline import run
    from smp3d_export.sources.foreign import UserModule
    from smp3d_export.sources.network import randomise_normalisations
    from smp3d_export.sources.request import Request

    network = NETWORKS[name]
    torch.manual_seed(0)
    model = network.build().eval()
    randomise_normalisations(model)
    record: Record = {"status": "failed", "reason": None, "parameters": sum(p.numel() for p in model.parameters())}
    with tempfile.TemporaryDirectory() as folder:
        request = Request(
            source=UserModule(module=model, name=name.partition(" ")[0]),
            shape=network.shape,
            max=network.max,
            targets=(target,),
            threads=threads,
            output=Path(folder) / "net",
        )
        try:
            (verdict,) = run(request).verdicts
        except Smp3dExportError as error:
            return record | {"reason": summary(error).splitlines()[0][:400]}
        if verdict.folder is not None:
            manifest = json.loads((verdict.folder / "manifest.json").read_text("utf-8"))
            record |= {"contract": manifest["contract"]}
        if verdict.parity is not None:
            record |= {
                "status": "agrees" if verdict.parity.passed else "differs",
                "largest": verdict.parity.relative,
                "allowed": verdict.parity.tolerance.relative,
                "labels": verdict.parity.labels,
                "of": verdict.parity.of,
                "skipped": [f"{case}: {why}" for case, why in verdict.parity.not_run],
            }
        if verdict.throughput is not None:
            record |= {"speedup": verdict.throughput.speedup, "interval": verdict.throughput.interval}
            record |= {"eager": verdict.throughput.baseline.p50, "here": verdict.throughput.artifact.p50}
        if verdict.error is not None:
            record["reason"] = summary(verdict.error).splitlines()[0][:400]
            record["status"] = "differs" if record["status"] == "differs" else "failed"
    return record


def stamp(threads: int) -> Record:
    """The day, the machine and the versions: a sweep may go on elsewhere."""
    from importlib.metadata import version

    found = provenance(PACKAGES, threads)
    return {**found, "versions": listed(found["versions"] | {name: version(name) for name in LIBRARIES})}


def shown(record: Record | None) -> str:
    """A cell of the table."""
    if record is None:
        return "not run"
    if record["status"] == "failed":
        return "failed"
    error = f"{record['largest']:.0e}"
    speed = f", {record['speedup']:.2f}×" if "speedup" in record else ""
    if record["status"] == "differs":
        return f"**{error}** of {record['allowed']:.0e}{speed}"
    return f"{error}{speed}"


def sizes(record: Record | None) -> tuple[str, str]:
    """Which volume axes are dynamic, and which sizes they take."""
    if record is None:
        return "", ""
    axes = record["contract"][2:]
    dynamic = ", ".join(axis["name"] for axis in axes if axis["min"] != axis["max"]) or "only N"
    least = "×".join(str(axis["min"]) for axis in axes)
    if dynamic == "only N":
        return dynamic, least
    return dynamic, f"from {least} by {'×'.join(str(axis['multiple']) for axis in axes)}"


def page(records: dict[str, Record]) -> str:
    """The page of results."""
    rows, reasons, dynamic = [], [], 0
    for name, network in NETWORKS.items():
        mine = {target: records.get(f"{name} {target}") for target in SHOWN}
        known = next((record for record in mine.values() if record and "contract" in record), None)
        axes, least = sizes(known)
        dynamic += axes == "H, W, D"
        counts = [record["parameters"] for record in mine.values() if record and "parameters" in record]
        rows.append([name, f"{counts[0] / 1e6:.2f} M" if counts else "", axes, least, *map(shown, mine.values())])
        if network.why:
            reasons.append(f"- {name} keeps its volume axes: {network.why}.")
        for target, record in mine.items():
            if record is not None and record["reason"]:
                reasons.append(f"- {name}, {target}: {record['reason']}")
    lines = [
        "# Networks of other libraries",
        "",
        "Generated by `benchmarks/sweep_foreign.py`: networks of MONAI, and two of nnU-Net as its default plans make",
        "them for an anisotropic data set at full resolution and an isotropic one at low resolution. This package",
        "knows nothing about them. What their input must be is found by running them, and one graph is captured for",
        "all sizes. They have few features, an eighth to a quarter of the usual number, so that the sweep runs on two",
        f"cores. Their weights are random, and they have one input channel and {CLASSES} classes.",
        "",
        "Each cell has the largest error of the artifact compared with eager PyTorch, as a fraction of the output's",
        "range: at the contract's smallest, optimum and largest shapes, and at one with unequal axes. Beside it is",
        "how many times faster than eager it is at the optimum, which is 64×64×64 voxels; 16×64×64 for 3d_fullres,",
        "and 32×32×32 for HighResNet. An error in bold is above the tolerance. Engines of `trt-rtx` are built, and",
        "not run without a GPU: the error is of the ONNX graph that they are built from.",
        "",
        f"{dynamic} of {len(NETWORKS)} networks have dynamic volume axes.",
        "",
        *machines(records.values()),
        "",
        *table(("network", "parameters", "dynamic", "sizes (H×W×D)", *SHOWN), rows, right=[1]),
        "",
        *(["## What is not dynamic, and what failed", "", *reasons] if reasons else []),
    ]
    return "\n".join(lines).rstrip() + "\n"


def machines(records: Iterable[Record]) -> list[str]:
    """A line for each machine with its versions."""
    days: dict[tuple[str, str], list[str]] = {}
    for record in records:
        days.setdefault((record["machine"], record["versions"]), []).append(record["date"])
    return [
        f"- {machine}; {versions}; {' to '.join(dict.fromkeys((min(dates), max(dates))))}; {len(dates)} cells"
        for (machine, versions), dates in days.items()
    ]


if __name__ == "__main__":
    main()

"""Every network once: built, run at its smallest shape, captured with dynamic axes, exported to ONNX and compared.

    python benchmarks/sweep_networks.py                      what is not in the results yet
    python benchmarks/sweep_networks.py 'pan/*' --retry      some pairs, those that failed again
    python benchmarks/sweep_networks.py --table-only         write the table of what there is

A network is compared at its smallest shape and at one that was not traced, of another batch and with unequal axes.
Each runs in a process of its own, whose memory and files are gone when it ends. What is done is a line of JSON in the
results, so the sweep may be killed at any time and started again; a line that is deleted is run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from common import CLASSES, ROOT, Pair, Record, append, families, listed, provenance, read, table

from smp3d_export import hardware
from smp3d_export.architectures import ARCHITECTURES
from smp3d_export.encoders import ENCODERS
from smp3d_export.errors import Smp3dExportError, UsageError

BATCH = 3
# Above these the whole network is not made: the weights alone are over 2 GB.
MOST_PARAMETERS = 500_000_000
# Above these voxels the second shape has a batch of one (the traced one has two).
MANY_VOXELS = 16_000_000
PACKAGES = ("python", "smp3d-export", "torch", "onnx", "onnxscript", "onnxruntime", "onnxsim")


def pairs() -> list[Pair]:
    """Unet with every encoder, and every architecture with one encoder of each family.

    The most telling first: each family, each architecture, their combinations, and the other encoders by size.
    """
    unet = ARCHITECTURES["Unet"]
    others = [spec for spec in ARCHITECTURES.values() if spec is not unet]
    first, *further = families()
    by_size = sorted(ENCODERS.values(), key=lambda spec: spec.parameters)
    ordered = [
        *(Pair(unet, encoder) for encoder in families()),
        *(Pair(architecture, first) for architecture in others),
        *(Pair(architecture, encoder) for architecture in others for encoder in further),
        *(Pair(unet, encoder) for encoder in by_size),
    ]
    return list({pair.name: pair for pair in ordered}.values())


def main() -> None:
    arguments = parse()
    if arguments.one is not None:
        print(json.dumps(swept(next(pair for pair in pairs() if pair.name == arguments.one), arguments.threads)))
        return
    wanted = [pair for pair in pairs() if any(fnmatch(pair.name, pattern) for pattern in arguments.patterns)]
    if not wanted:
        sys.exit(f"no pair is called {' or '.join(arguments.patterns)}; they are written like unet/resnet18")
    done = read(arguments.results, "pair")
    if not arguments.table_only:
        for pair in wanted:
            if pair.name in done and not (arguments.retry and done[pair.name]["status"] == "failed"):
                continue
            record = run(pair, arguments) | stamp(arguments.threads)
            append(arguments.results, record)
            done[pair.name] = record
            print(f"{pair.name:34} {verdict(record)}", flush=True)
    arguments.table.write_text(page(done), "utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", default=["*"], help="pairs to sweep, like 'pan/*' (default: all)")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/networks-sweep.jsonl", help="what is done")
    parser.add_argument("--table", type=Path, default=ROOT / "docs/networks-sweep.md", help="the page to write")
    parser.add_argument("--retry", action="store_true", help="run those again that failed")
    parser.add_argument("--table-only", action="store_true", help="run nothing")
    parser.add_argument("--threads", type=int, default=1, help="processor cores to use (default: 1)")
    parser.add_argument("--limit", type=float, default=1800, metavar="S", help="seconds for a pair (default: 1800)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def run(pair: Pair, arguments: argparse.Namespace) -> Record:
    """Sweep a pair in a process of its own; however that ends, there is a record."""
    command = [sys.executable, __file__, "--one", pair.name, "--threads", str(arguments.threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=arguments.limit, env=environment, check=False
        )
        if done.returncode == 0:
            return json.loads(done.stdout.strip().splitlines()[-1])
        said = done.stderr.strip().splitlines()
        killed = f"killed by signal {-done.returncode}" if done.returncode < 0 else None
        reason = killed or (said[-1] if said else f"exit code {done.returncode}")
    except subprocess.TimeoutExpired:
        reason = f"not done within {arguments.limit:g} s"
    return {"pair": pair.name, "status": "failed", "reason": reason}


def swept(pair: Pair, threads: int) -> Record:
    """Everything for one pair, in this process."""
    refusal = pair.architecture.refusal(pair.encoder)
    record: Record = {"pair": pair.name, "status": "failed", "reason": None, "parameters": pair.encoder.parameters}
    try:
        if refusal:
            return record | refused(pair, refusal)
        if pair.encoder.parameters > MOST_PARAMETERS:
            return record | built_on_meta(pair)
        return record | compared(pair, threads)
    except Smp3dExportError as error:
        return record | {"reason": str(error).splitlines()[0]}


def refused(pair: Pair, refusal: str) -> Record:
    """Check that a pair which the table refuses cannot be built either."""
    import torch

    from smp3d_export.architectures import create_model

    try:
        with torch.device("meta"):
            create_model(pair.architecture.name, pair.encoder.name, encoder_weights=None)
    except UsageError:
        return {"status": "refused", "reason": refusal}
    return {"status": "failed", "reason": f"it can be built, but the table refuses it: {refusal}"}


def built_on_meta(pair: Pair) -> Record:
    import torch

    from smp3d_export.architectures import create_model

    with torch.device("meta"):
        model = create_model(
            pair.architecture.name, pair.encoder.name, None, 1, CLASSES, **pair.architecture.needs(pair.encoder)
        )
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "status": "meta",
        "reason": f"its weights take {4 * parameters / 1e9:.1f} GB, so it was built without weights",
        "parameters": parameters,
    }


def compared(pair: Pair, threads: int) -> Record:
    """Build, capture, export and compare with eager execution."""
    import torch

    from smp3d_export import backends
    from smp3d_export.arrays import volume
    from smp3d_export.backends.runner import Artifact
    from smp3d_export.backends.variant import Variant
    from smp3d_export.program.capture import activation_bytes, capture
    from smp3d_export.settings import Settings
    from smp3d_export.sources.named import NamedNetwork, build
    from smp3d_export.sources.network import OpenedNetwork
    from smp3d_export.sources.request import Request
    from smp3d_export.validators.cases import WORKSPACE
    from smp3d_export.validators.parity import Case, Reference, compare
    from smp3d_export.validators.tolerances import tolerance

    torch.set_num_threads(threads)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    clock = Clock()
    further = pair.architecture.needs(pair.encoder)
    request = NamedNetwork(
        architecture=pair.architecture.name,
        encoder=pair.encoder.name,
        arguments={"in_channels": 1, "classes": CLASSES, **further},
    )
    net = build(request)
    contract = contract_of(net.model.multiple, net.model.min_size)
    clock.lap("build")
    captured = capture(net.model, contract)
    clock.lap("capture")

    with tempfile.TemporaryDirectory(prefix="sweep-") as name:
        folder = Path(name)
        row = backends.find("onnx")
        exported = row.exporter().export(Variant("off", captured), Settings(), folder)
        clock.lap("export")
        size = sum(file.stat().st_size for file in folder.glob("model.onnx*"))
        manifest = OpenedNetwork(net, contract).describe(captured, Request(source=request))
        runner = row.runner()(Artifact(row, folder, manifest, threads))
        cases = []
        peak = activation_bytes(captured)
        free = hardware.available_memory()
        for title, shape in (("smallest", contract.min), ("untraced", untraced(contract.min, contract.multiple))):
            need = WORKSPACE * peak * prod(shape) / prod(contract.opt)
            skip = f"it takes about {need / 1e9:.0f} GB of memory" if free is not None and need > free else None
            cases.append(Case(title, shape, partial(volume, shape, request.seed), skip))
        parity = compare(runner, Reference(net, cases), tolerance("fp32", row.name))
        clock.lap("compare")
    status = "agrees" if parity.passed else "failed"
    reason = None
    if parity.not_run:
        reason = "; ".join(f"{title} shape not run, {why}" for title, why in parity.not_run)
    elif not parity.passed:
        worst = max(parity.measurements, key=lambda m: (not m.passed, m.relative))
        reason = f"differs by {worst.relative:.1e} of the range at {'×'.join(map(str, worst.shape))}"
    return {
        "status": status if parity.measurements else "not run",
        "reason": reason,
        "parameters": net.parameters,
        "arguments": further,
        "shapes": [case.shape for case in cases],
        "nodes": exported.facts["nodes"],
        "bytes": size,
        "largest": parity.relative if parity.measurements else None,
        "labels": parity.labels,
        "seconds": clock.laps,
    }


def contract_of(multiple: Sequence[int], min_size: Sequence[int]) -> Any:
    """From the smallest volume to two steps more, or twice it where that is more, of up to `BATCH`."""
    from smp3d_export.contract import ShapeContract

    most = (max(2 * low, low + 2 * k) for low, k in zip(min_size, multiple, strict=True))
    return ShapeContract.of((1, 1, *min_size), multiple=multiple, min_size=min_size, max=(BATCH, 1, *most))


def untraced(smallest: Sequence[int], multiple: Sequence[int]) -> tuple[int, ...]:
    """The smallest shape with no, one and two steps more of H, W and D, and another batch than the traced one."""
    sizes = [low + steps * k for steps, (low, k) in enumerate(zip(smallest[2:], multiple, strict=True))]
    return (BATCH if prod(sizes) < MANY_VOXELS else 1, smallest[1], *sizes)


class Clock:
    """The seconds of each part of a job."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.since = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self.since, 1)
        self.since = now


def stamp(threads: int) -> Record:
    """The day, the machine and the versions: a sweep may go on elsewhere."""
    found = provenance(PACKAGES, threads)
    return {**found, "versions": listed(found["versions"])}


def verdict(record: Record | None) -> str:
    """The cell of a pair in the table."""
    if record is None:
        return "not run"
    if record["status"] == "agrees":
        return f"{record['largest']:.0e}" + (f" ({record['reason']})" if record["reason"] else "")
    shown = {"refused": "refused", "failed": "failed", "meta": "not run, only built", "not run": "not run"}
    return f"{shown[record['status']]}: {record['reason']}"


def page(records: dict[str, Record]) -> str:
    """The page of results."""
    unet = ARCHITECTURES["Unet"]
    every = [pair.name for pair in pairs()]
    counts = Counter(records[name]["status"] if name in records else "not run" for name in every)
    lines = [
        "# Sweep over the networks",
        "",
        "Generated by `benchmarks/sweep_networks.py`. Each network is built with random weights, one input channel and",
        f"{CLASSES} classes. It is captured with dynamic batch and volume axes, exported to ONNX without rewrites (as",
        "with `--optimise off`), and compared with eager PyTorch in ONNX Runtime at two shapes: the smallest that it",
        "takes, and an untraced one with another batch size and unequal axes. Shapes are N×H×W×D.",
        "",
        "*Error* is the largest difference at any voxel of both shapes, as a fraction of the output's range. The",
        "tolerance is 1e-4, and 99.99 % of the labels must agree. *Seconds* is the total time, on a machine with other",
        "load.",
        "",
        f"{len(every)} pairs: {counts['agrees']} agree, {counts['refused']} are refused when built, "
        f"{counts['meta']} were only built, {counts['failed']} failed, {counts['not run']} were not run.",
        "",
        *machines(records[name] for name in every if name in records),
        "",
        "## Unet with every encoder",
        "",
        *tabled([Pair(unet, encoder) for encoder in ENCODERS.values()], records),
        "",
        "## Every architecture with the smallest encoder of each family",
        "",
        *tabled([Pair(a, encoder) for a in ARCHITECTURES.values() if a is not unet for encoder in families()], records),
    ]
    return "\n".join(lines) + "\n"


def machines(records: Iterable[Record]) -> list[str]:
    """A line for each machine with its versions."""
    days: dict[tuple[str, str], list[str]] = {}
    for record in records:
        days.setdefault((record["machine"], record["versions"]), []).append(record["date"])
    return [
        f"- {machine}; {versions}; {' to '.join(dict.fromkeys((min(dates), max(dates))))}; {len(dates)} pairs"
        for (machine, versions), dates in days.items()
    ]


def tabled(pairs: Iterable[Pair], records: dict[str, Record]) -> list[str]:
    head = ("network", "parameters", "smallest", "untraced", "nodes", "seconds", "error")
    rows = []
    for pair in pairs:
        record = records.get(pair.name)
        cells = [""] * 5
        if record is not None and record["status"] == "meta":
            cells[0] = f"{record['parameters'] / 1e6:.1f} M"
        elif record is not None and "shapes" in record:
            further = "".join(f", {name} {value}" for name, value in record["arguments"].items())
            smallest, other = ("×".join(map(str, (n, *sizes))) for n, _, *sizes in record["shapes"])
            seconds = sum(record["seconds"].values())
            cells = [
                f"{record['parameters'] / 1e6:.1f} M",
                smallest + further,
                other,
                str(record["nodes"]),
                f"{seconds:.0f}",
            ]
        rows.append([pair.name, *cells, verdict(record)])
    return table(head, rows, right=(1, 4, 5))


if __name__ == "__main__":
    main()

"""This tool's artifacts beside what one would do without it: same weights, one process, alternating rounds.

    python benchmarks/peers.py                                   Unet/resnet34, every way; a row of the results
    python benchmarks/peers.py --networks nine --ways ours       the nine seed architectures with resnet34
    python benchmarks/peers.py --page                            docs/performance.md from the results, with its plot

It needs `segmentation_models_pytorch_3d`, the extra `openvino` and, for the page, matplotlib. What fails or is not
installed is a line of the results that says so. The machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from math import exp, log, prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smp3d_export import hardware
from smp3d_export.arrays import volume
from smp3d_export.errors import ParityError
from smp3d_export.pipeline import run as export
from smp3d_export.precision import Precision
from smp3d_export.runtime.calibration import Calibration
from smp3d_export.sources import variants
from smp3d_export.sources.named import NamedNetwork
from smp3d_export.sources.request import Request
from smp3d_export.validators.bench import bench
from smp3d_export.validators.throughput import Ratio
from smp3d_export.validators.verdict import Report

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/peers.jsonl"
PAGE = ROOT / "docs/performance.md"
PLOT = ROOT / "docs/performance.svg"
# What stands between these in the page is written anew.
START, END = "<!-- results -->", "<!-- end of results -->"
PACKAGES = ("segmentation_models_pytorch_3d", "torch", "onnxruntime", "openvino", "nncf")
NINE = ("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "DeepLabV3", "DeepLabV3Plus", "PAN", "PSPNet")
# What H, W and D are multiples of, where not 32. H is held to more than the network needs, so that Winograd's filtering
# fits; of DeepLabV3 and DeepLabV3+, in the dilated stages too.
MULTIPLE = {"DeepLabV3": (128, 8, 8), "DeepLabV3Plus": (128, 16, 16), "PAN": (128, 128, 128), "PSPNet": (32, 8, 8)}
EAGER = "published package, eager"

Run = Callable[[Any], object]


@dataclass(frozen=True)
class Job:
    """One network of the published package, its weights in a file, and a shape to run it at."""

    architecture: str
    encoder: str
    shape: tuple[int, ...]
    threads: int
    model: torch.nn.Module
    folder: Path
    image: np.ndarray
    ways: tuple[str, ...]
    made: dict[Precision, Report] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "weights.pth"

    def onnx(self) -> Path:
        """What `torch.onnx.export` makes of the published network, with dynamic axes; once."""
        path = self.folder / "peer.onnx"
        if not path.exists():
            step = 128 if self.architecture == "PAN" else 32
            example = torch.zeros(2, 1, *(2 * step,) * 3)
            dims = {axis: step * torch.export.Dim(name, min=1, max=16) for axis, name in ((2, "h"), (3, "w"), (4, "d"))}
            dims[0] = torch.export.Dim("n", min=1, max=16)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    self.model,
                    (example,),
                    path,
                    dynamo=True,
                    dynamic_shapes=(dims,),
                    external_data=False,
                    verbose=False,
                )
        return path


def in_torch(model: Callable[[torch.Tensor], object]) -> Run:
    def run(image: np.ndarray) -> None:
        with torch.inference_mode():
            model(torch.from_numpy(image))

    return run


def eager(job: Job) -> Run:
    return in_torch(job.model)


def compiled(job: Job) -> Run:
    return in_torch(torch.compile(job.model))


def peer_onnx(job: Job) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    session = onnxruntime.InferenceSession(job.onnx(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda image: session.run(None, {name: image})


def peer_openvino(job: Job, *, quantised: bool = False, hint: str | None = None) -> Run:
    import openvino

    model = openvino.convert_model(job.onnx())
    if quantised:
        import nncf

        # NNCF fails at depthwise convolutions, which have no int8 kernels; the rest is its default.
        scope = nncf.IgnoredScope(types=["GroupConvolution"], validate=False)
        model = nncf.quantize(model, nncf.Dataset([job.image] * 4), ignored_scope=scope, subset_size=4)
    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": job.threads, "PERFORMANCE_HINT": "LATENCY"}
    if hint:
        settings["INFERENCE_PRECISION_HINT"] = hint
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    return lambda image: request.infer([image], share_inputs=True)


def channels_last(job: Job) -> Run:
    """Eager with this tool's rewrites and channels-last-3d, which is the best eager form."""
    from smp3d_export.optimise import optimise
    from smp3d_export.program.capture import capture
    from smp3d_export.program.memory_format import channels_last
    from smp3d_export.sources.named import build
    from smp3d_export.sources.network import contract_for

    source = network_of(job)
    request = Request(source=source, shape=job.shape)
    network = build(source, job.shape)
    return in_torch(channels_last(optimise(capture(network.model, contract_for(network, request))).captured))


def network_of(job: Job) -> NamedNetwork:
    return NamedNetwork(architecture=job.architecture, encoder=job.encoder, checkpoint=job.checkpoint)


def ours(target: str, precision: Precision) -> Callable[[Job], Path]:
    """The folder of an artifact of this tool, proved as it always is."""

    def make(job: Job) -> Path:
        if precision not in job.made:
            job.made[precision] = exported(job, precision)
        verdict = next(verdict for verdict in job.made[precision].verdicts if verdict.target == target)
        # A random network's classes are close everywhere; how fast the artifact is does not depend on that.
        missed = isinstance(verdict.error, ParityError) and precision is Precision.INT8
        if verdict.error is not None and not missed:
            raise verdict.error
        assert verdict.folder is not None
        return verdict.folder

    return make


def exported(job: Job, precision: Precision) -> Report:
    """All artifacts in a precision that are wanted, from one capture."""
    calibration = None
    if precision is Precision.INT8:
        for number in range(4):
            np.save(job.folder / f"scan{number}.npy", volume(job.shape, number)[0, 0])
        calibration = Calibration(job.folder, count=4)
    multiple = MULTIPLE.get(job.architecture, (32, 32, 32))
    request = Request(
        source=network_of(job),
        shape=job.shape,
        max=(*job.shape[:2], max(job.shape[2], 2 * multiple[0]), *job.shape[3:]),  # dynamic along H in any case
        multiple=multiple,
        targets=tuple(way.split()[0] for way in job.ways if WAYS[way][0] == "ours" and way.endswith(f" {precision}")),
        precision=precision,
        optimise="cpu" if precision in variants.PRECISIONS else "on",
        calibration=calibration,
        output=job.folder / precision,
        bench=False,
        threads=job.threads,
    )
    return export(request)


WAYS: dict[str, tuple[str, Callable[[Job], Run | Path]]] = {
    "torch.compile of it": ("peers", compiled),
    "torch.onnx.export of it, ONNX Runtime": ("peers", peer_onnx),
    "OpenVINO's convert_model of that, fp32": ("peers", lambda job: peer_openvino(job, hint="f32")),
    "OpenVINO's convert_model of that, its own choice of precision": ("peers", peer_openvino),
    "NNCF on that": ("peers", lambda job: peer_openvino(job, quantised=True)),
    "rewritten, channels-last-3d, eager": ("ours", channels_last),
    "onnx fp32": ("ours", ours("onnx", Precision.FP32)),
    "aoti fp32": ("ours", ours("aoti", Precision.FP32)),
    "openvino fp32": ("ours", ours("openvino", Precision.FP32)),
    "openvino bf16": ("ours", ours("openvino", Precision.BF16)),
    "openvino int8": ("ours", ours("openvino", Precision.INT8)),
}


def measure(architecture: str, encoder: str, shape: tuple[int, ...], ways: Iterable[str], args: Any) -> dict[str, Any]:
    """All ways for one network in alternating rounds."""
    published = importlib.import_module("segmentation_models_pytorch_3d")  # installed by hand
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = getattr(published, architecture)(encoder, encoder_weights=None, in_channels=1, classes=1).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm3d) and module.running_var is not None:
            module.running_var.uniform_(0.5, 1.5)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        job = Job(architecture, encoder, shape, args.threads, model, Path(folder), volume(shape, 0), tuple(ways))
        torch.save(model.state_dict(), job.checkpoint)
        extra: dict[str, Run] = {EAGER: eager(job)}
        folders: dict[str, Path] = {}
        failed: dict[str, str] = {}
        for way in ways:
            print(f"  making {way}", file=sys.stderr, flush=True)
            try:
                made = WAYS[way][1](job)
                if isinstance(made, Path):
                    folders[way] = made
                else:
                    made(job.image)
                    extra[way] = made
            except Exception as error:  # noqa: BLE001  a peer fails in whatever way it does, and that is the finding
                failed[way] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"
        found = bench(
            folders,
            EAGER,
            [shape],
            threads=args.threads,
            seconds=args.seconds,
            extra={name: silent(run) for name, run in extra.items()},
        )
        row: dict[str, Any] = {
            "network": f"{architecture.lower()}/{encoder}",
            "shape": shape,
            "rounds": found.rows[0].rounds,
            "multiple": MULTIPLE.get(architecture, (32, 32, 32)),
            "gflop": work_of(job),
            "matrix_gflops": found.matrix_gflops,
            "ways": {},
            "failed": failed,
        }
        for side in found.rows:
            speed = side.ratio or Ratio(1.0, (1.0, 1.0))
            row["ways"][side.name] = {
                "seconds": side.timing.p50,
                "speedup": speed.speedup,
                "interval": speed.interval,
            }
    return row | {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{hardware.processor()}, {args.threads} threads of {hardware.cores()} cores",
        "features": hardware.cpu_features(),
        "versions": {name: metadata.version(name) for name in PACKAGES if installed(name)},
    }


def work_of(job: Job) -> float | None:
    """GFLOP of the network as it was captured, by the manifest of an artifact."""
    for report in job.made.values():
        for verdict in report.verdicts:
            if verdict.folder is not None and (verdict.folder / "manifest.json").exists():
                return json.loads((verdict.folder / "manifest.json").read_text())["gflop"]
    return None


def silent(run: Run) -> Callable[[Any], None]:
    def timed(image: np.ndarray) -> None:
        run(image)

    return timed


def installed(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="Unet", help="architectures by commas, or nine")
    parser.add_argument("--encoder", default="resnet34")
    parser.add_argument("--shape", default="1,1,128,128,64")
    parser.add_argument("--ways", default="all", help="all, ours, or names by commas; at least one of ours")
    parser.add_argument("--seconds", type=float, default=300.0, help="for the rounds of a network; at least five")
    parser.add_argument("--threads", type=int, default=hardware.cores())
    parser.add_argument("--page", action="store_true", help="write the page of the results, measure nothing")
    args = parser.parse_args()
    if args.page:
        before, _, rest = PAGE.read_text("utf-8").partition(START)
        PAGE.write_text(before + START + "\n" + tables(read()) + END + rest.partition(END)[2], "utf-8")
        plot(read())
        return
    chosen = [
        way
        for way, (kind, _) in WAYS.items()
        if args.ways == "all" or (args.ways == kind == "ours") or way in args.ways.split(",")
    ]
    for architecture in NINE if args.networks == "nine" else args.networks.split(","):
        print(architecture, file=sys.stderr, flush=True)
        shape = tuple(int(size) for size in args.shape.split(","))
        if architecture == "PAN":  # it needs 128 voxels an axis
            shape = (*shape[:2], *(max(128, size) for size in shape[2:]))
        row = measure(architecture, args.encoder, shape, chosen, args)
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for way, found in row["ways"].items():
            low, high = found["interval"]
            print(f"{way:62} {found['seconds'] * 1e3:7.0f} ms  {found['speedup']:5.2f} ({low:.2f}–{high:.2f})")
        for way, reason in row["failed"].items():
            print(f"{way:62} failed: {reason}")


def read() -> dict[str, dict[str, Any]]:
    """The last row of each network."""
    rows: dict[str, dict[str, Any]] = {}
    for line in RESULTS.read_text("utf-8").splitlines():
        row = json.loads(line)
        rows[row["network"]] = row
    return rows


def tables(rows: dict[str, dict[str, Any]]) -> str:
    first = rows["unet/resnet34"]
    size = "×".join(map(str, first["shape"]))
    lines = [
        "",
        f"{first['machine']} ({', '.join(first['features'])});",
        f"{', '.join(f'{name} {version}' for name, version in first['versions'].items())}; {first['date']}.",
        "",
        f"## Unet/resnet34, {size}",
        "",
        "![speed-up over eager](performance.svg)",
        "",
        "| method | median | speed-up |",
        "|---|--:|---|",
    ]
    for way, found in sorted(first["ways"].items(), key=lambda item: item[1]["speedup"]):
        kind = "**" if way in WAYS and WAYS[way][0] == "ours" else ""
        low, high = found["interval"]
        lines.append(
            f"| {kind}{way}{kind} | {found['seconds'] * 1e3:.0f} ms | {found['speedup']:.2f} ({low:.2f}–{high:.2f}) |"
        )
    lines += [f"| {way} | | failed: {reason} |" for way, reason in first["failed"].items()]
    shown = [way for way in WAYS if WAYS[way][0] == "ours" and sum(way in row["ways"] for row in rows.values()) > 1]
    fp32 = [way for way in shown if way.endswith("fp32")]
    lines += ["", "## The nine architectures of the published package", ""]
    heads = ["network", "shape", "H, W, D multiples", *shown, "best fp32", "matrix product"]
    lines += [f"| {' | '.join(heads)} |", "|---|---|---|" + "--:|" * (len(shown) + 2)]
    best: dict[str, list[float]] = {"fp32": [], **{way: [] for way in shown}}
    for name in (f"{architecture.lower()}/resnet34" for architecture in NINE):
        if name not in rows:
            continue
        ways = rows[name]["ways"]
        cells = [f"{ways[way]['speedup']:.2f}" if way in ways else "failed" for way in shown]
        top = max((ways[way]["speedup"] for way in fp32 if way in ways), default=0.0)
        best["fp32"].append(top)
        for way in shown:
            if way in ways:
                best[way].append(ways[way]["speedup"])
        where = [name, "×".join(map(str, rows[name]["shape"])), ", ".join(map(str, rows[name]["multiple"]))]
        rate = f"{rows[name]['matrix_gflops']:.0f} GFLOP/s"
        lines.append(f"| {' | '.join([*where, *cells, f'{top:.2f}', rate])} |")
    means = [f"{geometric(best[way]):.2f}" for way in (*shown, "fp32")]
    lines.append(f"| geometric mean | | | {' | '.join(means)} | |")
    return "\n".join(lines) + "\n\n"


def geometric(values: list[float]) -> float:
    return exp(sum(map(log, values)) / len(values)) if values and prod(values) > 0 else float("nan")


def plot(rows: dict[str, dict[str, Any]]) -> None:
    importlib.import_module("matplotlib").use("svg")
    pyplot = importlib.import_module("matplotlib.pyplot")

    found = sorted(rows["unet/resnet34"]["ways"].items(), key=lambda item: item[1]["speedup"])
    colours = ["#1f77b4" if way in WAYS and WAYS[way][0] == "ours" else "#b0b0b0" for way, _ in found]
    figure, axes = pyplot.subplots(figsize=(8, 0.36 * len(found) + 0.9), layout="constrained")
    bars = axes.barh([way for way, _ in found], [way["speedup"] for _, way in found], color=colours)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set_xlabel("times as fast (blue: this tool)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.1)
    figure.savefig(PLOT, metadata={"Date": None})


if __name__ == "__main__":
    main()

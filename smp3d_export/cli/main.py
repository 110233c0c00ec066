"""The command line: parses, calls the pipeline, prints. No logic, and no torch until a job needs it."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperGroup

from smp3d_export import __version__, backends
from smp3d_export.architectures import architecture_spec
from smp3d_export.cli import options, parsing
from smp3d_export.device import checked
from smp3d_export.encoders import encoder_spec
from smp3d_export.errors import Smp3dExportError, UsageError
from smp3d_export.progress import Reporter
from smp3d_export.report import Destination, Failure, Result
from smp3d_export.runtime.calibration import Calibration
from smp3d_export.sources.named import NamedNetwork
from smp3d_export.sources.onnx import OnnxSource
from smp3d_export.sources.request import Request, Source, optimise_named
from smp3d_export.sources.saved import SavedModel

MAIN = "export"
# What a device may do without, as long as it does nothing that needs it; pip and Python have one name for each.
INSTALLED = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxsim", "safetensors", "huggingface_hub")
EXIT_UNAVAILABLE = 3
EXIT_INTERRUPTED = 130


class MainJob(TyperGroup):
    """A group whose main job takes no word: `smp3d-export ARCH ENCODER` is `smp3d-export export ARCH ENCODER`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = {name for param in self.params for name in (*param.opts, "--help")}
        if args and args[0] not in self.commands and args[0].partition("=")[0] not in own:
            args = [MAIN, *args]
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        main = self.commands[MAIN]
        with main.make_context(ctx.info_name, [], resilient_parsing=True) as context:
            main.format_help(context, formatter)


app = typer.Typer(cls=MainJob, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False)


def main() -> None:
    """The console script."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that temporary folders are removed
    app()


def reporting(job: Callable[..., None]) -> Callable[..., None]:
    """Turn an error into its one line on stderr (JSON on stdout where `as_json` asks for that) and its exit code."""

    @functools.wraps(job)
    def run(*args: Any, **kwargs: Any) -> None:
        debug = kwargs["debug"]
        try:
            job(*args, **kwargs)
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            fail("interrupted; nothing unfinished was left", EXIT_INTERRUPTED, kwargs)
        except Smp3dExportError as error:
            if debug:
                traceback.print_exc()
            fail(str(error), error.exit_code, kwargs)
        except Exception as error:  # noqa: BLE001  the last resort, so that no traceback reaches a user
            if debug:
                traceback.print_exc()
            if isinstance(error, ModuleNotFoundError) and error.name in INSTALLED:
                fail(f"{error.name} is not installed here: pip install {error.name}", EXIT_UNAVAILABLE, kwargs)
            text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            fail(f"this is a bug in smp3d-export; please report it with the output of --debug: {text}", 1, kwargs)

    return run


def fail(message: str, code: int, given: dict[str, Any]) -> NoReturn:
    failure = Failure(message, code)
    if given.get("as_json"):
        Destination("json", None).write(failure)
    with contextlib.suppress(UsageError):  # a report that cannot be written may be the error itself
        for destination in parsing.reports(given.get("report")):
            destination.write(failure)
    console = Console(stderr=True, soft_wrap=True)
    console.print("[bold red]error:[/] ", end="")
    console.print(message, markup=False, highlight=False)
    raise typer.Exit(code)


def deliver(result: Result, reports: Sequence[Destination], as_json: bool, show: Callable[[Console], None]) -> NoReturn:
    """Write the reports, print the result as a table or as JSON, and exit with its code."""
    for destination in reports:
        destination.write(result)
    if as_json:
        Destination("json", None).write(result)
    else:
        Console(stderr=True).print()
        show(Console())
    raise typer.Exit(result.exit_code)


def print_version(value: bool) -> None:
    if value:
        print(f"smp3d-export {__version__}")
        raise typer.Exit


@app.callback()
def group(
    version: Annotated[bool, typer.Option("--version", callback=print_version, is_eager=True)] = False,
) -> None:
    """Export 3D segmentation networks."""


EPILOG = """
[bold]Other jobs[/], each with --help; there are --version and --install-completion too

smp3d-export from DIR|FILE.onnx: export what save_pretrained wrote, or make more of an exported ONNX file

smp3d-export verify DIR: prove an artifact again, on the machine it is for

smp3d-export bench DIR...: time artifacts side by side

smp3d-export list: the architectures, encoders and targets there are

smp3d-export doctor: what this machine can export to

[bold]Examples[/]

smp3d-export unet resnet34 --shape 1,1,128,128,64

smp3d-export unet efficientnet-b0 --checkpoint best.ckpt --sample scan.nii.gz --normalize zscore

smp3d-export unet resnet50 --strides 2,2,2/2,2,1/2,2,2/2,2,1/2,2,2 --shape 1,1,128,128,32 --classes 3

smp3d-export unet resnet34 --checkpoint best.pth --to openvino,trt-rtx --precision fp16 --gpu 8.6,8.9

smp3d-export unet resnet34 --checkpoint best.pth --to openvino --precision int8 --calibration volumes/
"""


def exporting(source: Callable[..., Source]) -> Callable[..., None]:
    """A job that exports the network which `source` makes of its own options; those of every export are added to it."""
    own = inspect.signature(source, eval_str=True).parameters
    _, *others = inspect.signature(run_export, eval_str=True).parameters.values()

    @functools.wraps(source)
    def job(**given: Any) -> None:
        network = source(**{name: given.pop(name) for name in own})
        run_export(network, **given)

    job.__signature__ = inspect.Signature([*own.values(), *others])  # pyright: ignore[reportAttributeAccessIssue]
    return job


def run_export(
    network: Source,
    shape: options.Shape = None,
    smallest: options.Smallest = None,
    largest: options.Largest = None,
    multiple: options.Multiple = None,
    static: options.Static = False,
    to: options.To = "onnx",
    precision: options.PrecisionName = None,
    keep_fp32: options.KeepFp32 = None,
    calibration: options.CalibrationFolder = None,
    gpu: options.Gpu = None,
    device: options.Device = "auto",
    output: options.Folder = None,
    opset: options.Opset = None,
    optimise: options.Optimise = None,
    sample: options.Sample = None,
    normalize: options.Normalize = None,
    threads: options.Threads = None,
    no_bench: options.NoBench = False,
    min_speedup: options.MinSpeedup = None,
    report: options.Reports = None,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Export a network with the options that every export has, print its report, and exit with its code."""
    reports = parsing.reports(report)
    normalisation = parsing.normalisation(normalize)
    request = Request(
        source=network,
        shape=parsing.shape("--shape", shape),
        min=parsing.shape("--min", smallest),
        max=parsing.shape("--max", largest),
        multiple=parsing.multiple(multiple),
        static=static,
        targets=tuple(dict.fromkeys(backends.find(name.strip()).name for name in to.split(","))),
        samples=tuple(sample or ()),
        normalisation=normalisation,
        precision=parsing.precision(precision),
        keep_fp32=tuple(keep_fp32 or ()),
        calibration=None if calibration is None else Calibration(calibration, normalisation),
        gpus=parsing.capabilities(gpu),
        device=checked(device, auto=True),
        threads=threads,
        opset=opset,
        optimise=None if optimise is None else optimise_named(optimise),
        output=output,
        bench=not no_bench,
        min_speedup=min_speedup,
    )
    reporter = Reporter(Console(stderr=True))
    with reporter.working("loading"):
        from smp3d_export.pipeline import run
        from smp3d_export.report import console

    result = run(request, reporter)
    deliver(result, reports, as_json, lambda out: console.show(result, out))


@app.command(MAIN, hidden=True, epilog=EPILOG, no_args_is_help=True)
@reporting
@exporting
def export(
    arch: options.Arch,
    encoder: options.Encoder,
    checkpoint: options.Checkpoint = None,
    encoder_weights: options.EncoderWeights = None,
    seed: options.Seed = 0,
    in_channels: options.InChannels = None,
    classes: options.Classes = None,
    encoder_depth: options.EncoderDepth = None,
    strides: options.Strides = None,
    decoder_channels: options.DecoderChannels = None,
    no_decoder_batchnorm: options.NoDecoderBatchnorm = False,
    decoder_attention: options.DecoderAttention = None,
    activation: options.Activation = None,
    aux_params: options.AuxParams = None,
    arg: options.Arg = None,
) -> NamedNetwork:
    """Export a 3D segmentation network, prove it equal to eager PyTorch, and measure it.

    The artifact is a folder with the model, a manifest and a golden input. All volume axes and the batch are dynamic.
    """
    named = {
        "encoder_name": encoder_spec(encoder).name,
        "in_channels": in_channels,
        "classes": classes,
        "encoder_depth": encoder_depth,
        "strides": None if strides is None else parsing.strides(strides),
        "decoder_channels": None if decoder_channels is None else parsing.values(decoder_channels),
        "decoder_use_batchnorm": False if no_decoder_batchnorm else None,
        "decoder_attention_type": decoder_attention,
        "activation": activation,
        "aux_params": None if aux_params is None else parsing.pairs("--aux-params", aux_params),
        "encoder_weights": encoder_weights,
    }
    arguments = parsing.arguments(named, arg or ())
    return NamedNetwork(
        architecture=architecture_spec(arch).name,
        encoder=arguments.pop("encoder_name"),
        arguments=arguments,
        checkpoint=checkpoint,
        seed=seed,
    )


@app.command("from", no_args_is_help=True)
@reporting
@exporting
def export_saved(source: options.Saved, revision: options.Revision = None, seed: options.Seed = 0) -> Source:
    """Export a model that save_pretrained wrote, with the shapes that are stored with it unless others are given.

    From an ONNX file that an export wrote, it makes further artifacts, without PyTorch.

    Examples: smp3d-export from runs/best --to onnx, smp3d-export from unet-resnet34/model.onnx --to trt-rtx
    """
    if source.lower().endswith(".onnx"):
        if revision is not None:
            raise UsageError("--revision is of a repository, not of an ONNX file")
        return OnnxSource(path=Path(source), seed=seed)
    return SavedModel(source=source, revision=revision, seed=seed)


@app.command("list")
@reporting
def list_names(
    what: options.What = "encoders",
    family: options.Family = None,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """List the architectures, encoders or targets there are.

    Example: smp3d-export list encoders --family resnet
    """
    from smp3d_export.cli import listing

    rows = listing.rows(what, family)
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        listing.show(what, rows, Console())


@app.command(no_args_is_help=True)
@reporting
def verify(
    folder: options.Artifact,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    report: options.Reports = None,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Prove an artifact on this machine: the hashes of its files, then its golden input through it.

    Exit codes: 2 if a file is not what the manifest says, 3 if it cannot run here, 5 if its outputs differ.

    Example: smp3d-export verify unet-resnet34
    """
    from smp3d_export.report import console
    from smp3d_export.validators import verify as job

    reports = parsing.reports(report)
    reporter = Reporter(Console(stderr=True))
    result = job.verify(folder, reporter, threads=threads, device=checked(device))
    deliver(result, reports, as_json, lambda out: console.show(result, out, speed=False))


@app.command(no_args_is_help=True)
@reporting
def bench(
    artifacts: options.Artifacts,
    against: options.Against = "eager",
    shape: options.BenchShapes = None,
    seconds: options.Seconds = 15.0,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    report: options.Reports = None,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Time artifacts side by side, in alternating rounds, at several shapes.

    Example: smp3d-export bench unet-resnet34/onnx unet-resnet34/openvino --shape 1,1,128,128,64
    """
    from smp3d_export.report import timings
    from smp3d_export.validators import bench as job

    reports = parsing.reports(report)
    shapes = [sizes for text in shape or () if (sizes := parsing.shape("--shape", text))]
    result = job.bench(
        artifacts,
        against,
        shapes,
        threads=threads,
        device=checked(device),
        seconds=seconds,
        reporter=Reporter(Console(stderr=True)),
    )
    deliver(result, reports, as_json, lambda out: timings.show(result, out))


@app.command()
@reporting
def doctor(as_json: options.AsJson = False, debug: options.Debug = False) -> None:
    """Show what can be exported to on this machine, and what each part needs that is missing."""
    from smp3d_export.cli import doctor as job

    findings = job.examine()
    if as_json:
        print(json.dumps(findings, indent=2))
    else:
        job.show(findings, Console())

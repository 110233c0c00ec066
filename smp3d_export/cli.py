"""The command line: parses, calls the pipeline, prints. No logic, and no torch until a job needs it."""

from __future__ import annotations

import functools
import json
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperGroup

from smp3d_export import __version__, parsing
from smp3d_export.architectures import ARCHITECTURES, architecture_spec
from smp3d_export.encoders import ENCODERS, encoder_spec
from smp3d_export.errors import Smp3dExportError
from smp3d_export.progress import Reporter
from smp3d_export.request import NetworkRequest, Request
from smp3d_export.targets import TARGETS, known

MAIN = "export"
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
            text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            fail(f"a bug of smp3d-export, please report it with the output of --debug: {text}", 1, kwargs)

    return run


def fail(message: str, code: int, options: dict[str, Any]) -> NoReturn:
    if options.get("as_json"):
        print(json.dumps({"error": message, "exit_code": code}, ensure_ascii=False), flush=True)
    console = Console(stderr=True, soft_wrap=True)
    console.print("[bold red]error:[/] ", end="")
    console.print(message, markup=False, highlight=False)
    raise typer.Exit(code)


def complete_from(names: Any) -> Callable[[str], list[str]]:
    return lambda incomplete: [name for name in names if name.lower().startswith(incomplete.lower())]


def print_version(value: bool) -> None:
    if value:
        print(f"smp3d-export {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=print_version, is_eager=True)] = False,
) -> None:
    """Export 3D segmentation networks."""


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel="Output")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.", rich_help_panel="Output")]

NETWORK, WEIGHTS, SHAPES, EXPORT, PROOF = "Network", "Weights", "Shapes", "Artifact", "Proof"

EPILOG = """
Other jobs: [bold]smp3d-export list[/] (networks and targets) · [bold]smp3d-export doctor[/] (what this machine can do).
Each has --help; so have --version and --install-completion.

[bold]Examples[/]

smp3d-export unet resnet34 --shape 1,1,128,128,64

smp3d-export unet efficientnet-b0 --checkpoint best.ckpt --sample scan.nii.gz --normalize zscore

smp3d-export unet resnet50 --strides 2,2,2/2,2,1/2,2,2/2,2,1/2,2,2 --shape 1,1,128,128,32 --classes 3
"""


@app.command(MAIN, hidden=True, epilog=EPILOG, no_args_is_help=True)
@reporting
def export(
    arch: Annotated[
        str,
        typer.Argument(
            metavar="ARCH",
            help="Architecture, in any case: unet.",
            autocompletion=complete_from([n.lower() for n in ARCHITECTURES]),
        ),
    ],
    encoder: Annotated[
        str, typer.Argument(metavar="ENCODER", help="Encoder: resnet34.", autocompletion=complete_from(ENCODERS))
    ],
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="N,C,H,W,D", rich_help_panel=SHAPES, help="What to be fast at. [dim]Default: 1,C,64,64,64[/]"
        ),
    ] = None,
    smallest: Annotated[
        str | None,
        typer.Option(
            "--min", metavar="N,C,H,W,D", rich_help_panel=SHAPES, help="Least sizes. [dim]Default: the network's[/]"
        ),
    ] = None,
    largest: Annotated[
        str | None,
        typer.Option(
            "--max", metavar="N,C,H,W,D", rich_help_panel=SHAPES, help="Largest. [dim]Default: twice --shape[/]"
        ),
    ] = None,
    static: Annotated[
        bool, typer.Option("--static", rich_help_panel=SHAPES, help="Freeze all axes at --shape.")
    ] = False,
    to: Annotated[
        str,
        typer.Option(
            metavar="TARGET,...", rich_help_panel=EXPORT, help="Targets.", autocompletion=complete_from(TARGETS)
        ),
    ] = "onnx",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", rich_help_panel=EXPORT, help="Folder. [dim]Default: ./ARCH-ENCODER[/]"),
    ] = None,
    opset: Annotated[int, typer.Option(rich_help_panel=EXPORT, help="ONNX operator set.")] = 20,
    checkpoint: Annotated[
        Path | None,
        typer.Option(rich_help_panel=WEIGHTS, help="Trained weights: .pth, .pt, .ckpt, .safetensors."),
    ] = None,
    encoder_weights: Annotated[
        str | None, typer.Option(rich_help_panel=WEIGHTS, metavar="NAME", help="Published weights of the encoder.")
    ] = None,
    seed: Annotated[int, typer.Option(rich_help_panel=WEIGHTS, help="Of random weights and inputs.", min=0)] = 0,
    in_channels: Annotated[
        int | None, typer.Option(rich_help_panel=NETWORK, help="[dim]Default: C of --shape, or the checkpoint's[/]")
    ] = None,
    classes: Annotated[
        int | None, typer.Option(rich_help_panel=NETWORK, help="Of the masks. [dim]Default: 1, or the checkpoint's[/]")
    ] = None,
    encoder_depth: Annotated[int | None, typer.Option(rich_help_panel=NETWORK, help="Stages of the encoder.")] = None,
    strides: Annotated[
        str | None,
        typer.Option(metavar="H,W,D/...", rich_help_panel=NETWORK, help="Of the stages: 2,2,2/2,2,1/2,2,2/2,2,2/2,2,2"),
    ] = None,
    decoder_channels: Annotated[
        str | None, typer.Option(metavar="C,C,...", rich_help_panel=NETWORK, help="Such as 256,128,64,32,16")
    ] = None,
    no_decoder_batchnorm: Annotated[
        bool, typer.Option("--no-decoder-use-batchnorm", rich_help_panel=NETWORK, help="Biases in its place.")
    ] = False,
    decoder_attention_type: Annotated[
        str | None, typer.Option(metavar="NAME", rich_help_panel=NETWORK, help="scse")
    ] = None,
    activation: Annotated[
        str | None, typer.Option(metavar="NAME", rich_help_panel=NETWORK, help="Of the masks: sigmoid, softmax, ...")
    ] = None,
    aux_params: Annotated[
        str | None,
        typer.Option(metavar="K=V,...", rich_help_panel=NETWORK, help="Classification head: classes=4,pooling=avg"),
    ] = None,
    sample: Annotated[
        list[Path] | None,
        typer.Option(
            rich_help_panel=PROOF, help="A volume to compare on too, H,W,D: .npy, .npz, NIfTI. May be repeated."
        ),
    ] = None,
    normalize: Annotated[
        str | None,
        typer.Option(metavar="MEAN,STD|zscore", rich_help_panel=PROOF, help="Of samples; (x - MEAN) / STD."),
    ] = None,
    no_bench: Annotated[bool, typer.Option("--no-bench", rich_help_panel=PROOF, help="Skip measuring speed.")] = False,
    min_speedup: Annotated[
        float | None, typer.Option(rich_help_panel=PROOF, help="Fail, with exit code 6, below this times eager.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Export a 3D segmentation network, prove it equal to eager PyTorch, and measure it.

    The artifact is a folder with the model, a manifest and a golden input. All volume axes and the batch are dynamic.
    """
    given = {
        "in_channels": in_channels,
        "classes": classes,
        "encoder_depth": encoder_depth,
        "strides": None if strides is None else parsing.strides(strides),
        "decoder_channels": None
        if decoder_channels is None
        else parsing.numbers("--decoder-channels", decoder_channels, "256,128,64,32,16"),
        "decoder_use_batchnorm": False if no_decoder_batchnorm else None,
        "decoder_attention_type": decoder_attention_type,
        "activation": activation,
        "aux_params": None if aux_params is None else parsing.pairs("--aux-params", aux_params),
        "encoder_weights": encoder_weights,
    }
    request = Request(
        network=NetworkRequest(
            architecture=architecture_spec(arch).name,
            encoder=encoder_spec(encoder).name,
            arguments={name: value for name, value in given.items() if value is not None},
            checkpoint=checkpoint,
            seed=seed,
        ),
        shape=parsing.shape("--shape", shape),
        min=parsing.shape("--min", smallest),
        max=parsing.shape("--max", largest),
        static=static,
        targets=tuple(dict.fromkeys(known(name.strip()) for name in to.split(","))),
        samples=tuple(sample or ()),
        normalisation=parsing.normalisation(normalize),
        opset=opset,
        output=output,
        bench=not no_bench,
        min_speedup=min_speedup,
    )
    reporter = Reporter(Console(stderr=True))
    with reporter.working("loading PyTorch"):
        from smp3d_export.pipeline import run

    report = run(request, reporter)
    from smp3d_export.report import console, json

    reporter.say()
    if as_json:
        json.show(report, sys.stdout)
    else:
        console.show(report, Console())
    raise typer.Exit(report.exit_code)


@app.command("list")
@reporting
def list_names(
    what: Annotated[
        str,
        typer.Argument(
            help="architectures, encoders or targets",
            autocompletion=complete_from(["architectures", "encoders", "targets"]),
        ),
    ] = "encoders",
    family: Annotated[str | None, typer.Option(help="Only the encoders of this family.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List the architectures, encoders or targets there are.

    Example: smp3d-export list encoders --family resnet
    """
    from smp3d_export import listing

    rows = listing.rows(what, family)
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        listing.show(rows, Console())


@app.command()
@reporting
def doctor(as_json: AsJson = False, debug: Debug = False) -> None:
    """Show what can be exported to on this machine, and what each part needs that is missing."""
    from smp3d_export import doctor as job

    findings = job.examine()
    if as_json:
        print(json.dumps(findings, indent=2))
    else:
        job.show(findings, Console())

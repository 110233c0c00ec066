"""The options of the command line's jobs, each defined once: its type, its name, its help and the panel it is in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import typer

from smp3d_export.architectures import ARCHITECTURES
from smp3d_export.backends import BACKENDS
from smp3d_export.cli.listing import KINDS
from smp3d_export.encoders import ENCODERS
from smp3d_export.precision import Precision
from smp3d_export.report import FORMATS

NETWORK, WEIGHTS, SHAPES, EXPORT, PROOF, OUTPUT = "Network", "Weights", "Shapes", "Artifact", "Proof", "Output"


def complete_from(names: Iterable[str]) -> Callable[[str], list[str]]:
    return lambda incomplete: [name for name in names if name.lower().startswith(incomplete.lower())]


# What the network is.
Arch = Annotated[
    str,
    typer.Argument(
        metavar="ARCH",
        help="Architecture, in any case: unet.",
        autocompletion=complete_from([name.lower() for name in ARCHITECTURES]),
    ),
]
Encoder = Annotated[
    str, typer.Argument(metavar="ENCODER", help="Encoder: resnet34.", autocompletion=complete_from(ENCODERS))
]
InChannels = Annotated[
    int | None, typer.Option(rich_help_panel=NETWORK, help="[dim]Default: C of --shape, or the checkpoint's[/]")
]
Classes = Annotated[
    int | None, typer.Option(rich_help_panel=NETWORK, help="Of the masks. [dim]Default: 1, or the checkpoint's[/]")
]
EncoderDepth = Annotated[int | None, typer.Option(rich_help_panel=NETWORK, help="Stages of the encoder.")]
Strides = Annotated[
    str | None,
    typer.Option(metavar="H,W,D/...", rich_help_panel=NETWORK, help="Of the stages: 2,2,2/2,2,1/2,2,2/2,2,2/2,2,2"),
]
DecoderChannels = Annotated[
    str | None, typer.Option(metavar="C,C,...", rich_help_panel=NETWORK, help="Such as 256,128,64,32,16")
]
NoDecoderBatchnorm = Annotated[
    bool, typer.Option("--no-decoder-use-batchnorm", rich_help_panel=NETWORK, help="Biases in its place.")
]
DecoderAttention = Annotated[
    str | None, typer.Option("--decoder-attention-type", metavar="NAME", rich_help_panel=NETWORK, help="scse")
]
Activation = Annotated[
    str | None, typer.Option(metavar="NAME", rich_help_panel=NETWORK, help="Of the masks: sigmoid, softmax, ...")
]
AuxParams = Annotated[
    str | None,
    typer.Option(metavar="K=V,...", rich_help_panel=NETWORK, help="Classification head: classes=4,pooling=avg"),
]
Arg = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        rich_help_panel=NETWORK,
        help="Any other argument of the architecture: decoder_atrous_rates=6,12,18. May be repeated.",
    ),
]

# Where its weights come from.
Checkpoint = Annotated[
    Path | None, typer.Option(rich_help_panel=WEIGHTS, help="Trained weights: .pth, .pt, .ckpt, .safetensors.")
]
EncoderWeights = Annotated[
    str | None, typer.Option(rich_help_panel=WEIGHTS, metavar="NAME|PATH", help="Of the encoder: imagenet, or a file.")
]
Saved = Annotated[
    str,
    typer.Argument(
        metavar="DIR|FILE.onnx",
        help="A folder that save_pretrained wrote, OWNER/NAME of a repository of the hub, or an exported ONNX file.",
    ),
]
Revision = Annotated[
    str | None, typer.Option(rich_help_panel=WEIGHTS, help="Of the repository: a branch, a tag or a commit.")
]
Seed = Annotated[int, typer.Option(rich_help_panel=WEIGHTS, help="Of random weights and inputs.", min=0)]

# The shapes it is exported for.
Shape = Annotated[
    str | None,
    typer.Option(metavar="N,C,H,W,D", rich_help_panel=SHAPES, help="What to be fast at. [dim]Default: 1,C,64,64,64[/]"),
]
Smallest = Annotated[
    str | None,
    typer.Option(
        "--min", metavar="N,C,H,W,D", rich_help_panel=SHAPES, help="Least sizes. [dim]Default: the network's[/]"
    ),
]
Largest = Annotated[
    str | None,
    typer.Option("--max", metavar="N,C,H,W,D", rich_help_panel=SHAPES, help="Largest. [dim]Default: twice --shape[/]"),
]
Multiple = Annotated[
    str | None,
    typer.Option(
        metavar="H,W,D",
        rich_help_panel=SHAPES,
        help="Sizes are multiples of it; a coarse one lets --optimise cpu do more. [dim]Default: the network's[/]",
    ),
]
Static = Annotated[bool, typer.Option("--static", rich_help_panel=SHAPES, help="Freeze all axes at --shape.")]

# What is made of it.
To = Annotated[
    str,
    typer.Option(metavar="TARGET,...", rich_help_panel=EXPORT, help="Targets.", autocompletion=complete_from(BACKENDS)),
]
PrecisionName = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="NAME",
        rich_help_panel=EXPORT,
        help="fp32, tf32, fp16, bf16 or int8. [dim]Default: fp32, or the ONNX file's[/]",
        autocompletion=complete_from(Precision),
    ),
]
KeepFp32 = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        rich_help_panel=EXPORT,
        help="Layers or operators to keep in fp32: 'decoder.*', softmax. May be repeated.",
    ),
]
CalibrationFolder = Annotated[
    Path | None,
    typer.Option("--calibration", metavar="DIR", rich_help_panel=EXPORT, help="Volumes that int8 is calibrated on."),
]
Gpu = Annotated[
    str | None,
    typer.Option(metavar="CC,...", rich_help_panel=EXPORT, help="Compute capabilities an engine is for: 8.6,8.9"),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="cpu|cuda[:N]",
        rich_help_panel=EXPORT,
        help="Where to capture, compare and measure; auto: on the GPU for engines, if there is one.",
    ),
]
Threads = Annotated[
    int | None, typer.Option(rich_help_panel=PROOF, help="To run on. [dim]Default: all cores[/]", min=1)
]
Folder = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", rich_help_panel=EXPORT, help="Folder. [dim]Default: ./ARCH-ENCODER or ./DIR-export[/]"
    ),
]
Opset = Annotated[
    int | None,
    typer.Option(rich_help_panel=EXPORT, help="ONNX operator set, 13 to 25. [dim]Default: 20, or the ONNX file's[/]"),
]
Optimise = Annotated[
    str | None,
    typer.Option(
        metavar="on|off|cpu|auto",
        rich_help_panel=EXPORT,
        help="Exact rewrites of the graph; cpu: those for processors too; auto: the fastest here.",
    ),
]

# How it is proved.
Sample = Annotated[
    list[Path] | None,
    typer.Option(rich_help_panel=PROOF, help="A volume to compare on too, H,W,D: .npy, .npz, NIfTI. May be repeated."),
]
Normalize = Annotated[
    str | None,
    typer.Option(metavar="MEAN,STD|zscore", rich_help_panel=PROOF, help="Of samples; (x - MEAN) / STD."),
]
NoBench = Annotated[bool, typer.Option("--no-bench", rich_help_panel=PROOF, help="Skip measuring speed.")]
MinSpeedup = Annotated[
    float | None, typer.Option(rich_help_panel=PROOF, help="Fail, with exit code 6, below this times eager.")
]

# What the jobs on an artifact take.
Artifact = Annotated[Path, typer.Argument(metavar="DIR", help="An artifact's folder, or one with several of them.")]

Artifacts = Annotated[
    list[Path], typer.Argument(metavar="DIR...", help="Artifacts' folders, or folders with several of them.")
]
Against = Annotated[
    str, typer.Option(metavar="eager|DIR", rich_help_panel=PROOF, help="What they are measured against.")
]
BenchShapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="N,C,H,W,D",
        rich_help_panel=PROOF,
        help="May be repeated. [dim]Default: optimum, least, twice the optimum[/]",
    ),
]
Seconds = Annotated[float, typer.Option(rich_help_panel=PROOF, help="Of rounds at a shape, of which 5 at least.")]

# What every job has.
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.", rich_help_panel=OUTPUT)]
Reports = Annotated[
    list[str] | None,
    typer.Option(
        "--report",
        metavar="KIND=FILE",
        rich_help_panel=OUTPUT,
        help=f"Write the result to a file ({', '.join(FORMATS)}); - is stdout. Repeatable.",
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=OUTPUT)]

# What `list` prints.
What = Annotated[str, typer.Argument(help=", ".join(KINDS), autocompletion=complete_from(KINDS))]
Family = Annotated[str | None, typer.Option(help="Only the encoders of this family.")]

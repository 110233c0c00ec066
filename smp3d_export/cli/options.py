"""The options of the command line's jobs, each defined once: its type, its name, its help and its panel."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, get_args

import typer

from smp3d_export import backends
from smp3d_export.architectures import ARCHITECTURES
from smp3d_export.cli.listing import FAMILIES, KINDS
from smp3d_export.encoders import ENCODERS
from smp3d_export.precision import Precision
from smp3d_export.report import FORMATS
from smp3d_export.sources import request

NETWORK, WEIGHTS, SHAPES, EXPORT, PROOF, OUTPUT = "Network", "Weights", "Shapes", "Artifact", "Proof", "Output"


def complete_from(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Completes one name."""
    return lambda incomplete: [name for name in names() if name.lower().startswith(incomplete.lower())]


def complete_list(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Completes the last of several comma-separated names."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{name}" for name in names() if name.startswith(last)]

    return complete


class WrongNumber(typer.BadParameter):
    """A number that cannot be read. Its message is shown as it is, in every version of Typer."""

    def format_message(self) -> str:
        return self.message


def whole(option: str, smallest: int | None = None) -> Callable[[object], int]:
    """Reads a whole number for an option."""

    def read(text: object) -> int:
        try:
            value = int(str(text))
        except ValueError:
            value = None
        if value is None or (smallest is not None and value < smallest):
            bound = "" if smallest is None else f" from {smallest} up"
            raise WrongNumber(f"{option} is {text!s}; it takes a whole number{bound}")
        return value

    return read


def number(option: str) -> Callable[[object], float]:
    """Reads a finite number from 0 up for an option."""

    def read(text: object) -> float:
        try:
            value = float(str(text))
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            raise WrongNumber(f"{option} is {text!s}; it takes a number from 0 up")
        return value

    return read


def with_default(text: str, default: str) -> str:
    """A help text with a default that the job works out, in the form of a plain default."""
    return f"{text} [default: {default}]"


# What the network is.
Arch = Annotated[
    str,
    typer.Argument(
        metavar="ARCH",
        help="Architecture, such as unet. All: smp3d-export list architectures",
        autocompletion=complete_from(lambda: [name.lower() for name in ARCHITECTURES]),
    ),
]
Encoder = Annotated[
    str,
    typer.Argument(
        metavar="ENCODER",
        help="Encoder, such as resnet34. All: smp3d-export list",
        autocompletion=complete_from(lambda: ENCODERS),
    ),
]
InChannels = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        parser=whole("--in-channels"),
        rich_help_panel=NETWORK,
        help=with_default("Input channels.", "C of --shape, or the checkpoint's"),
    ),
]
Classes = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        parser=whole("--classes"),
        rich_help_panel=NETWORK,
        help=with_default("Classes of the masks.", "1, or the checkpoint's"),
    ),
]
EncoderDepth = Annotated[
    int | None,
    typer.Option(metavar="N", parser=whole("--encoder-depth"), rich_help_panel=NETWORK, help="Encoder stages."),
]
Strides = Annotated[
    str | None,
    typer.Option(
        metavar="H,W,D/...",
        rich_help_panel=NETWORK,
        help="Stride of each encoder stage, such as 2,2,2/2,2,1/2,2,2/2,2,2/2,2,2",
    ),
]
DecoderChannels = Annotated[
    str | None,
    typer.Option(
        metavar="C,C,...", rich_help_panel=NETWORK, help="Channels of each decoder stage, such as 256,128,64,32,16"
    ),
]
NoDecoderBatchnorm = Annotated[
    bool,
    typer.Option(
        "--no-decoder-use-batchnorm", rich_help_panel=NETWORK, help="Decoder without batch norm (uses biases)."
    ),
]
DecoderUseNorm = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[,K=V,...]",
        rich_help_panel=NETWORK,
        help="Normalisation in the decoder: batchnorm, groupnorm, instancenorm, layernorm or identity; with arguments "
        "of the layer, such as groupnorm,num_groups=8",
    ),
]
DecoderAttention = Annotated[
    str | None,
    typer.Option(
        "--decoder-attention-type", metavar="NAME", rich_help_panel=NETWORK, help="Attention in the decoder: scse"
    ),
]
Activation = Annotated[
    str | None,
    typer.Option(metavar="NAME", rich_help_panel=NETWORK, help="Activation of the masks, such as sigmoid or softmax."),
]
AuxParams = Annotated[
    str | None,
    typer.Option(
        metavar="K=V,...",
        rich_help_panel=NETWORK,
        help="Adds a classification head, such as classes=4,pooling=avg",
    ),
]
Arg = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        rich_help_panel=NETWORK,
        help="Any other argument of the architecture, such as decoder_atrous_rates=6,12,18. Repeatable.",
    ),
]

# Where its weights come from.
Checkpoint = Annotated[
    Path | None,
    typer.Option(metavar="FILE", rich_help_panel=WEIGHTS, help="Trained weights: .pth, .pt, .ckpt or .safetensors."),
]
WeightsKey = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        rich_help_panel=WEIGHTS,
        help=with_default(
            "Weights to use if the checkpoint holds several, such as state_dict_ema.", "the set that is not an average"
        ),
    ),
]
EncoderWeights = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|PATH", rich_help_panel=WEIGHTS, help="Pretrained weights of the encoder: imagenet, or a file."
    ),
]
From = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="package.module:factory or file.py:factory, results of nnU-Net, a MONAI bundle, a folder that "
        "save_pretrained wrote, OWNER/NAME on the Hugging Face hub, or an exported ONNX file.",
    ),
]
FactoryArg = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", rich_help_panel=NETWORK, help="Argument for your factory. Repeatable."),
]
KeepOutput = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        rich_help_panel=NETWORK,
        help=with_default("Output of your network to export. Repeatable.", "all outputs"),
    ),
]
Name = Annotated[
    str | None,
    typer.Option(metavar="NAME", rich_help_panel=NETWORK, help=with_default("Name of your network.", "its class")),
]
FoldNumbers = Annotated[
    str | None,
    typer.Option(
        "--fold",
        metavar="N,...",
        rich_help_panel=WEIGHTS,
        help=with_default("Folds of nnU-Net, which are averaged: 0, 0,1,2 or all.", "every trained fold"),
    ),
]
Configuration = Annotated[
    str | None,
    typer.Option(metavar="NAME", rich_help_panel=WEIGHTS, help="Configuration of nnU-Net, such as 3d_fullres."),
]
CheckpointName = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=WEIGHTS,
        help=with_default("Checkpoint file of nnU-Net in each fold's folder.", "checkpoint_final.pth"),
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(metavar="NAME", rich_help_panel=WEIGHTS, help="Branch, tag or commit of the repository on the hub."),
]
Seed = Annotated[
    int,
    typer.Option(
        metavar="N", rich_help_panel=WEIGHTS, help="Seed for random weights and inputs.", parser=whole("--seed", 0)
    ),
]

# The shapes it is exported for.
Shape = Annotated[
    str | None,
    typer.Option(
        metavar="N,C,H,W,D", rich_help_panel=SHAPES, help=with_default("Shape to optimise for.", "1,C,64,64,64")
    ),
]
Smallest = Annotated[
    str | None,
    typer.Option(
        "--min", metavar="N,C,H,W,D", rich_help_panel=SHAPES, help=with_default("Smallest shape.", "the network's")
    ),
]
Largest = Annotated[
    str | None,
    typer.Option(
        "--max", metavar="N,C,H,W,D", rich_help_panel=SHAPES, help=with_default("Largest shape.", "twice --shape")
    ),
]
Multiple = Annotated[
    str | None,
    typer.Option(
        metavar="H,W,D",
        rich_help_panel=SHAPES,
        help=with_default(
            "Sizes are multiples of this. A larger one lets --optimise cpu do more.", "the network's total stride"
        ),
    ),
]
Static = Annotated[bool, typer.Option("--static", rich_help_panel=SHAPES, help="Freeze all axes at --shape.")]

# What it is exported to.
To = Annotated[
    str,
    typer.Option(
        metavar="TARGET,...",
        rich_help_panel=EXPORT,
        help="Targets: TARGETS.",
        autocompletion=complete_list(backends.names),
    ),
]
PrecisionName = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="NAME",
        rich_help_panel=EXPORT,
        help=with_default(", ".join(Precision), "fp32, or the ONNX file's"),
        autocompletion=complete_from(lambda: Precision),
    ),
]
KeepFp32 = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        rich_help_panel=EXPORT,
        help="Layers or operators to keep in fp32, such as 'decoder.*' or softmax. Repeatable.",
    ),
]
CalibrationFolder = Annotated[
    Path | None,
    typer.Option("--calibration", metavar="DIR", rich_help_panel=EXPORT, help="Volumes to calibrate int8 with."),
]
Gpu = Annotated[
    str | None,
    typer.Option(
        metavar="CC,...", rich_help_panel=EXPORT, help="Compute capabilities to build an engine for, such as 8.6,8.9"
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="cpu|cuda[:N]",
        rich_help_panel=PROOF,
        help="Device to capture, compare and time on; auto is the GPU for engines, if there is one.",
    ),
]
RunDevice = Annotated[
    str, typer.Option("--device", metavar="cpu|cuda[:N]", rich_help_panel=PROOF, help="Device to run on.")
]
Threads = Annotated[
    int | None,
    typer.Option(
        metavar="N", rich_help_panel=PROOF, help=with_default("CPU threads.", "all cores"), parser=whole("--threads", 1)
    ),
]
Folder = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="DIR",
        rich_help_panel=EXPORT,
        help=with_default("Folder for the artifact.", "named after the network"),
    ),
]
Force = Annotated[
    bool, typer.Option("--force", rich_help_panel=EXPORT, help="Replace another network's artifact in that folder.")
]
Opset = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        parser=whole("--opset"),
        rich_help_panel=EXPORT,
        help=with_default("ONNX operator set, 13 to 25.", "20, or the ONNX file's"),
    ),
]
Optimise = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(get_args(request.Optimise)),
        rich_help_panel=EXPORT,
        help=with_default(
            "Exact rewrites of the graph. cpu adds those that only help on a CPU; auto keeps the fastest here.", "on"
        ),
        autocompletion=complete_from(lambda: get_args(request.Optimise)),
    ),
]

# How it is compared and timed.
Sample = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=PROOF,
        help="Volume of your own to compare on, axes H,W,D: .npy, .npz or NIfTI. Repeatable.",
    ),
]
Normalize = Annotated[
    str | None,
    typer.Option(
        metavar="MEAN,STD|zscore", rich_help_panel=PROOF, help="How to normalise your volumes: (x - MEAN) / STD."
    ),
]
NoBench = Annotated[bool, typer.Option("--no-bench", rich_help_panel=PROOF, help="Do not measure speed.")]
MinSpeedup = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        parser=number("--min-speedup"),
        rich_help_panel=PROOF,
        help="Fail with exit code 6 if it is not X times as fast as eager.",
    ),
]

# For the jobs that take artifacts.
Artifact = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of an artifact, or of several.")]

Artifacts = Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of artifacts, each with one or more.")]
Against = Annotated[
    str, typer.Option(metavar="eager|DIR", rich_help_panel=PROOF, help="Baseline: eager PyTorch, or another artifact.")
]
BenchShapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="N,C,H,W,D",
        rich_help_panel=PROOF,
        help=with_default("Shape to time. Repeatable.", "the optimum, the minimum, twice the optimum"),
    ),
]
Seconds = Annotated[
    float,
    typer.Option(
        metavar="S",
        parser=number("--seconds"),
        rich_help_panel=PROOF,
        help="Time for the rounds at each shape; at least 5 rounds run.",
    ),
]

Memory = Annotated[
    bool, typer.Option("--memory", rich_help_panel=PROOF, help="Measure peak memory too, in a process per artifact.")
]
ForceBench = Annotated[
    bool, typer.Option("--force", rich_help_panel=PROOF, help="Compare artifacts of different networks too.")
]

# For every job.
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=OUTPUT)]
Reports = Annotated[
    list[str] | None,
    typer.Option(
        "--report",
        metavar="KIND=FILE",
        rich_help_panel=OUTPUT,
        help=f"Write the result to a file, - for stdout. Kinds: {', '.join(FORMATS)}. Repeatable.",
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=OUTPUT)]

# For `list`.
What = Annotated[
    str, typer.Argument(metavar="KIND", help=", ".join(KINDS), autocompletion=complete_from(lambda: KINDS))
]
Family = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Only the encoders of this family.",
        rich_help_panel=OUTPUT,
        autocompletion=complete_from(lambda: FAMILIES),
    ),
]

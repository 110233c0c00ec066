"""The help of a job and the overview of all jobs, plain and in 80 columns."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from smp3d_export import backends

PROGRAM = "smp3d-export"
MAIN = "export"

OVERVIEW = (
    "smp3d-export unet resnet34 --shape 1,1,128,128,64",
    "smp3d-export unet resnet34 --checkpoint best.pth --to onnx,openvino",
    "smp3d-export from runs/best --to openvino --precision bf16",
    "smp3d-export verify unet-resnet34",
)
EXAMPLES = (
    "smp3d-export unet resnet34 --shape 1,1,128,128,64",
    "smp3d-export unet efficientnet-b0 --checkpoint best.ckpt \\\n    --sample scan.nii.gz --normalize zscore",
    "smp3d-export unet resnet50 --strides 2,2,2/2,2,1/2,2,2/2,2,1/2,2,2 \\\n    --shape 1,1,128,128,32 --classes 3",
    "smp3d-export unet resnet34 --checkpoint best.pth --to openvino,trt-rtx \\\n    --precision fp16 --gpu 8.6,8.9",
    "smp3d-export unet resnet34 --checkpoint best.pth --to openvino \\\n    --precision int8 --calibration volumes/",
)


def overview(jobs: Mapping[str, Any]) -> None:
    """Print what the bare command prints."""
    console = Console(highlight=False)
    console.print("Export 3D segmentation networks from PyTorch, prove them equal, time them.")
    section(console, "Usage", (f"{PROGRAM} ARCH ENCODER [OPTIONS]", f"{PROGRAM} JOB [OPTIONS]"))
    section(console, "Jobs", described(jobs))
    section(console, "Examples", OVERVIEW)
    console.print(f"\nAll options: {PROGRAM} --help. Options of a job: {PROGRAM} JOB --help.")


def show(job: Any, params: Iterable[Any], others: Mapping[str, Any] | None = None) -> None:
    """Print the help of a job; with `others`, also those jobs and some examples."""
    console = Console(highlight=False)
    for paragraph in inspect.cleandoc(job.help or "").split("\n\n"):
        # Indented lines are commands: they are not wrapped.
        console.print(Text(paragraph if "\n " in paragraph else paragraph.replace("\n", " ")), soft_wrap=False)
        console.print()
    console.print(Text.assemble(("Usage: ", "bold"), usage(job)))
    params = list(params)
    width = max(len(heading(param)) for param in params)
    for title, members in groupby(sorted(params, key=panel_order(params)), key=panel):
        console.print(Text(f"\n{title}", style="bold"))
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, min_width=width)
        table.add_column()
        for param in members:
            table.add_row(Text(heading(param), style="cyan"), explanation(param))
        console.print(Padding(table, (0, 0, 0, 2)))
    if others is not None:
        section(console, "Jobs, each with --help", described(others))
        section(console, "Examples", EXAMPLES)
        section(console, "Also", ("--version, --install-completion, --show-completion",))


def section(console: Console, title: str, lines: Iterable[str]) -> None:
    console.print(Text(f"\n{title}", style="bold"))
    for line in lines:
        console.print(Text(f"  {line}"), soft_wrap=True)


def described(jobs: Mapping[str, Any]) -> list[str]:
    """One line for each visible job."""
    texts = {name: job.get_short_help_str(66) for name, job in jobs.items() if not job.hidden}
    width = max(map(len, texts))
    return [f"{name:<{width}}  {text}" for name, text in texts.items()]


def path(job: Any) -> str:
    """A job as it is typed."""
    return PROGRAM if job.name == MAIN else f"{PROGRAM} {job.name}"


def usage(job: Any) -> str:
    """A job with its arguments."""
    words = [param.metavar if param.required else f"[{param.metavar}]" for param in arguments(job)]
    return " ".join([path(job), *words, "[OPTIONS]"])


def arguments(job: Any) -> list[Any]:
    return [param for param in job.params if is_argument(param)]


def is_argument(param: Any) -> bool:
    return param.param_type_name == "argument"


def panel(param: Any) -> str:
    return "Arguments" if is_argument(param) else param.rich_help_panel or "Options"


def panel_order(params: list[Any]) -> Any:
    """Panels in the order of their first parameter, the arguments before them."""
    order = ["Arguments", *dict.fromkeys(panel(param) for param in params if not is_argument(param))]
    return lambda param: order.index(panel(param))


def heading(param: Any) -> str:
    """`-o, --output DIR`"""
    if is_argument(param):
        return param.metavar
    names = ", ".join(sorted(param.opts, key=len))
    return names if param.is_flag else f"{names} {param.metavar}"


def explanation(param: Any) -> Text:
    """The help of a parameter with its default. TARGETS in it is replaced by the names of all targets."""
    words = (param.help or "").replace("TARGETS", ", ".join(backends.names()))
    if isinstance(param.default, str | int | float) and param.default is not False:
        value = f"{param.default:g}" if isinstance(param.default, float) else param.default
        words += f" [default: {value}]"
    text = Text(words)
    text.highlight_regex(r"\[default: .*\]", "dim")
    return text

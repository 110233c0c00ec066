"""The tables that `smp3d-export list` prints. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import groupby
from operator import attrgetter
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from smp3d_export import backends
from smp3d_export.architectures import ARCHITECTURES, ArchitectureSpec
from smp3d_export.cli.help import PROGRAM
from smp3d_export.encoders import ENCODERS, EncoderSpec
from smp3d_export.encoders.spec import STAGES
from smp3d_export.errors import UsageError, unknown

Row = dict[str, Any]

FAMILIES: Mapping[str, EncoderSpec] = {
    name: next(members) for name, members in groupby(ENCODERS.values(), key=attrgetter("family"))
}
"""One member of each family: an architecture refuses all of a family or none."""


def rows(what: str, family: str | None = None) -> list[Row]:
    """The rows of one table, ready for JSON.

    Raises:
        UsageError: there is no such table, or no such family.
    """
    if what not in KINDS:
        raise unknown("list", what, KINDS, ", ".join(KINDS))
    if family is not None and what != "encoders":
        raise UsageError(f"--family is for encoders, not for {what}")
    if family is not None and family not in FAMILIES:
        raise unknown("family", family, FAMILIES, ", ".join(FAMILIES))
    made, _ = KINDS[what]
    return [row for row in made() if family in (None, row.get("family"))]


def show(what: str, table: list[Row], console: Console) -> None:
    """Print the rows of a table for people, in 80 columns."""
    _, printed = KINDS[what]
    printed(table, console)


def architectures() -> list[Row]:
    return [
        {
            "name": spec.name,
            "paper": spec.paper,
            "arguments": dict(spec.arguments),
            "refuses": {name: reason for name, one in FAMILIES.items() if (reason := spec.refusal(one))},
            "needs": {name: needs for name, one in FAMILIES.items() if (needs := needed(spec, one))},
        }
        for spec in ARCHITECTURES.values()
    ]


def encoders() -> list[Row]:
    return [
        {
            "name": spec.name,
            "family": spec.family,
            "parameters": spec.parameters,
            "channels": spec.channels,
            "weights": spec.weights,
            "refused_by": {a.name: reason for a in ARCHITECTURES.values() if (reason := a.refusal(spec))},
            "needed_by": {a.name: needs for a in ARCHITECTURES.values() if (needs := needed(a, spec))},
        }
        for spec in ENCODERS.values()
    ]


def needed(architecture: ArchitectureSpec, encoder: EncoderSpec) -> dict[str, int]:
    """The arguments that an architecture needs to accept an encoder; empty if none, or if it refuses the encoder."""
    if architecture.refusal(encoder):
        return {}
    depth = {"encoder_depth": STAGES} if architecture.refusal(encoder, STAGES - 1) else {}
    return architecture.needs(encoder) | depth


def show_architectures(table: list[Row], console: Console) -> None:
    for row in table:
        head(console, f"{row['name']} · {row['paper']}")
        below(console, arguments(row["arguments"]))
        for families, reason in grouped(row["refuses"]):
            below(console, f"not with {families}: {reason}")
        for families, needs in grouped(row["needs"]):
            below(console, f"with {families}: {arguments(needs)}")
    note(
        console,
        "Shown are each architecture's own arguments, with defaults. Give those without an option by --arg KEY=VALUE.",
    )


def show_encoders(table: list[Row], console: Console) -> None:
    family = None
    for row in table:
        if row["family"] != family:
            family = row["family"]
            head(console, family)
            if row["refused_by"]:
                below(console, f"not in {', '.join(row['refused_by'])}")
            for names, needs in grouped(row["needed_by"]):
                below(console, f"in {names}: {arguments(needs)}")
        weights = ", ".join(row["weights"]) or "–"
        below(console, f"{row['name']:<22}{row['parameters'] / 1e6:>7.1f} M   {weights}")
    note(
        console,
        "Parameters of the 3D encoder, and published weights for --encoder-weights. Every encoder has five stages of "
        "stride 2; --strides sets 1 to 4 on each axis. Why an architecture refuses an encoder: smp3d-export list "
        "architectures. With the extra timm, tu-NAME is the model NAME of timm_3d.",
    )


def targets() -> list[Row]:
    return [
        {
            "name": row.name,
            "files": row.files,
            "through": row.through,
            "precisions": row.precisions,
            "gpu_precisions": row.gpu_precisions,
            "needs": row.needs,
            "installed": row.installed,
            "install": row.install,
            "from_onnx": row.from_onnx,
            "gpu": row.gpu,
        }
        for row in backends.ROWS
    ]


def show_targets(table: list[Row], console: Console) -> None:
    line = "{:<11}  {:<24}  {:<24}  {}"
    head(console, line.format("target", "files", "precisions", "library"))
    for row in table:
        precisions = " ".join(row["precisions"])
        if row["gpu_precisions"]:
            precisions += f", {' '.join(row['gpu_precisions'])} on GPU"
        library = "installed" if row["installed"] else "not installed"
        console.print(Text(line.format(row["name"], ", ".join(row["files"]), precisions, library)))
        needs = [row["needs"]] if row["needs"] else []
        if not row["installed"]:
            needs.append(row["install"])
        below(console, "; needs ".join([row["through"].replace("`", ""), *([", ".join(needs)] if needs else [])]))
    note(console, f"What this machine can export and run: {PROGRAM} doctor")


def head(console: Console, text: str) -> None:
    console.print(Text(text, style="bold"))


def below(console: Console, text: str) -> None:
    console.print(Padding(Text(text), (0, 0, 0, 2), expand=False))


def note(console: Console, text: str) -> None:
    console.print(Text(f"\n{text}", style="dim"))


def grouped(told: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Names with the same value together, separated by commas, and that value."""
    values = [value for number, value in enumerate(told.values()) if value not in list(told.values())[:number]]
    return [(", ".join(name for name, own in told.items() if own == value), value) for value in values]


def arguments(values: Mapping[str, Any]) -> str:
    """Arguments as the command line takes them."""
    return "  ".join(f"{name}={written(value)}" for name, value in values.items())


def written(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool | None) else str(value)


KINDS: Mapping[str, tuple[Callable[[], list[Row]], Callable[[list[Row], Console], None]]] = {
    "architectures": (architectures, show_architectures),
    "encoders": (encoders, show_encoders),
    "targets": (targets, show_targets),
}

"""Parse the values of options: shapes, strides, lists, pairs. Every error names its option and gives an example."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from smp3d_export.errors import UsageError, unknown
from smp3d_export.precision import Precision
from smp3d_export.report import FORMATS, Destination
from smp3d_export.runtime.volumes import Normalisation


def numbers(option: str, text: str, example: str) -> tuple[int, ...]:
    """`256,128,64` to whole numbers from 0 up.

    Raises:
        UsageError: the text is not such a list.
    """
    parts = text.split(",")
    if not all(part.strip().isascii() and part.strip().isdigit() and len(part) < 16 for part in parts):
        raise UsageError(f"{option} is {text!r}; write whole numbers with commas, for example {example}")
    return tuple(int(part) for part in parts)


def shape(option: str, text: str | None) -> tuple[int, ...] | None:
    """`N,C,H,W,D` to five numbers from 1 up."""
    if text is None:
        return None
    sizes = numbers(option, text.replace("x", ","), "1,1,128,128,64")
    if len(sizes) != 5 or min(sizes) < 1:
        raise UsageError(
            f"{option} is {text!r}; it takes five numbers from 1 up, N,C,H,W,D, for example 1,1,128,128,64"
        )
    return sizes


def multiple(text: str | None) -> tuple[int, ...] | None:
    """`H,W,D`, or one number for all three, from 1 up."""
    if text is None:
        return None
    sizes = numbers("--multiple", text, "64,32,32")
    if len(sizes) not in (1, 3) or min(sizes) < 1:
        raise UsageError(f"--multiple is {text!r}; it takes one number from 1 up, or three for H,W,D, such as 64,32,32")
    return sizes if len(sizes) == 3 else sizes * 3


def strides(text: str) -> tuple[tuple[int, ...], ...]:
    """`2,2,2/2,2,1/...` to triples for H, W and D."""
    return tuple(numbers("--strides", triple, "2,2,2/4,2,1/2,2,2/2,2,1/1,2,3") for triple in text.split("/"))


def normalisation(text: str | None) -> Normalisation | None:
    """`MEAN,STD` or `zscore`."""
    if text is None:
        return None
    if text == "zscore":
        return Normalisation()
    try:
        mean, std = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--normalize is {text!r}; it takes MEAN,STD, for example 38.4,74.8, or zscore") from None
    return Normalisation(mean, std)


def pairs(option: str, text: str, example: str = "classes=4,pooling=avg,dropout=0.2") -> dict[str, Any]:
    """`classes=4,pooling=avg` to a dictionary, its values as `value` reads them."""
    entries = [entry.partition("=") for entry in text.split(",")]
    if any(not key.strip() or not equals for key, equals, _ in entries):
        raise UsageError(f"{option} is {text!r}; write pairs with commas, for example {example}")
    return {key.strip(): value(entry) for key, _, entry in entries}


def norm(text: str) -> bool | str | dict[str, Any]:
    """`groupnorm` as it is, true and false, and `groupnorm,num_groups=8` to a dictionary with the name as `type`."""
    name, comma, _ = text.partition(",")
    if not comma and "=" not in name:
        return {"true": True, "false": False}.get(text.strip().lower(), text.strip())
    written = text if "=" in name else f"type={text}"
    try:
        return pairs("--decoder-use-norm", written)
    except UsageError:
        raise UsageError(
            f"--decoder-use-norm is {text!r}; write a name and pairs with commas, for example groupnorm,num_groups=8"
        ) from None


def arguments(named: Mapping[str, Any], texts: Iterable[str], option: str = "--arg") -> dict[str, Any]:
    """The arguments that were given: by their own options, if not None, and by an option that takes `KEY=VALUE`.

    Raises:
        UsageError: a text is not `KEY=VALUE`, or an argument is given twice.
    """
    given = {name: value for name, value in named.items() if value is not None}
    for text in texts:
        key, equals, written = text.partition("=")
        name = key.strip().replace("-", "_")
        if not name or not equals:
            raise UsageError(f"{option} is {text!r}; it takes KEY=VALUE, for example decoder_atrous_rates=6,12,18")
        if name in given:
            raise UsageError(f"{name} is given twice, as {given[name]!r} and by {option} {text}")
        given[name] = values(written)
    return given


def values(text: str) -> Any:
    """`6,12,18` to three values, `6,` to a list of one, and a text without commas to one `value`."""
    *items, last = text.split(",")
    if not items:
        return value(last)
    return tuple(value(item) for item in (*items, last) if item.strip())


def precision(text: str | None) -> Precision | None:
    """A precision by its name."""
    return None if text is None else Precision.named(text)


def capabilities(text: str | None) -> tuple[str, ...]:
    """`8.6,8.9` to compute capabilities."""
    if text is None:
        return ()
    parts = tuple(part.strip() for part in text.split(","))
    for part in parts:
        major, dot, minor = part.partition(".")
        if not (dot and major.isdigit() and minor.isdigit()):
            raise UsageError(f"--gpu is {text!r}; it takes compute capabilities, for example 8.6,8.9")
    return parts


def reports(texts: Iterable[str] | None) -> tuple[Destination, ...]:
    """`KIND=FILE` to destinations. The folder of every file must exist."""
    found = []
    for text in texts or ():
        kind, equals, name = text.partition("=")
        if not equals or not name:
            raise UsageError(f"--report is {text!r}; it takes KIND=FILE, for example json=report.json")
        if kind not in FORMATS:
            raise unknown("report", kind, FORMATS, ", ".join(FORMATS))
        file = None if name == "-" else Path(name)
        if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
            raise UsageError(f"--report {text} cannot be written: there is no folder {str(file.parent)!r}")
        found.append(Destination(kind, file))
    return tuple(found)


def value(text: str) -> Any:
    """A whole number, a number, true, false or none if the text is one; otherwise the text."""
    words = {"true": True, "false": False, "none": None}
    text = text.strip()
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text

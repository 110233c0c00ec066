"""Where nnU-Net v2 keeps what it trained: folders or zip files -> plans and checkpoints, read without running code."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smp3d_export.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

Folder = Path | zipfile.Path
"""A folder or file, also within a zip file."""

FINAL = "checkpoint_final.pth"
PLANS, DATASET = "plans.json", "dataset.json"
PLANS_OF_V1 = "plans.pkl"
FOLD = "fold_"
LEVELS = 2
"""How far below the given folder results are looked for: data sets, and their configurations."""


@dataclass(frozen=True)
class Fold:
    """The checkpoint of one fold. `title` is its path in the folder of results."""

    name: str
    title: str
    content: Mapping[str, Any]

    @property
    def configuration(self) -> str:
        return str(self.content["init_args"]["configuration"])

    @property
    def trainer(self) -> str:
        return str(self.content["trainer_name"])

    @property
    def mirroring_axes(self) -> list[int] | None:
        """The axes that inference may mirror, of 0, 1 and 2."""
        axes = self.content.get("inference_allowed_mirroring_axes")
        return None if axes is None else [int(axis) for axis in axes]

    @property
    def weights(self) -> dict[str, Tensor]:
        """The tensors by name, without the prefixes of wrappers."""
        from smp3d_export.weights.sets import TRANSPARENT

        plain = {}
        for key, tensor in self.content["network_weights"].items():
            parts = [part for part in key.split(".") if part not in TRANSPARENT]
            plain[".".join(parts[1:] if parts[0] == "module" else parts)] = tensor
        return plain


@contextmanager
def opened(path: Path) -> Iterator[Folder]:
    """A folder as it is, or a zip file as a folder.

    Raises:
        UsageError: it, or a file in it, cannot be read.
        CheckpointError: the zip file is damaged.
    """
    try:
        if path.is_dir():
            yield path
        else:
            with zipfile.ZipFile(path) as archive:
                yield zipfile.Path(archive)
    except OSError as error:
        raise UsageError(f"{str(error.filename or path)!r} cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # the last: of encrypted files
        raise CheckpointError(f"{str(path)!r} cannot be unpacked: {error}") from error


@contextmanager
def unpacked(file: Folder) -> Iterator[Path]:
    """A file as it is, or for a while one that is taken out of a zip file."""
    if isinstance(file, Path):
        yield file
        return
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / file.name
        with file.open("rb") as source, target.open("wb") as out:
            shutil.copyfileobj(source, out)  # pyright: ignore[reportArgumentType]  # it is binary
        yield target


def shown(path: Folder) -> str:
    """A path for messages, without the slash that one in a zip file ends with."""
    return str(path).rstrip("/")


def fold_of(path: Path) -> str | None:
    """Which fold a folder of results is. None if it is something else."""
    path = path.resolve()
    name = path.name
    return name.removeprefix(FOLD) if name.startswith(FOLD) and (path.parent / PLANS).is_file() else None


def results_in(root: Folder, levels: int = LEVELS, within: str = "") -> dict[str, Folder]:
    """The folders with plans and folds: `root` itself, or those up to two levels below it, by their path in it."""
    names = {entry.name: entry for entry in root.iterdir()}
    if PLANS in names or PLANS_OF_V1 in names:
        trained = any(name.startswith(FOLD) for name in names)
        return {within: root} if trained or levels == LEVELS else {}
    below = [name for name in sorted(names) if levels > 0 and not name.startswith(".") and names[name].is_dir()]
    found: dict[str, Folder] = {}
    for name in below:
        found |= results_in(names[name], levels - 1, f"{within}/{name}" if within else name)
    return found


def chosen(found: Mapping[str, Folder], path: Path, asked: str | None) -> Folder:
    """The result that is meant. Without a choice it is the only one, or the only one that is not 2D.

    Raises:
        UsageError: there is none, or there are several.
    """
    if not found:
        raise UsageError(f"{str(path)!r} holds no results of nnU-Net v2: a folder with {PLANS} and {FOLD}0")
    within = {name or path.resolve().name: each for name, each in found.items()}
    candidates = {name: each for name, each in within.items() if asked in (None, *names_of(name))}
    if asked is None and len(candidates) > 1:
        candidates = {name: each for name, each in within.items() if not names_of(name)[0].startswith("2d")} or within
    if len(candidates) == 1:
        return next(iter(candidates.values()))
    of = candidates or within
    ways = [[names_of(name)[how] for name in of] for how in range(3)]
    names = next((way for way in ways if len(set(way)) == len(way)), ways[-1])
    if not candidates:
        raise UsageError(f"{str(path)!r} has no configuration {asked!r}. It has {', '.join(names)}")
    raise UsageError(
        f"{str(path)!r} holds {len(names)} trained configurations: {', '.join(names)}. "
        f"Choose one, for example with --configuration {names[0]}"
    )


def names_of(name: str) -> tuple[str, str, str]:
    """What a result may be called, from its path: its configuration, its folder, and the whole path."""
    last = name.rpartition("/")[2]
    return last.rpartition("__")[2], last, name


def wanted(folder: Folder, asked: Sequence[str | int] | None, checkpoint_name: str) -> list[str]:
    """The folds to read.

    Raises:
        CheckpointError: one has no such checkpoint.
    """
    names = [entry.name.removeprefix(FOLD) for entry in folder.iterdir() if entry.name.startswith(FOLD)]
    names.sort(key=lambda name: (not name.isdecimal(), len(name), name))
    present = [name for name in names if (folder / f"{FOLD}{name}" / checkpoint_name).is_file()]
    if not present:
        there = sorted({file.name for name in names for file in (folder / f"{FOLD}{name}").iterdir()})
        others = [name for name in there if name.endswith(".pth")]
        hint = f"There is {', '.join(others)}: --checkpoint-name {others[0]}" if others else "Train a fold first"
        raise CheckpointError(f"no fold in {shown(folder)!r} has a {checkpoint_name}. {hint}")
    if not asked:
        return [name for name in present if name != "all"] or present
    folds = list(dict.fromkeys(str(fold).removeprefix(FOLD) for fold in asked))
    missing = [fold for fold in folds if fold not in present]
    if missing:
        raise CheckpointError(
            f"{shown(folder)!r} has no fold {missing[0]} with a {checkpoint_name}. It has {', '.join(present)}"
        )
    return folds


def read_json(path: Folder) -> dict[str, Any]:
    """A file of settings.

    Raises:
        CheckpointError: it is missing, or is not JSON.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no {shown(path)!r}: nnU-Net writes it into the folder of results")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{shown(path)!r} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{shown(path)!r} is not as nnU-Net writes it: it holds a {type(content).__name__}")
    return content


def read_fold(folder: Folder, name: str, checkpoint_name: str) -> Fold:
    """The checkpoint of a fold, read without running code.

    Raises:
        CheckpointError: it cannot be read, or is not a checkpoint of nnU-Net.
    """
    from smp3d_export.weights.tensors import few, read_tensors

    checkpoint = folder / f"{FOLD}{name}" / checkpoint_name
    title = shown(checkpoint)
    with unpacked(checkpoint) as file:
        try:
            content = read_tensors(file)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(file), title)) from error
    fold = Fold(name, f"{FOLD}{name}/{checkpoint_name}", content)
    try:
        complete = isinstance(content["network_weights"], Mapping) and bool(fold.configuration and fold.trainer)
    except (KeyError, TypeError):
        complete = False
    if not complete:
        raise CheckpointError(
            f"{title!r} is not a checkpoint of nnU-Net v2, which has network_weights, init_args and trainer_name. "
            f"It holds {few(map(str, content)) or 'nothing'}"
        )
    return fold

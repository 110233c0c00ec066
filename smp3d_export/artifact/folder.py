"""The artifact on disk: finding it, its files and their hashes, and what lies beside them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from smp3d_export.artifact.manifest import FILE as MANIFEST
from smp3d_export.artifact.manifest import Manifest, content_of, is_artifact
from smp3d_export.errors import UsageError

GOLDEN = "golden.npz"
FAILED = ".failed"
"""The ending of the folder for artifacts that missed parity."""


@dataclass(frozen=True)
class Found:
    """The artifacts in a folder, and a line on each folder that was skipped."""

    artifacts: tuple[Path, ...]
    skipped: tuple[str, ...]


def find(folder: Path) -> list[Path]:
    """The artifacts in a folder, at all levels; the folder may be one itself.

    Raises:
        UsageError: there is none.
    """
    return list(search(folder).artifacts)


def search(folder: Path) -> Found:
    """The artifacts in a folder, at all levels, with those that are damaged.

    Hidden folders are passed over, and so are links to folders, unless such a folder is an artifact. Artifacts that
    missed parity are skipped, unless `folder` names them.

    Raises:
        UsageError: there is none.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {str(folder)!r}")
    found: dict[str, Path] = {}
    skipped: list[str] = []
    for place, entries in walk(folder, skipped):
        if is_artifact(place) or {MANIFEST, GOLDEN} <= entries:
            found.setdefault(os.path.realpath(place), place)
        elif GOLDEN in entries:
            skipped.append(f"{place} is skipped: it has a {GOLDEN} but no {MANIFEST}")
        elif MANIFEST in entries:
            skipped.append(f"{place} is skipped: its {MANIFEST} is not an artifact's")
    if not found:
        reasons = "".join(f"\n{line}" for line in skipped)
        raise UsageError(
            f"{str(folder)!r} is not an artifact, and holds none: there is no {MANIFEST} of ours in it{reasons}"
        )
    return Found(tuple(found.values()), tuple(skipped))


def walk(folder: Path, skipped: list[str]) -> Iterator[tuple[Path, set[str]]]:
    """The folders that may be artifacts, each with the names in it; says which were skipped."""

    def unreadable(error: OSError) -> None:
        skipped.append(f"{error.filename} is skipped: {(error.strerror or str(error)).lower()}")

    for top, folders, files in os.walk(folder, onerror=unreadable):
        place = Path(top)
        yield place, {*files}
        visible = [name for name in sorted(folders) if not name.startswith(".")]
        failed = [name for name in visible if name.endswith(FAILED)]
        skipped += [f"{place / name} is skipped: what missed parity is there" for name in failed]
        folders[:] = [name for name in visible if name not in failed]
        for link in (place / name for name in folders if (place / name).is_symlink()):
            if is_artifact(link):
                yield link, set()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(path: Path) -> dict[str, Any]:
    """Size and hash of a file."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and hash of every file of a finished artifact but the manifest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): describe(path) for path in files}


def listed(folder: Path) -> list[str]:
    """The files that an artifact's manifest lists, by relative path, as far as it can be read; none outside."""
    files = content_of(folder).get("files")
    return [name for name in files if inside(name)] if isinstance(files, dict) else []


def inside(name: str) -> bool:
    """Whether a relative path stays in its folder."""
    path = PurePosixPath(name)
    return bool(path.name) and not path.is_absolute() and ".." not in path.parts and "\\" not in name


def foreign(folder: Path) -> list[str]:
    """What lies in an artifact's folder beside it: files, links and empty folders, by relative path."""
    ours = {MANIFEST, *listed(folder)}
    found = []
    for top, folders, files in os.walk(folder):
        place = Path(top)
        entries = [place / name for name in (*files, *(name for name in folders if (place / name).is_symlink()))]
        if not folders and not files:
            entries = [place]
        found += [entry.relative_to(folder).as_posix() for entry in entries]
    return sorted(name for name in found if name not in ours)


def check_files(folder: Path, manifest: Manifest, loaded: Collection[str]) -> list[str]:
    """Compare an artifact's files with what its manifest says of them.

    Args:
        loaded: the names of the files that its runtime loads.

    Returns:
        What lies in the folder and is not part of the artifact.

    Raises:
        UsageError: a file is missing, has changed, or is not mentioned though it is loaded.
    """
    if GOLDEN not in manifest.files:
        raise UsageError(f"{str(folder)!r} was not finished: its manifest does not list its files")
    beside = foreign(folder)
    for name in sorted({*manifest.files, *loaded}):
        path = folder / name
        if not inside(name):
            what = "is outside the folder of the artifact that lists it"
        elif not path.is_file():
            what = "is missing"
        elif name not in manifest.files:
            what = "is not in the manifest"
        elif (wanted := manifest.files[name]) != (found := describe(path)):
            what = "is not what the manifest says: its SHA-256 is "
            what += f"{found['sha256'][:12]}..., not {wanted['sha256'][:12]}..."
        else:
            continue
        raise UsageError(f"{str(path)!r} {what}. Copy the artifact anew, or export it again")
    for name in beside:
        if any(name.startswith(f"{own}.") for own in loaded):  # where a runtime keeps weights
            raise UsageError(
                f"{str(folder / name)!r} is not in the manifest, and may be loaded with the artifact: remove it, or "
                "export the artifact again"
            )
    return [name for name in beside if not within_artifact(folder, name)]


def within_artifact(folder: Path, name: str) -> bool:
    """Whether a file in an artifact's folder is part of another artifact, in a folder below."""
    return any(is_artifact(folder / parent) for parent in PurePosixPath(name).parents if parent.name)

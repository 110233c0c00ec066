"""The artifact on disk: a folder that appears whole or not at all, and the hashes of its files."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smp3d_export.artifact.manifest import FILE as MANIFEST
from smp3d_export.artifact.manifest import Manifest, is_artifact
from smp3d_export.errors import UsageError

GOLDEN = "golden.npz"
PARTIAL = ".partial"


class Staging:
    """The folders of an export while they are filled; see `staged`."""

    def __init__(self, root: Path, *, several: bool) -> None:
        self.good = root / "good"
        self.failed = root / "failed"
        self.several = several

    def folder(self, target: str) -> Path:
        """An empty folder for a target's artifact: the export's own, or a subfolder where there are several."""
        folder = self._of(self.good, target)
        folder.mkdir(parents=True)
        return folder

    def discard(self, target: str) -> None:
        """Drop what a target made."""
        shutil.rmtree(self._of(self.good, target), ignore_errors=True)

    def set_aside(self, target: str) -> None:
        """Publish what a target made at `NAME.failed`, for study."""
        self.failed.mkdir(exist_ok=True) if self.several else None
        self._of(self.good, target).rename(self._of(self.failed, target))

    def _of(self, folder: Path, target: str) -> Path:
        return folder / target if self.several else folder


@contextlib.contextmanager
def staged(place: Path, *, several: bool = False) -> Iterator[Staging]:
    """Fill a temporary sibling of `place`; it takes that name at the end, and is gone where anything went wrong.

    A folder that stands at `place` is replaced if it is an artifact, holds only artifacts, or is empty. What was set
    aside as failed goes to `NAME.failed` beside it.

    Raises:
        UsageError: `place` holds something else, or cannot be written.
    """
    check_replaceable(place)
    made = make_parents(place)
    try:
        remove_stale(place)
        temporary = place.parent / f".{place.name}.{os.getpid()}{PARTIAL}"
        temporary.mkdir()
    except OSError as error:
        remove_empty(made)
        raise unwritable(place, error) from error
    staging = Staging(temporary, several=several)
    try:
        yield staging
        for folder, name in ((staging.failed, failed_place(place)), (staging.good, place)):
            if folder.is_dir() and any(folder.iterdir()):
                publish(folder, name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        remove_empty(made)


def failed_place(place: Path) -> Path:
    return place.with_name(f"{place.name}.failed")


def remove_stale(place: Path) -> None:
    """Remove the temporary folders of exports to the same place that were killed."""
    for folder in place.parent.glob(f".{glob.escape(place.name)}.*{PARTIAL}"):
        pid = folder.name.removesuffix(PARTIAL).rpartition(".")[2]
        if pid.isdigit() and (int(pid) == os.getpid() or not alive(int(pid))):
            shutil.rmtree(folder, ignore_errors=True)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's, or a platform that will not say
        return True
    return True


def check_replaceable(place: Path) -> None:
    """Refuse to overwrite what is not an artifact of ours.

    Raises:
        UsageError: `place` is a file, or a folder with other things in it.
    """
    try:
        if not place.exists() and not place.is_symlink():
            return
        entries = list(place.iterdir()) if place.is_dir() else None
    except OSError as error:
        raise unwritable(place, error) from error
    if entries is None:
        raise UsageError(f"{str(place)!r} is a file: give another folder with -o")
    if entries and not is_artifact(place) and not all(is_artifact(entry) for entry in entries):
        raise UsageError(
            f"{str(place)!r} is a folder with other things in it (no {MANIFEST} of ours), "
            "and is not overwritten: give another with -o"
        )


def publish(folder: Path, place: Path) -> None:
    """Give a finished folder its name; what stood there is put aside first and removed last."""
    check_replaceable(place)
    aside = folder.with_name(f"{folder.name}.replaced")
    if place.exists():
        place.rename(aside)
    try:
        folder.rename(place)
    except OSError:
        if aside.exists():
            aside.rename(place)
        raise


def make_parents(place: Path) -> list[Path]:
    """Make the folders above `place` and say which were made, the outermost last."""
    missing = [parent for parent in place.absolute().parents if not parent.exists()]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remove_empty(missing)
        raise unwritable(place, error) from error
    return missing


def remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def unwritable(place: Path, error: OSError) -> UsageError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    hint = "free some space" if error.errno == errno.ENOSPC else "give a folder that can be with -o"
    return UsageError(f"the output folder {str(place)!r} cannot be written ({reason.lower()}): {hint}")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and hash of every file of an artifact but the manifest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files
    }


def find(folder: Path) -> list[Path]:
    """The artifact that a folder is, or those that it holds.

    Raises:
        UsageError: it is none and holds none.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {str(folder)!r}")
    if is_artifact(folder):
        return [folder]
    found = sorted(entry for entry in folder.iterdir() if is_artifact(entry))
    if not found:
        raise UsageError(f"{str(folder)!r} is no artifact, and holds none: there is no {MANIFEST} of ours in it")
    return found


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare an artifact's files with what its manifest says of them.

    Raises:
        UsageError: one is missing, has changed, or is not mentioned.
    """
    listed, found = manifest.files, describe_files(folder)
    if GOLDEN not in listed:
        raise UsageError(f"{str(folder)!r} was not finished: its manifest does not list its files")
    for name in sorted({*listed, *found}):
        if name not in found:
            what = "is missing"
        elif name not in listed:
            what = "is not in the manifest"
        elif listed[name] != found[name]:
            what = f"is not what the manifest says: its SHA-256 is {found[name]['sha256'][:12]}..., not "
            what += f"{listed[name]['sha256'][:12]}..."
        else:
            continue
        raise UsageError(f"{str(folder / name)!r} {what}. Copy the artifact anew, or export it again")

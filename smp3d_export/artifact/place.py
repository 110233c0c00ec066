"""Where artifacts go: checked before an export starts, replaced when an artifact is finished.

A folder's name stands for the old artifact or for the new one, never for half of one. Files that are not part of an
artifact stay where they are.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from smp3d_export.artifact.folder import FAILED, GOLDEN, foreign, listed
from smp3d_export.artifact.manifest import FILE as MANIFEST
from smp3d_export.artifact.manifest import Model, is_artifact, read, target_of
from smp3d_export.contract import ShapeContract
from smp3d_export.errors import UsageError
from smp3d_export.precision import Precision

HIDDEN = ".{}.smp3d-export"
"""What stands beside a folder for a while."""


@dataclass(frozen=True)
class Place:
    """The folder that an export writes to.

    Attributes:
        path: what the user named, links followed.
        nested: whether each target has a subfolder of its own.
    """

    path: Path
    nested: bool

    @classmethod
    def of(cls, path: Path, *, several: bool) -> Place:
        """The place for one target or several.

        One target gets a subfolder too if the folder has such subfolders already.
        """
        return cls(path, several or (not is_artifact(path) and any(targets_in(path))))

    @property
    def failed(self) -> Place:
        """Where artifacts that miss parity go."""
        return Place(failed(self.path), self.nested)

    def folder(self, target: str) -> Path:
        """The folder of a target's artifact."""
        return followed(self.path / target) if self.nested else self.path

    def artifacts(self) -> list[Path]:
        """The artifacts that are there."""
        return [self.path] * is_artifact(self.path) + [*targets_in(self.path)]

    def check(self, files: Mapping[str, Collection[str]]) -> None:
        """Refuse to write where something stands that is not ours.

        Args:
            files: the names of each target's files.

        Raises:
            UsageError: there is a file, a folder with other things in it, or a folder that cannot be replaced.
        """
        try:
            if not self.path.exists():
                return
            device = self.path.parent.stat().st_dev
            check_folder(self.path, device, replaced=not self.nested)
            if any(self.path.iterdir()) and not self.artifacts():
                raise other_things(self.path)
            for target, names in files.items():
                folder = self.folder(target)
                if folder.exists():
                    check_folder(folder, device)
                    check_content(folder, {*names, GOLDEN, MANIFEST})
        except OSError as error:
            raise unwritable(self.path, error) from error

    def check_network(
        self, model: Model, contract: ShapeContract, precision: Precision, targets: Collection[str], *, force: bool
    ) -> Iterator[str]:
        """Refuse to replace another network's artifact unless `force` says to.

        Args:
            model, contract, precision, targets: what is exported.

        Yields:
            A line on each artifact that will be replaced, or stays beside the new ones, and differs in more than its
            date.

        Raises:
            UsageError: there is an artifact of another network, or one that cannot be read.
        """
        folders = {self.folder(target) for target in targets}
        for folder in self.artifacts():
            there, other = None, None
            try:
                there = read(folder)
                if names := there.model.difference(model):
                    other = f"it is an artifact of {names[0]}, and this is {names[1]}"
            except UsageError as error:
                other = str(error)
            if other and not force:
                raise UsageError(
                    f"{str(folder)!r} is not replaced: {other}. Give another folder with -o, or replace it with --force"
                )
            if folder in folders or (there and there.target in targets):
                remarks = [other] if other else []
                if there and not other:
                    remarks += [f"it is for {there.target}"] * (there.target not in targets)
                    remarks += [f"it is in {there.precision}"] * (there.precision != precision)
                    remarks += ["it has other weights"] * (there.model.sha256 != model.sha256)
                    remarks += ["it has other shapes"] * (there.contract != contract)
                if remarks:
                    yield f"{folder} is replaced: {', '.join(remarks)}"
            elif other or (there and there.model.sha256 != model.sha256):
                yield f"{folder} stays as it is: {other or 'it has other weights'}"


def followed(path: Path) -> Path:
    """The folder that a link names; a path with a name in any case, if it is not the root."""
    return Path(os.path.realpath(path)) if path.is_symlink() or path.name in ("", "..") else path


def failed(path: Path) -> Path:
    return path.with_name(f"{path.name}{FAILED}")


def targets_in(folder: Path) -> Iterator[Path]:
    """The artifacts in subfolders that are named after their targets."""
    if folder.is_dir():
        yield from (
            entry for entry in sorted(folder.iterdir()) if is_artifact(entry) and target_of(entry) == entry.name
        )


def check_folder(folder: Path, device: int, *, replaced: bool = True) -> None:
    """Refuse what is not a folder that can be written, and, if it is to be replaced, a folder that cannot be.

    Raises:
        UsageError: it is one of these.
    """
    if not folder.is_dir():
        raise UsageError(f"{str(folder)!r} is a file: give another folder with -o")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise unwritable(folder, PermissionError(errno.EACCES, ""))
    reason = None
    if folder.stat().st_dev != device or folder.is_mount():
        reason = "a mount point, or on another file system than the folder above it"
    elif replaced and Path.cwd().is_relative_to(os.path.realpath(folder)):
        reason = "the working directory"
    if reason:
        raise UsageError(f"{str(folder)!r} is {reason}, so it cannot be replaced: give a folder in it with -o")


def check_content(folder: Path, names: Collection[str]) -> None:
    """Refuse a folder with things in it that are not an artifact's, or whose `names` an artifact needs.

    Raises:
        UsageError: there are such things.
    """
    if not is_artifact(folder):
        if any(folder.iterdir()):
            raise other_things(folder)
        return
    for name in foreign(folder):
        if name.partition("/")[0] in names:
            raise in_the_way(folder / name.partition("/")[0])


def publish(new: Path, folder: Path) -> None:
    """Give a finished artifact its folder. What else lies in that folder stays in it.

    Raises:
        UsageError: something stands there, or lies in there, that is not ours.
        OSError: it cannot be written.
    """
    folder.parent.mkdir(exist_ok=True)
    if is_artifact(folder):
        carry_over(folder, new)
        swap(new, folder)
        return
    if folder.is_dir():
        if any(folder.iterdir()):
            raise other_things(folder)
        folder.rmdir()
    new.rename(folder)


def carry_over(folder: Path, new: Path) -> None:
    """Have what lies beside an artifact in the new folder too. It stays in both until the old folder is gone.

    Raises:
        UsageError: the new artifact has a file of the same name.
    """
    for name in foreign(folder):
        source, copy = folder / name, new / name
        if os.path.lexists(copy):
            raise in_the_way(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            copy.symlink_to(source.readlink())
        elif source.is_dir():
            copy.mkdir()
        else:
            try:
                copy.hardlink_to(source)
            except OSError:  # the file system has no such links
                shutil.copy2(source, copy)


def swap(new: Path, folder: Path) -> None:
    """Give `new` the name of a folder, and remove the old one.

    If the system cannot do it in one step, a process that dies in between leaves the old folder beside its name, and
    `recover` gives the name back.
    """
    old = new
    if not exchange(new, folder):
        old = beside(folder)
        folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:
            if not folder.exists():
                old.rename(folder)
            raise
    shutil.rmtree(old, ignore_errors=True)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False if the system, or the file system, cannot."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchanged = -100, 2  # AT_FDCWD and RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchanged) == 0


def beside(folder: Path) -> Path:
    """Where a folder is while another takes its name."""
    return folder.with_name(f"{HIDDEN.format(folder.name)}-old")


def recover(path: Path) -> None:
    """Finish what a killed process left in the middle of a swap, of a folder or of one in it."""
    for old in (beside(path), *path.glob(beside(path / "*").name)):
        prefix, suffix = beside(path / "*").name.split("*")
        folder = old.with_name(old.name.removeprefix(prefix).removesuffix(suffix))
        if folder.exists() or not is_artifact(old):
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(folder)


def withdraw(folder: Path) -> None:
    """Remove an artifact's files, and nothing else, from a folder."""
    names = listed(folder)
    (folder / MANIFEST).unlink()
    for name in names:
        (folder / name).unlink(missing_ok=True)
        if "/" in name:
            remove_empty([*(folder / name).parents][: name.count("/")])


def remove_empty(folders: list[Path]) -> None:
    """Remove those of the folders that are empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def unwritable(folder: Path, error: OSError) -> UsageError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    hint = "free some space" if error.errno == errno.ENOSPC else "give a folder that can be with -o"
    return UsageError(f"the output folder {str(folder)!r} cannot be written ({reason.lower()}): {hint}")


def other_things(folder: Path) -> UsageError:
    return UsageError(
        f"{str(folder)!r} is a folder with other things in it (no {MANIFEST} of ours), "
        "and is not overwritten: give another with -o"
    )


def in_the_way(path: Path) -> UsageError:
    return UsageError(
        f"{str(path)!r} is not part of the artifact there, and the new artifact has a file of this name: move it away"
    )

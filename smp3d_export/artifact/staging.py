"""An export in progress: artifacts are made in a hidden folder, and appear at their place when they are finished."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from smp3d_export.artifact.lock import NoLocksError, acquire, release
from smp3d_export.artifact.manifest import is_artifact, target_of
from smp3d_export.artifact.place import (
    HIDDEN,
    Place,
    failed,
    followed,
    publish,
    recover,
    remove_empty,
    unwritable,
    withdraw,
)
from smp3d_export.errors import UsageError

LOCK = "lock"


class Staging:
    """The folders of an export while they are filled; see `staged`.

    Attributes:
        place: where finished artifacts go.
        published: the folders of those that went there.
    """

    def __init__(self, root: Path, place: Place) -> None:
        self.root = root
        self.place = place
        self.published: list[Path] = []

    def folder(self, target: str) -> Path:
        """An empty folder for a target's artifact."""
        folder = self.root / target
        folder.mkdir()
        return folder

    def discard(self, target: str) -> None:
        """Drop what a target made."""
        shutil.rmtree(self.root / target, ignore_errors=True)

    def publish(self, target: str) -> Path:
        """Put a finished artifact in its place, which is returned.

        Raises:
            UsageError: it cannot go there any more; the message says where it is instead.
        """
        folder = self._publish(target, self.place)
        self.published.append(folder)
        # The artifact of this target that stood in the folder itself is replaced by the one in the subfolder.
        if self.place.nested and is_artifact(self.place.path) and target_of(self.place.path) == target:
            withdraw(self.place.path)
        return folder

    def set_aside(self, target: str) -> Path:
        """Put what a target made at `NAME.failed`, for study.

        Raises:
            UsageError: it cannot go there any more; the message says where it is instead.
        """
        return self._publish(target, self.place.failed)

    def _publish(self, target: str, place: Place) -> Path:
        new, folder = self.root / target, place.folder(target)
        try:
            publish(new, folder)
        except (OSError, UsageError) as error:
            reason = error if isinstance(error, UsageError) else unwritable(folder, error)
            names = (f"{place.path.name}.{target}{number}" for number in ("", *map(str, range(2, 100))))
            free = next(path for name in names if not (path := place.path.with_name(name)).exists())
            try:
                new.rename(free)
            except OSError:
                raise reason from error
            raise UsageError(f"{reason}. The artifact is finished: it is in {str(free)!r}") from error
        return folder


@contextlib.contextmanager
def staged(path: Path, files: Mapping[str, Collection[str]]) -> Iterator[Staging]:
    """Make artifacts in a hidden folder beside `path`, which is gone at the end, also if something goes wrong.

    Each artifact is published by itself, as soon as it is finished: what comes after, a failure, Ctrl-C or a loss of
    power, does not take it away again.

    Args:
        path: the folder for the artifact of one target, or for a subfolder for each of several.
        files: the targets, and the names of each target's files.

    Raises:
        UsageError: `path` holds something that is not ours, cannot be written, or another export writes to it.
    """
    made = make_parents(path)
    try:
        try:
            folder = followed(path)
        except OSError as error:
            raise unwritable(path, error) from error
        if not folder.name:
            raise UsageError(f"{str(path)!r} cannot be replaced: give a folder in it with -o")
        with locked(folder.with_name(HIDDEN.format(folder.name)), path) as root:
            yield Staging(root, prepared(folder, files))
    finally:
        remove_empty(made)


def prepared(path: Path, files: Mapping[str, Collection[str]]) -> Place:
    """The place at a path that no other export writes to, once it is known that it can be written.

    Raises:
        UsageError: it cannot.
    """
    try:
        recover(path)
        recover(failed(path))
        place = Place.of(path, several=len(files) > 1)
    except OSError as error:
        raise unwritable(path, error) from error
    place.check(files)
    place.failed.check(files)
    return place


@contextlib.contextmanager
def locked(root: Path, path: Path) -> Iterator[Path]:
    """An empty folder that no other export to `path` uses. It is removed at the end.

    Raises:
        UsageError: another export uses it, or it cannot be made.
    """
    stood = lock = None
    try:
        stood = root.exists()
        lock = acquire(root / LOCK)
        if lock is None:
            raise UsageError(f"another export to {str(path)!r} is running: wait, or give another folder with -o")
    except NoLocksError as error:
        if stood:
            raise UsageError(
                f"another export to {str(path)!r} is running, or was killed; this file system has no locks to tell. "
                f"If none is running, remove {str(root)!r}"
            ) from error
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        clear(root)
        yield root
    finally:
        clear(root)
        if lock is not None:
            release(root / LOCK, lock)
        else:
            (root / LOCK).unlink(missing_ok=True)
        remove_empty([root])


def clear(root: Path) -> None:
    """Remove everything but the lock."""
    with contextlib.suppress(FileNotFoundError):
        for entry in root.iterdir():
            if entry.name != LOCK:
                shutil.rmtree(entry, ignore_errors=True)


def make_parents(path: Path) -> list[Path]:
    """Make the folders above a path and say which were made, the outermost last."""
    missing: list[Path] = []
    try:
        missing += [parent for parent in path.absolute().parents if not parent.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remove_empty(missing)
        raise unwritable(path, error) from error
    return missing

"""A lock on a file, which the system drops with the process that holds it.

It also tells containers that share a folder apart; process numbers do not, because every container has its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path
from typing import BinaryIO

if sys.platform == "win32":
    import msvcrt

    def take(number: int) -> None:
        msvcrt.locking(number, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def take(number: int) -> None:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)


HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
"""What the system answers if somebody else has the lock."""


class NoLocksError(OSError):
    """A file system has no locks. The file is there, and is not locked."""


def acquire(path: Path) -> BinaryIO | None:
    """Lock a file, which is made if need be, with its folder.

    It stays locked until the returned file is closed, or the process ends.

    Returns:
        The open file; None if another process, or this one, has it locked.

    Raises:
        NoLocksError: the file system has no locks.
        OSError: the file cannot be made.
    """
    while True:
        path.parent.mkdir(exist_ok=True)
        try:
            file = path.open("ab")
        except FileNotFoundError:  # whoever had the lock has just removed the folder
            continue
        try:
            take(file.fileno())
            # Whoever had the lock may have removed the file in the meantime: then nobody else would see this lock.
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass
        except OSError as error:
            file.close()
            if error.errno in HELD:
                return None
            raise NoLocksError(error.errno, error.strerror) from error
        file.close()


def release(path: Path, file: BinaryIO) -> None:
    """Remove a locked file and drop its lock."""
    with contextlib.suppress(OSError):  # Windows removes no file that is open
        path.unlink()
    file.close()
    if sys.platform == "win32":
        path.unlink(missing_ok=True)

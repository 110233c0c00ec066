"""The limits that Linux control groups (v1 and v2) put on this process, as containers and systemd set them.

A process belongs to one group of each hierarchy, and every ancestor of that group limits it too: the lowest limit
counts. In a container the ancestors outside of it cannot be seen, and the container's group stands at the mount point.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# Where no limit is set, version 1 has the largest number of pages, which the kernel may round; version 2 has "max".
NO_LIMIT = 1 << 60


def memory_limit(root: Path) -> int | None:
    """The most bytes that this process and the others of its groups may take; None without a limit."""
    return min((limit for limit, _ in _memory(root)), default=None)


def memory_left(root: Path) -> int | None:
    """Bytes that the groups of this process may still take; None without a limit.

    File pages that have not been used for a while count as left: the kernel drops them before it refuses memory.
    """
    return min((max(limit - used, 0) for limit, used in _memory(root)), default=None)


def cpu_quota(root: Path) -> float | None:
    """How many processors' time this process and the others of its groups may take; None without a limit."""
    quotas = []
    for group in _groups(root, "cpu"):
        quota, period = _words(group / "cpu.max", 2) or (
            _first_word(group / "cpu.cfs_quota_us"),
            _first_word(group / "cpu.cfs_period_us"),
        )
        if quota.isdecimal() and period.isdecimal() and int(period):  # else "max", "-1", or not there
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _memory(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use, in bytes, of each group that has a limit."""
    for group in _groups(root, "memory"):
        for limit, used, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            numbers = _first_word(group / limit), _first_word(group / used)
            if all(number.isdecimal() for number in numbers) and int(numbers[0]) < NO_LIMIT:
                stat = dict(line.split() for line in _lines(group / "memory.stat") if len(line.split()) == 2)
                yield int(numbers[0]), max(int(numbers[1]) - int(stat.get(cache, 0)), 0)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's groups that may have a say on `controller`, each before its ancestors."""
    own: dict[str, str] = {}  # controller -> path of the group; "" is version 2, which has all controllers in one
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), path)
    for line in _lines(root / "proc/self/mountinfo"):
        mount, _, system = line.partition(" - ")
        kind, *_, options = system.split()
        hierarchy = {"cgroup2": "", "cgroup": controller}.get(kind)
        if hierarchy not in own or (hierarchy and controller not in options.split(",")):
            continue
        mounted, at = (PurePosixPath(field) for field in mount.split()[3:5])
        path = PurePosixPath(own[hierarchy])
        # A container may see its host's name of its group, while only the group itself is mounted.
        inside = path.relative_to(mounted) if path.is_relative_to(mounted) else PurePosixPath()
        top = root / at.relative_to("/")
        for group in (inside, *inside.parents):
            if ".." not in group.parts:
                yield top / group


def _words(path: Path, count: int) -> list[str] | None:
    words = " ".join(_lines(path)).split()
    return words if len(words) == count else None


def _first_word(path: Path) -> str:
    return next((word for line in _lines(path) for word in line.split()), "")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []

"""Throughput: an artifact and the eager network in alternating rounds, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Rounds until both bounds are met: enough for an interval, and no longer than a user waits.
LEAST_ROUNDS = 5
MOST_ROUNDS = 15
SECONDS = 15.0

RESAMPLES = 2000


@dataclass(frozen=True)
class Timing:
    """Of one side, in seconds: the first call, which warms up, and percentiles of the rounds behind it."""

    first: float
    p50: float
    p90: float
    p99: float
    voxels_per_second: float


@dataclass(frozen=True)
class Throughput:
    """Both sides, and how many times faster the artifact is: the ratio of medians with its 95 % bootstrap interval.

    `peak_memory` is that of a process that loads and runs the artifact alone, in bytes; `build_seconds` what making it
    took. Either is None where it was not measured.
    """

    shape: tuple[int, ...]
    rounds: int
    threads: int
    eager: Timing
    artifact: Timing
    speedup: float
    interval: tuple[float, float]
    build_seconds: float | None = None
    peak_memory: int | None = None

    def with_costs(self, build_seconds: float, peak_memory: int | None) -> Throughput:
        return replace(self, build_seconds=build_seconds, peak_memory=peak_memory)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def alternate(
    eager: Callable[[], object],
    artifact: Callable[[], object],
    shape: Sequence[int],
    *,
    threads: int,
    clock: Callable[[], float] = time.perf_counter,
    step: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Throughput:
    """Time both in turn, the order changing every round, so that a drifting machine bears on both alike."""
    sides = (eager, artifact)

    def timed(side: Callable[[], object]) -> float:
        start = clock()
        side()
        return clock() - start

    first = [timed(side) for side in sides]
    seconds: tuple[list[float], list[float]] = ([], [])
    started = clock()
    while len(seconds[0]) < LEAST_ROUNDS or (len(seconds[0]) < MOST_ROUNDS and clock() - started < SECONDS):
        step(len(seconds[0]), MOST_ROUNDS, "")
        order = (0, 1) if len(seconds[0]) % 2 == 0 else (1, 0)
        for side in order:
            seconds[side].append(timed(sides[side]))
    speedup, interval = ratio(*seconds)
    voxels = int(np.prod([shape[0], *shape[2:]]))
    timings = [timing(warm, times, voxels) for warm, times in zip(first, seconds, strict=True)]
    return Throughput(tuple(shape), len(seconds[0]), threads, timings[0], timings[1], speedup, interval)


def timing(first: float, seconds: Sequence[float], voxels: int) -> Timing:
    p50, p90, p99 = (float(np.percentile(seconds, part)) for part in (50, 90, 99))
    return Timing(first, p50, p90, p99, voxels / p50)


def ratio(eager: Sequence[float], artifact: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """The ratio of medians with its 95 % interval, by resampling whole rounds: their two sides belong together."""
    pairs: NDArray[np.float64] = np.array([eager, artifact])
    rng = np.random.default_rng(0)
    drawn = pairs[:, rng.integers(0, pairs.shape[1], (RESAMPLES, pairs.shape[1]))]
    medians = np.median(drawn, axis=2)
    low, high = np.percentile(medians[0] / medians[1], [2.5, 97.5])
    middle = np.median(pairs, axis=1)
    return float(middle[0] / middle[1]), (float(low), float(high))

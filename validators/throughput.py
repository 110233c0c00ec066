"""Throughput: an artifact and its baselines in alternating rounds, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# Enough rounds for an interval, but no more than a user would wait for.
MIN_ROUNDS = 5
MAX_ROUNDS = 15
SECONDS = 15.0

# Seconds before each call. The threads of the previous side still spin for a while, but a side alone in its process has
# the cores to itself. PSPNet in OpenVINO took 157 ms right after ONNX Runtime, and 139 ms after the pause.
PAUSE = 0.05

RESAMPLES = 2000

Side = Callable[[], "float | None"]
"""Runs once. Returns the seconds that it took if it has a better clock than wall time, otherwise None."""


@dataclass(frozen=True)
class Timing:
    """The times of one side in seconds: the first call, which warms up, and percentiles of the rounds after it."""

    first: float
    p50: float
    p90: float
    p99: float
    voxels_per_second: float


@dataclass(frozen=True)
class Ratio:
    """How many times faster the artifact is: the ratio of medians with its 95 % bootstrap interval."""

    speedup: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Throughput:
    """The times of an artifact and of its baselines by name. It is judged by the first baseline.

    `peak_memory` is what a process that loads and runs the artifact alone takes, in bytes, and `device_peak` what it
    takes on a GPU; `build_seconds` is how long making it took; `cores` is how many the machine had to give, of which
    `threads` were used. Each is None where it is not known.
    """

    shape: tuple[int, ...]
    rounds: int
    threads: int
    artifact: Timing
    baselines: Mapping[str, Timing]
    ratios: Mapping[str, Ratio]
    build_seconds: float | None = None
    peak_memory: int | None = None
    cores: int | None = None
    device_peak: int | None = None

    @property
    def against(self) -> str:
        """The name of the baseline that it is judged by."""
        return next(iter(self.baselines))

    @property
    def baseline(self) -> Timing:
        return self.baselines[self.against]

    @property
    def speedup(self) -> float:
        return self.ratios[self.against].speedup

    @property
    def interval(self) -> tuple[float, float]:
        return self.ratios[self.against].interval

    def with_costs(
        self, build_seconds: float, peak_memory: int | None, cores: int, device_peak: int | None = None
    ) -> Throughput:
        return replace(self, build_seconds=build_seconds, peak_memory=peak_memory, cores=cores, device_peak=device_peak)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"against": self.against, "speedup": self.speedup, "interval": self.interval}


def alternate(
    baselines: Mapping[str, Side],
    artifact: Side,
    shape: Sequence[int],
    *,
    threads: int,
    clock: Callable[[], float] = time.perf_counter,
    step: Callable[[int, int, str], None] = lambda done, total, what: None,
    budget: float = SECONDS,
) -> Throughput:
    """Time an artifact and its baselines in turn, for `budget` seconds or the minimum number of rounds."""
    times = rounds((*baselines.values(), artifact), clock=clock, step=step, budget=budget)
    voxels = int(np.prod([shape[0], *shape[2:]]))
    timings = [timing(first, seconds, voxels) for first, seconds in times]
    return Throughput(
        shape=tuple(shape),
        rounds=len(times[-1].seconds),
        threads=threads,
        artifact=timings[-1],
        baselines=dict(zip(baselines, timings, strict=False)),
        ratios={name: ratio(side.seconds, times[-1].seconds) for name, side in zip(baselines, times, strict=False)},
    )


class Times(NamedTuple):
    """The seconds of one side: its first call, and the calls in the rounds."""

    first: float
    seconds: list[float]


def rounds(
    sides: Sequence[Side],
    *,
    clock: Callable[[], float] = time.perf_counter,
    step: Callable[[int, int, str], None] = lambda done, total, what: None,
    at_least: int = MIN_ROUNDS,
    at_most: int = MAX_ROUNDS,
    budget: float = SECONDS,
) -> list[Times]:
    """Time all sides in turn, in an order that changes every round, so that a drifting machine affects all equally.

    There are at least `at_least` rounds, and at most `at_most` or as many as `budget` seconds allow.
    """

    def timed(side: Side) -> float:
        time.sleep(PAUSE)
        start = clock()
        own = side()
        return clock() - start if own is None else own

    times = [Times(timed(side), []) for side in sides]
    started = clock()
    for done in range(at_most):
        if done >= at_least and clock() - started >= budget:
            break
        step(done, at_most, "")
        for number in range(len(sides)) if done % 2 == 0 else reversed(range(len(sides))):
            times[number].seconds.append(timed(sides[number]))
    return times


def timing(first: float, seconds: Sequence[float], voxels: int) -> Timing:
    p50, p90, p99 = (float(np.percentile(seconds, part)) for part in (50, 90, 99))
    return Timing(first, p50, p90, p99, voxels / p50)


def ratio(baseline: Sequence[float], artifact: Sequence[float]) -> Ratio:
    """The ratio of medians with its 95 % interval, resampling whole rounds, because their two sides are paired."""
    pairs: NDArray[np.float64] = np.array([baseline, artifact])
    rng = np.random.default_rng(0)
    drawn = pairs[:, rng.integers(0, pairs.shape[1], (RESAMPLES, pairs.shape[1]))]
    medians = np.median(drawn, axis=2)
    low, high = np.percentile(medians[0] / medians[1], [2.5, 97.5])
    middle = np.median(pairs, axis=1)
    return Ratio(float(middle[0] / middle[1]), (float(low), float(high)))

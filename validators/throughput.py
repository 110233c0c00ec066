"""Throughput: an artifact and what it is measured against in alternating rounds, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# Rounds until both bounds are met: enough for an interval, and no longer than a user waits.
LEAST_ROUNDS = 5
MOST_ROUNDS = 15
SECONDS = 15.0

# Seconds before each call. The threads of the side before still spin for a while, waiting for work, and a side alone in
# its process has the cores to itself: PSPNet in OpenVINO right behind ONNX Runtime 157 ms, with the pause 139.
PAUSE = 0.05

RESAMPLES = 2000

Side = Callable[[], "float | None"]
"""Runs once. It returns the seconds that it took where it has a better clock than the wall's, else None."""


@dataclass(frozen=True)
class Timing:
    """Of one side, in seconds: the first call, which warms up, and percentiles of the rounds behind it."""

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
    """The artifact, and what it was measured against by name; the first of them is what it is judged by.

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
        """The name of what it is judged by."""
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
    """Time an artifact and its baselines in turn, for `budget` seconds if that is more than the least rounds take."""
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
    """Seconds of one side: of its first call, and of those in the rounds."""

    first: float
    seconds: list[float]


def rounds(
    sides: Sequence[Side],
    *,
    clock: Callable[[], float] = time.perf_counter,
    step: Callable[[int, int, str], None] = lambda done, total, what: None,
    least: int = LEAST_ROUNDS,
    most: int = MOST_ROUNDS,
    budget: float = SECONDS,
) -> list[Times]:
    """Time all sides in turn, the order changing every round, so that a drifting machine bears on all alike.

    There are at least `least` rounds, and at most `most` or as many as `budget` seconds allow.
    """

    def timed(side: Side) -> float:
        time.sleep(PAUSE)
        start = clock()
        own = side()
        return clock() - start if own is None else own

    times = [Times(timed(side), []) for side in sides]
    started = clock()
    for done in range(most):
        if done >= least and clock() - started >= budget:
            break
        step(done, most, "")
        for number in range(len(sides)) if done % 2 == 0 else reversed(range(len(sides))):
            times[number].seconds.append(timed(sides[number]))
    return times


def timing(first: float, seconds: Sequence[float], voxels: int) -> Timing:
    p50, p90, p99 = (float(np.percentile(seconds, part)) for part in (50, 90, 99))
    return Timing(first, p50, p90, p99, voxels / p50)


def ratio(baseline: Sequence[float], artifact: Sequence[float]) -> Ratio:
    """The ratio of medians with its 95 % interval, by resampling whole rounds: their two sides belong together."""
    pairs: NDArray[np.float64] = np.array([baseline, artifact])
    rng = np.random.default_rng(0)
    drawn = pairs[:, rng.integers(0, pairs.shape[1], (RESAMPLES, pairs.shape[1]))]
    medians = np.median(drawn, axis=2)
    low, high = np.percentile(medians[0] / medians[1], [2.5, 97.5])
    middle = np.median(pairs, axis=1)
    return Ratio(float(middle[0] / middle[1]), (float(low), float(high)))

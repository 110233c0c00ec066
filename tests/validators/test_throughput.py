"""Alternating rounds, by a clock of the test's own: nothing here is timed."""

from __future__ import annotations

import pytest

from smp3d_export.validators import throughput
from smp3d_export.validators.throughput import MAX_ROUNDS, MIN_ROUNDS, Ratio, alternate, ratio


class Clock:
    """Time that passes only while a side runs."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def side(self, log: list[str], name: str, seconds: float):
        def run() -> None:
            log.append(name)
            self.now += seconds

        return run


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that would have been made."""
    made: list[float] = []
    monkeypatch.setattr("time.sleep", made.append)
    return made


def run(eager: float, artifact: float) -> tuple[throughput.Throughput, list[str]]:
    clock, log = Clock(), []
    sides = ({"eager": clock.side(log, "eager", eager)}, clock.side(log, "artifact", artifact))
    return alternate(*sides, (2, 1, 4, 4, 4), threads=2, clock=clock), log


def test_sides_alternate_and_the_order_changes() -> None:
    result, log = run(0.2, 0.1)
    warm, rounds = log[:2], log[2:]
    assert warm == ["eager", "artifact"]
    assert [set(pair) for pair in zip(rounds[::2], rounds[1::2], strict=True)] == [
        {"eager", "artifact"}
    ] * result.rounds
    assert rounds[:4] == ["eager", "artifact", "artifact", "eager"]


def test_every_call_waits_for_the_threads_of_the_one_before(pauses: list[float]) -> None:
    _, log = run(0.2, 0.1)
    assert pauses == [throughput.PAUSE] * len(log)


def test_the_ratio_is_of_medians() -> None:
    result, _ = run(0.2, 0.1)
    assert abs(result.speedup - 2) < 1e-9
    assert abs(result.artifact.voxels_per_second - 2 * 64 / 0.1) < 1e-6
    assert (result.rounds, result.shape) == (MAX_ROUNDS, (2, 1, 4, 4, 4))


def test_slow_networks_get_the_least_rounds() -> None:
    assert run(60, 30)[0].rounds == MIN_ROUNDS


def test_the_interval_holds_the_ratio_and_widens_with_noise() -> None:
    steady = ratio([2.0] * 9, [1.0] * 9)
    assert steady == Ratio(2.0, (2.0, 2.0))
    noisy = ratio([2, 3, 2, 1.5, 2.5, 2, 2.2], [1, 1.5, 0.8, 1, 1.2, 0.9, 1])
    low, high = noisy.interval
    assert low <= noisy.speedup <= high
    assert high - low > 0.1

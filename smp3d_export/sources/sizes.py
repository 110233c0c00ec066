"""The volume sizes that a network takes, found by running it: a multiple and a smallest size for each axis.

It runs on tensors without data (PyTorch's fake tensors), in a fraction of a second each, unless it looks at values.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from smp3d_export.contract import Shape

Run = Callable[[Tensor], tuple[Tensor, ...]]
Sizes = tuple[int, int, int]
OutputShapes = tuple[tuple[int, ...], ...]
STEPS = (1, 2, 3)
"""How many multiples beyond the optimum are tried. One alone may fit by chance."""


@dataclass(frozen=True)
class Needs:
    """What a network's input must be.

    Attributes:
        multiple: what H, W and D must be multiples of.
        min_size: the smallest H, W and D.
        in_channels: C.
        reason: why it takes nothing smaller.
        fixed: for H, W and D, whether the network takes one size only.
    """

    multiple: Sizes
    min_size: Sizes
    in_channels: int
    reason: str = ""
    fixed: tuple[bool, bool, bool] = (False, False, False)


@dataclass
class Trial:
    """Runs a network at one shape after another, and keeps what it returned."""

    run: Run
    seen: dict[Shape, OutputShapes | Exception] = field(default_factory=dict)

    def __call__(self, shape: Shape) -> OutputShapes | Exception:
        """The shapes of the outputs, or the error."""
        if shape not in self.seen:
            self.seen[shape] = self._run(shape)
        return self.seen[shape]

    def works(self, shape: Shape) -> bool:
        return not isinstance(self(shape), Exception)

    def _run(self, shape: Shape) -> OutputShapes | Exception:
        try:
            with torch.no_grad(), self.mode:
                return tuple(tuple(output.shape) for output in self.run(torch.zeros(shape)))
        except Exception as error:  # noqa: BLE001  a network fails in whatever way it does
            return error

    @cached_property
    def mode(self) -> FakeTensorMode | torch.no_grad:
        return torch.no_grad()


class FakeTrial(Trial):
    """The same without computing anything."""

    @cached_property
    def mode(self) -> FakeTensorMode:
        return FakeTensorMode(allow_non_fake_inputs=True)


def trial(model: Run, shape: Shape) -> Trial:
    """What runs a network: without computing, if it can.

    Raises:
        Exception: the network's own, if it does not run at `shape`.
    """
    with silent():
        fake = FakeTrial(model)
        if fake.works(shape):
            return fake
    real = Trial(model)
    result = real(shape)
    if isinstance(result, Exception):
        raise result
    return real


def find(run: Trial, shape: Shape) -> Needs:
    """What the network needs, around a shape that it runs at."""
    with silent():
        multiple = multiples(run, shape)
        fixed = tuple(m is None for m in multiple)
        h, w, d = (size if m is None else m for m, size in zip(multiple, shape[2:], strict=True))
        found = (h, w, d)
        smallest, reason = smallest_sizes(run, shape, found, fixed)
    return Needs(found, smallest, shape[1], reason, (fixed[0], fixed[1], fixed[2]))


def multiples(run: Trial, shape: Shape) -> list[int | None]:
    """For each volume axis, what its size must be a multiple of; None if it takes no other size than this one.

    A multiple holds if the network runs at the next ones, and every output grows with them in proportion. One that is
    rounded to other sizes does not.
    """
    found: list[int | None] = []
    for axis in (2, 3, 4):
        size = shape[axis]
        divisors = (m for m in range(1, size + 1) if size % m == 0)
        found.append(next((m for m in divisors if all(proportional(run, shape, axis, k * m) for k in STEPS)), None))
    return found


def proportional(run: Trial, shape: Shape, axis: int, more: int) -> bool:
    """Whether the network runs with a longer axis, and every axis of its outputs grows by the same factor or stays."""
    here, there = run(shape), run(changed(shape, axis, shape[axis] + more))
    if isinstance(here, Exception) or isinstance(there, Exception) or len(here) != len(there):
        return False
    for before, after in zip(here, there, strict=True):
        if len(before) != len(after):
            return False
        for number, (old, new) in enumerate(zip(before, after, strict=True)):
            if old != new and (number != axis or new * shape[axis] != old * (shape[axis] + more)):
                return False
    return True


def smallest_sizes(run: Trial, shape: Shape, multiple: tuple[int, ...], fixed: tuple[bool, ...]) -> tuple[Sizes, str]:
    """The smallest size of each axis at which the network runs, alone and all together, and why not a smaller one."""
    h, w, d = shape[2:]
    sizes = [h, w, d]
    reason = ""
    for number in range(3):
        if not fixed[number]:
            candidates = range(multiple[number], shape[2 + number], multiple[number])
            found = bisect_left(candidates, True, key=partial(works, run, shape, number))
            sizes[number] = multiple[number] * (found + 1)
            if sizes[number] > multiple[number]:
                reason = first_line(run(changed(shape, 2 + number, sizes[number] - multiple[number])))
    while not run.works((*shape[:2], sizes[0], sizes[1], sizes[2])) and sizes != [h, w, d]:
        reason = first_line(run((*shape[:2], sizes[0], sizes[1], sizes[2])))
        sizes = [min(2 * s, top) if top % s == 0 else top for s, top in zip(sizes, shape[2:], strict=True)]
    return (sizes[0], sizes[1], sizes[2]), reason


def works(run: Trial, shape: Shape, number: int, size: int) -> bool:
    """Whether the network runs with a smaller axis, and its outputs are in proportion."""
    return proportional(run, changed(shape, 2 + number, size), 2 + number, shape[2 + number] - size)


def changed(shape: Shape, axis: int, size: int) -> Shape:
    n, c, h, w, d = (size if number == axis else s for number, s in enumerate(shape))
    return n, c, h, w, d


def first_line(result: object) -> str:
    return str(result).strip().splitlines()[0][:200] if isinstance(result, Exception) and str(result).strip() else ""


@contextmanager
def silent() -> Iterator[None]:
    """Without the tracebacks that PyTorch logs when an operator refuses a shape."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)

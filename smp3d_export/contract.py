"""The shape contract: minimum, optimum, maximum and multiple of each axis, as each backend needs them.

Imports no torch, so that a runtime can check a volume before it runs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from smp3d_export.errors import ShapeError

AXES = ("N", "C", "H", "W", "D")
INPUT = "image"
# By the number of axes: masks, masks of class numbers, labels of a classification head.
OUTPUT_AXES = {5: ("N", "classes", "H", "W", "D"), 4: ("N", "H", "W", "D"), 2: ("N", "classes")}
Shape = tuple[int, int, int, int, int]


def output_axes(count: int) -> tuple[str, ...]:
    """The names of an output's axes."""
    return OUTPUT_AXES.get(count) or ("N", *(f"axis {number}" for number in range(1, count)))


@dataclass(frozen=True)
class Axis:
    """The sizes of one axis: multiples of `multiple` from `min` to `max`. `opt` is the size to optimise for."""

    name: str
    min: int
    opt: int
    max: int
    multiple: int = 1

    @property
    def dynamic(self) -> bool:
        return self.min < self.max

    def accepts(self, size: int) -> bool:
        return self.min <= size <= self.max and size % self.multiple == 0

    @classmethod
    def from_dict(cls, name: str, row: Mapping[str, Any]) -> Axis:
        """An axis from JSON, if it has this name and makes sense.

        Raises:
            KeyError, TypeError, ValueError: it is not such an axis.
        """
        axis = cls(**row)
        sizes = (axis.min, axis.opt, axis.max)
        if not all(type(size) is int and size > 0 for size in (*sizes, axis.multiple)):
            raise TypeError("sizes are whole numbers from 1 up")
        if axis.name != name or sorted(sizes) != [*sizes] or any(size % axis.multiple for size in sizes):
            raise ValueError("sizes are multiples, in order")
        return axis

    def __str__(self) -> str:
        if not self.dynamic:
            return f"{self.name} {self.opt}"
        return f"{self.name} {self.min}–{self.max}" + (f" by {self.multiple}" if self.multiple > 1 else "")


@dataclass(frozen=True)
class ShapeContract:
    """The shapes (N, C, H, W, D) that a network is captured for and an artifact runs."""

    axes: tuple[Axis, Axis, Axis, Axis, Axis]

    @classmethod
    def of(
        cls,
        opt: Sequence[int],
        *,
        multiple: Sequence[int],
        min_size: Sequence[int] | None = None,
        min: Sequence[int] | None = None,
        max: Sequence[int] | None = None,
        requested_multiple: Sequence[int] | None = None,
        static: bool = False,
        network: str = "the network",
        reason: str = "",
    ) -> ShapeContract:
        """The contract around an optimum.

        Args:
            opt: the optimum (N, C, H, W, D).
            multiple: what H, W and D must be multiples of.
            min_size: the smallest H, W and D that the network takes; by default `multiple`.
            min: the smallest (N, C, H, W, D); by default N = 1 and `min_size`.
            max: the largest; by default twice the optimum, N included.
            requested_multiple: used instead of `multiple`, of which it must be a multiple.
            static: freeze every axis at the optimum.
            network: the network's name in messages.
            reason: why it takes nothing smaller than `min_size`.

        Raises:
            ShapeError: a size is not a multiple or is below `min_size`, or the three shapes are not in order.
        """
        for what, shape in (("--shape", opt), ("--min", min), ("--max", max)):
            if shape is not None and (len(shape) != len(AXES) or any(size < 1 for size in shape)):
                raise ShapeError(
                    f"{what} is {written(shape)}; it takes five positive numbers N,C,H,W,D, for example 1,1,128,128,64"
                )
        if static and (min or max or requested_multiple):
            raise ShapeError(
                "--static freezes every axis at --shape, so it does not go with --min, --max or --multiple"
            )
        applied = checked_multiple(multiple, requested_multiple, network) if requested_multiple else tuple(multiple)
        multiples = (1, 1, *applied)
        floor = (1, opt[1], *(rounded_up(size, k) for size, k in zip(min_size or multiple, applied, strict=True)))
        needs = [
            f"{network} needs" if k == own else "the contract asks, by --multiple, for"
            for k, own in zip(multiples, (1, 1, *multiple), strict=True)
        ]
        for what, shape in (("--shape", opt), ("--min", min), ("--max", max)):
            if shape is None:
                continue
            if shape[1] != opt[1]:
                raise ShapeError(
                    f"{what} has C {shape[1]}, but the network has {opt[1]} input channels: C is not dynamic"
                )
            flag = "" if what == "--shape" else f" of {what}"
            for name, size, k, lowest, who in zip(AXES, shape, multiples, floor, needs, strict=True):
                if size % k:
                    below, above = size // k * k, (size // k + 1) * k
                    use = f"{below} or {above}" if below >= lowest else str(above if above >= lowest else lowest)
                    raise ShapeError(f"{name}{flag} is {size}, but {who} a multiple of {k}: use {use}.")
                if size < lowest:
                    because = reason and f": {reason}"
                    raise ShapeError(f"{name}{flag} is {size}, but {network} needs at least {lowest}{because}.")
        if static:
            lower = upper = tuple(opt)
        else:
            lower = tuple(min) if min else floor
            upper = (
                tuple(max)
                if max
                else tuple(size if name == "C" else 2 * size for name, size in zip(AXES, opt, strict=True))
            )
        for name, low, middle, high in zip(AXES, lower, opt, upper, strict=True):
            if not low <= middle <= high:
                raise ShapeError(
                    f"{name} has minimum {low}, optimum {middle} and maximum {high}: "
                    f"--min, --shape and --max must be in that order on every axis"
                )
        axes = [Axis(*row) for row in zip(AXES, lower, opt, upper, multiples, strict=True)]
        return cls((axes[0], axes[1], axes[2], axes[3], axes[4]))

    @property
    def min(self) -> Shape:
        return self._sizes("min")

    @property
    def opt(self) -> Shape:
        return self._sizes("opt")

    @property
    def max(self) -> Shape:
        return self._sizes("max")

    @property
    def multiple(self) -> tuple[int, int, int]:
        return self.axes[2].multiple, self.axes[3].multiple, self.axes[4].multiple

    @property
    def dynamic(self) -> tuple[Axis, ...]:
        return tuple(axis for axis in self.axes if axis.dynamic)

    def _sizes(self, which: str) -> Shape:
        n, c, h, w, d = (getattr(axis, which) for axis in self.axes)
        return n, c, h, w, d

    def check(self, shape: Sequence[int]) -> None:
        """Refuse a shape outside the contract.

        Raises:
            ShapeError: the message names the axis, the range and the nearest valid sizes.
        """
        if len(shape) != len(AXES):
            raise ShapeError(f"an input of {len(shape)} axes, {written(shape)}; it takes the five (N, C, H, W, D)")
        for axis, size in zip(self.axes, shape, strict=True):
            if not axis.accepts(size):
                raise ShapeError(
                    f"{axis.name} is {size}, outside the contract ({axis}): "
                    f"the nearest valid size is {' or '.join(str(n) for n in self.nearest(axis, size))}"
                )

    @staticmethod
    def nearest(axis: Axis, size: int) -> tuple[int, ...]:
        """The valid sizes of an axis just below and above `size`; only one if it lies outside the range."""
        if size <= axis.min:
            return (axis.min,)
        if size >= axis.max:
            return (axis.max,)
        below = size // axis.multiple * axis.multiple
        return (below, below + axis.multiple) if below != size else (size,)

    def example(self) -> Shape:
        """The shape to capture at: inside every dynamic axis's range, and never 1, which torch.export would freeze."""
        n, c, h, w, d = (axis.opt if not axis.dynamic else self._interior(axis) for axis in self.axes)
        return n, c, h, w, d

    @staticmethod
    def _interior(axis: Axis) -> int:
        # Twice the minimum: a map that is a single voxel at the smallest size then has two.
        steps = (axis.min // axis.multiple, axis.max // axis.multiple)
        return axis.multiple * max(2, min(2 * steps[0], steps[1]))

    def torch_dims(self) -> dict[int, Any]:
        """For `torch.export`: axis number -> `multiple * Dim` with its range, without static axes."""
        from torch.export import Dim

        dims = {}
        for number, (axis, traced) in enumerate(zip(self.axes, self.example(), strict=True)):
            if not axis.dynamic:
                continue
            # The range reaches beyond the traced size, if necessary beyond the contract. At the end of the range, the
            # example's "not one voxel" would mean "only the largest size", and the ONNX exporter would freeze that.
            largest = max(axis.max, traced + axis.multiple)
            name, low, high = axis.name.lower(), axis.min // axis.multiple, largest // axis.multiple
            if axis.multiple > 1:
                dims[number] = axis.multiple * Dim(f"{name}_steps", min=low, max=high)
            elif number >= 2 and low > 1:
                # The network may shrink this axis to one voxel. On a bare Dim, torch.export takes the example's "not
                # one voxel" as a contradiction to the range; on a derived Dim it does not.
                dims[number] = Dim(f"{name}_before", min=low - 1, max=high - 1) + 1
            else:
                dims[number] = Dim(name, min=low, max=high)
        return dims

    def parity_shapes(self) -> dict[str, Shape]:
        """The shapes at which an artifact must agree with the network, by name, without duplicates.

        The anisotropic one has a different number of steps on every volume axis if the range allows it.
        """
        shapes = {"optimum": self.opt, "minimum": self.min, "anisotropic": self._anisotropic(), "maximum": self.max}
        return {
            name: shape
            for name, shape in shapes.items()
            if shape not in list(shapes.values())[: list(shapes).index(name)]
        }

    def _anisotropic(self) -> Shape:
        taken: set[int] = set()
        sizes = list(self.opt)
        for number in (2, 3, 4):
            axis = self.axes[number]
            steps = range(axis.min // axis.multiple, axis.max // axis.multiple + 1)
            around = sorted(steps, key=lambda k: (abs(k * axis.multiple - axis.opt * (5 + number) // 10), k))
            free = [k for k in around if k * axis.multiple not in taken and k * axis.multiple != axis.opt] or around
            sizes[number] = free[0] * axis.multiple
            taken.add(sizes[number])
        n, c, h, w, d = sizes
        return n, c, h, w, d

    def to_dict(self) -> list[dict[str, Any]]:
        return [asdict(axis) for axis in self.axes]

    @classmethod
    def from_dict(cls, rows: Sequence[Mapping[str, Any]]) -> ShapeContract:
        """A contract from JSON.

        Raises:
            KeyError, TypeError, ValueError: it is not a contract.
        """
        n, c, h, w, d = (Axis.from_dict(name, row) for name, row in zip(AXES, rows, strict=True))
        return cls((n, c, h, w, d))

    def __str__(self) -> str:
        return " · ".join(str(axis) for axis in self.axes)


def rounded_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def checked_multiple(multiple: Sequence[int], requested: Sequence[int], network: str) -> tuple[int, ...]:
    """The `requested` multiples of H, W and D, if they are multiples of the network's own.

    Raises:
        ShapeError: one of them is not, or there are not three.
    """
    if len(requested) != 3:
        raise ShapeError(f"--multiple is {written(requested)}; it takes three numbers, H,W,D, for example 64,32,32")
    for name, k, own in zip(AXES[2:], requested, multiple, strict=True):
        if k < 1 or k % own:
            below, above = k // own * own, (k // own + 1) * own
            use = f"{below} or {above}" if below > 0 else str(own)
            raise ShapeError(f"--multiple is {k} for {name}, but {network} needs a multiple of {own}: use {use}.")
    return tuple(requested)


def check_multiples(
    sizes: Sequence[int], multiple: Sequence[int], min_size: Sequence[int] | None = None, reason: str = ""
) -> None:
    """Refuse volume axes that are not multiples of the network's total stride, or are below its `min_size`.

    `reason` is why it takes nothing smaller.

    Raises:
        ShapeError: the message names the axis and the nearest valid sizes.
    """
    for name, size, k, lowest in zip(AXES[2:], sizes, multiple, min_size or multiple, strict=True):
        if size % k or size == 0:
            below, above = size // k * k, (size // k + 1) * k
            use = f"{below} or {above}" if below >= lowest else str(max(above, lowest))
            raise ShapeError(f"{name} is {size}, but the network needs a multiple of {k}: use {use}.")
        if size < lowest:
            because = reason and f": {reason}"
            raise ShapeError(f"{name} is {size}, but the network needs at least {lowest}{because}.")


def written(shape: Sequence[int]) -> str:
    """A shape as the command line takes it."""
    return ",".join(str(size) for size in shape)

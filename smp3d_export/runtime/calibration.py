"""Calibration: the volumes that int8 is calibrated on, as patches of the optimum shape. Imports no torch.

int8 artifacts are compared on patches of the same volumes at other places, and only on real voxels: mirrored voxels are
unlike anything that a network was trained on, and its regions there mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from math import prod
from operator import ge
from pathlib import Path
from typing import Any

import numpy as np

from smp3d_export.arrays import Volume
from smp3d_export.contract import Shape, ShapeContract
from smp3d_export.errors import UsageError
from smp3d_export.runtime.formats import SUFFIXES
from smp3d_export.runtime.volumes import Normalisation, check_channels, read_volume, volume_shape

PATCHES = 16
# Of this many places, the one with the most contrast is compared on: a corner of air has no regions.
PLACES = 8


@dataclass(frozen=True)
class Calibration:
    """A folder of volumes, normalised as the network expects them."""

    folder: Path
    normalisation: Normalisation | None = None
    count: int = PATCHES
    seed: int = 0

    def files(self) -> list[Path]:
        """The volumes of the folder, in the order of their names.

        Raises:
            UsageError: there is no such folder, or it holds no volume.
        """
        if not self.folder.is_dir():
            raise UsageError(
                f"--calibration is {str(self.folder)!r}, which is not a folder: give one with volumes in it"
            )
        files = sorted(path for path in self.folder.iterdir() if path.name.lower().endswith(SUFFIXES))
        if not files:
            raise UsageError(f"--calibration {str(self.folder)!r} holds no volumes ({', '.join(SUFFIXES)})")
        return files

    @cached_property
    def shapes(self) -> Mapping[Path, Shape]:
        """The shapes (N, C, H, W, D) of the volumes, by their headers.

        Raises:
            UsageError: there is no such folder, it holds no volume, or a file is not a volume.
        """
        return {path: volume_shape(path) for path in self.files()}

    def check(self, contract: ShapeContract) -> None:
        """Read everything that is needed once, so that a bad file is found before any work is done.

        The header of every file is read for its channels; files that patches come from are read whole.

        Raises:
            UsageError: a file cannot be read or normalised, or has other channels or voxels that are not finite.
        """
        for path, shape in self.shapes.items():
            check_channels(path, shape, contract.opt[1])
        needed = max(self.count, PLACES * contract.max[0])
        for path in list(self.shapes)[:needed]:
            read_volume(path, self.normalisation)

    def patches(self, contract: ShapeContract) -> Iterator[Volume]:
        """`count` patches (1, C, H, W, D) of the contract's optimum, at seeded random places of every volume.

        A volume that is smaller along an axis is mirrored at its borders there.

        Raises:
            UsageError: a file cannot be read, or has other channels.
        """
        return self._patches(self.files(), contract.opt, self.count, self.seed)

    def fills(self, shape: Shape) -> bool:
        """Whether a volume is as large as a shape (N, C, H, W, D) along H, W and D."""
        return bool(self._filling(shape))

    def real_shape(self, shape: Shape, contract: ShapeContract) -> Shape:
        """The shape of the contract, up to one that no volume fills, with the most real voxels in it.

        Along an axis where a volume has less than the contract's minimum, that is the minimum.
        """
        volume = self.shapes[self._largest(shape)]
        n, c, *sizes = shape
        rows = zip(contract.axes[2:], sizes, volume[2:], strict=True)
        h, w, d = (max(axis.min, min(size, have) // axis.multiple * axis.multiple) for axis, size, have in rows)
        return n, c, h, w, d

    def real_part(self, shape: Shape) -> tuple[slice, slice, slice]:
        """Where along H, W and D the voxels of `image(shape)` are real."""
        have = shape if self.fills(shape) else self.shapes[self._largest(shape)]
        h, w, d = map(middle, shape[2:], have[2:])
        return h, w, d

    def image(self, shape: Shape) -> Volume:
        """An image of any shape (N, C, H, W, D) to compare on: patches from other places than those of `patches`.

        They come from volumes that fill the shape; if none does, from the one with the most voxels in it, mirrored.

        Raises:
            UsageError: a file cannot be read, or has other channels.
        """
        files = self._filling(shape) or [self._largest(shape)]
        places = sorted(self._patches(files, shape, PLACES * shape[0], self.seed + 1), key=np.std)
        return np.concatenate(places[-shape[0] :])

    def _filling(self, shape: Shape) -> list[Path]:
        """The volumes that are as large as a shape along H, W and D."""
        return [path for path, have in self.shapes.items() if all(map(ge, have[2:], shape[2:]))]

    def _largest(self, shape: Shape) -> Path:
        """The volume with the most voxels in a shape."""
        return max(self.shapes, key=lambda path: prod(map(min, self.shapes[path][2:], shape[2:])))

    def _patches(self, files: Sequence[Path], shape: Shape, count: int, seed: int) -> Iterator[Volume]:
        rng = np.random.default_rng(seed)
        _, channels, *sizes = shape
        # File by file, so that each is read only once.
        shares = [len(range(number, count, len(files))) for number in range(len(files))]
        for path, share in zip(files, shares, strict=True):
            if not share:
                continue
            check_channels(path, self.shapes[path], channels)
            volume = mirrored(read_volume(path, self.normalisation), sizes)
            for _ in range(share):
                image = volume[rng.integers(volume.shape[0])][None]
                for axis, size in enumerate(sizes, start=2):
                    start = rng.integers(image.shape[axis] - size + 1)
                    image = image.take(range(start, start + size), axis=axis)
                yield np.ascontiguousarray(image)

    def batches(self, contract: ShapeContract) -> Batches:
        """The patches in batches of the optimum's N, because the graph's batch size may be frozen."""
        return Batches(self, contract)

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        normalisation = None if self.normalisation is None else str(self.normalisation)
        return {
            "files": [path.name for path in self.files()],
            "patches": self.count,
            "normalisation": normalisation,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Batches:
    """Patches as (N, C, H, W, D) of the contract's optimum, made each time, so that they are not all in memory.

    An incomplete last batch is left out. If there are fewer patches than one batch, some are repeated.
    """

    calibration: Calibration
    contract: ShapeContract

    def __len__(self) -> int:
        return max(1, self.calibration.count // self.contract.opt[0])

    def __iter__(self) -> Iterator[Volume]:
        size = self.contract.opt[0]
        patches = self.calibration.patches(self.contract)
        for _ in range(len(self)):
            batch = list(islice(patches, size))
            yield np.concatenate([batch[number % len(batch)] for number in range(size)])


def middle(size: int, have: int) -> slice:
    """Where `have` voxels lie along an axis that is mirrored at both ends to `size`."""
    missing = max(0, size - have)
    return slice(missing // 2, size - (missing - missing // 2))


def mirrored(volume: Volume, sizes: Sequence[int]) -> Volume:
    """A volume (N, C, H, W, D) that has at least the given H, W and D."""
    if all(map(ge, volume.shape[2:], sizes)):
        return volume
    margins = [(0, 0), (0, 0)]
    for size, have in zip(sizes, volume.shape[2:], strict=True):
        inside = middle(size, have)
        margins.append((inside.start, max(0, size - inside.stop)))
    return np.pad(volume, margins, mode="symmetric")

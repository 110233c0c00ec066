"""Calibration: the volumes that int8 takes its ranges from, as patches of the optimum shape. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from smp3d_export.arrays import Volume
from smp3d_export.contract import Shape, ShapeContract
from smp3d_export.errors import UsageError
from smp3d_export.runtime.formats import SUFFIXES
from smp3d_export.runtime.volumes import Normalisation, read_volume

PATCHES = 16
# Of as many places, that with the most to see is compared on: in a corner of air there are no regions.
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
            UsageError: there is no such folder, or no volume in it.
        """
        if not self.folder.is_dir():
            raise UsageError(f"--calibration is {str(self.folder)!r}, which is no folder: give one with volumes in it")
        files = sorted(path for path in self.folder.iterdir() if path.name.lower().endswith(SUFFIXES))
        if not files:
            raise UsageError(f"--calibration {str(self.folder)!r} has no volume in it ({', '.join(SUFFIXES)})")
        return files

    def patches(self, contract: ShapeContract) -> Iterator[Volume]:
        """`count` patches (1, C, H, W, D) of the contract's optimum, at seeded random places of every volume.

        A volume that is smaller along an axis is mirrored at its borders there.

        Raises:
            UsageError: a file cannot be read, or has other channels.
        """
        return self._patches(contract.opt, self.count, self.seed)

    def image(self, shape: Shape) -> Volume:
        """An image of any shape (N, C, H, W, D) to compare on: patches from other places than those of `patches`.

        Raises:
            UsageError: a file cannot be read, or has other channels.
        """
        places = sorted(self._patches(shape, PLACES * shape[0], self.seed + 1), key=np.std)
        return np.concatenate(places[-shape[0] :])

    def _patches(self, shape: Shape, count: int, seed: int) -> Iterator[Volume]:
        rng = np.random.default_rng(seed)
        files = self.files()
        _, channels, *sizes = shape
        # File by file, so that each is read once however many patches are taken from it.
        shares = [len(range(number, count, len(files))) for number in range(len(files))]
        for path, share in zip(files, shares, strict=True):
            if not share:
                continue
            volume = read_volume(path)
            if volume.shape[1] != channels:
                raise UsageError(
                    f"{str(path)!r} has {volume.shape[1]} channels, but the network has {channels} input channels"
                )
            if self.normalisation is not None:
                volume = self.normalisation(volume)
            volume = mirrored(volume, sizes)
            for _ in range(share):
                image = volume[rng.integers(volume.shape[0])][None]
                for axis, size in enumerate(sizes, start=2):
                    start = rng.integers(image.shape[axis] - size + 1)
                    image = image.take(range(start, start + size), axis=axis)
                yield np.ascontiguousarray(image)

    def batches(self, contract: ShapeContract) -> Batches:
        """The patches in batches of the optimum's N, for a graph whose batch may be frozen."""
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
    """Patches as (N, C, H, W, D) of the contract's optimum; made anew each time, so they are not all in memory.

    What is over when the last batch is full is left out; of fewer patches than one batch some are repeated.
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


def mirrored(volume: Volume, sizes: list[int]) -> Volume:
    """A volume (N, C, H, W, D) that has at least the given H, W and D."""
    missing = [max(0, size - have) for size, have in zip(sizes, volume.shape[2:], strict=True)]
    if not any(missing):
        return volume
    return np.pad(volume, [(0, 0), (0, 0), *((m // 2, m - m // 2) for m in missing)], mode="symmetric")

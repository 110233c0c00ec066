"""Which convolutions does this processor compute wrongly in a low precision? They are found by trying them.

On processors with AMX, oneDNN leaves the output of some convolutions unwritten, in bf16 and in int8. PyTorch 2.13
(oneDNN 3.12) and OpenVINO 2025.0, 2025.4 and 2026.4 compute with it. Of 4000 random convolutions, those were wrong

- whose output has one voxel along the last axis, at a stride of 2 or more along it, with a kernel larger than 1;
- whose input has one voxel along the first axis, with 3 channels or fewer.

All of them have an axis of one voxel, whatever the other sizes: 1x64x16x16x2 at stride 2 is wrong, while 1x64x2x2x2 is
right, since the fault also takes more than four voxels of output for each thread. Transposed convolutions, kernels of
1, matrix products, fp32, and fp16 on processors without amx_fp16 were right. So a network is probed with one thread,
at each of its maps that has a short axis, and with the other axes both at their minimum and at some multiples of it.

The operands are positive: sums do not cancel, each voxel has a relative error, and no old memory, zeros included,
passes for a result. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smp3d_export import hardware
from smp3d_export.contract import Shape, ShapeContract

# How many times their minimum the other axes have, if the contract has so much.
LONGER = 8
# Of all weights: sums of a hundred thousand products fit into fp16.
WEIGHT = 1 / 64
# Allowed relative error of a voxel; rounding to bf16 costs 0.004, int8 operands cost 0.01.
TOLERANCE = 1 / 32

Array = NDArray[np.float32]


def shapes(contract: ShapeContract) -> list[Shape]:
    """The shapes (N, C, H, W, D) of the network's input to probe it at: all volume axes at their minimum, and each."""
    smallest = contract.min
    longer = [min(axis.max // axis.multiple * axis.multiple, LONGER * axis.min) for axis in contract.axes]
    found = [smallest]
    for axis in (2, 3, 4):
        n, c, h, w, d = (*smallest[:2], *(smallest[k] if k == axis else longer[k] for k in (2, 3, 4)))
        found.append((n, c, h, w, d))
    return list(dict.fromkeys(found))


def is_thin(*maps: Sequence[int]) -> bool:
    """Whether one of some maps (N, C, H, W, D) has a volume axis of one voxel."""
    return any(1 in sizes[2:] for sizes in maps)


def image(sizes: Sequence[int]) -> Array:
    """One channel (N, 1, H, W, D) of a map to convolve; all its channels are equal."""
    n, _, *volume = sizes
    return np.random.default_rng(0).uniform(0.5, 1, (n, 1, *volume)).astype(np.float32)


def is_wrong(found: Array, exact: Array) -> bool:
    """Whether a result of positive operands is further from the exact one than rounding explains; NaN is."""
    return not bool((np.abs(found - exact) <= TOLERANCE * exact).all())


def reason(precision: str, library: str, image: Sequence[int]) -> str:
    """Why a convolution stays in fp32, for the manifest."""
    size = ",".join(map(str, image))
    return f"{library} computes it wrongly in {precision} on this processor, for example on a map of {size}"


def made_elsewhere(made_on: Mapping[str, Any], versions: Mapping[str, str], library: str) -> bool:
    """Whether an artifact was probed on another processor than this one, or with another version of a library."""
    if not made_on:  # it is being made
        return False
    there = made_on.get("processor"), made_on.get("features"), versions.get(library)
    return there != (hardware.processor(), hardware.cpu_features(), hardware.versions().get(library))

"""What an artifact is compared on: volumes at the contract's shapes, and the user's samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from smp3d_export import backends
from smp3d_export.arrays import Volume, volume
from smp3d_export.contract import ShapeContract
from smp3d_export.device import CPU
from smp3d_export.hardware import available_memory
from smp3d_export.runtime.calibration import Calibration
from smp3d_export.runtime.volumes import Normalisation, check_channels, crop_to, read_volume
from smp3d_export.sources.request import Opened, Program, Request
from smp3d_export.validators.parity import Case, Reference

# Activations are estimated from the graph. Kernels need workspace in addition.
WORKSPACE = 1.5


def reference_for(opened: Opened, program: Program, samples: Mapping[str, Volume], request: Request) -> Reference:
    """The reference with the inputs to compare on: volumes at the contract's shapes, and the user's samples.

    A shape whose activations would not fit into the free memory of its device is reported as not run.
    """
    contract, calibration = opened.contract, request.calibration
    devices = {request.device, *(backends.find(target).device(request.device) for target in request.targets)}
    free = {device: size for device in sorted(devices) if (size := available_memory(device)) is not None}
    cases = []
    for case in seeded(contract, request.source.seed) if calibration is None else calibrated(contract, calibration):
        need = WORKSPACE * program.activations * prod(case.shape) / prod(contract.opt)
        skip = None
        for device, size in free.items():
            if need > size:
                where = "of memory" if device == CPU else "on the GPU"
                skip = f"it takes about {need / 1e9:.1f} GB {where}, and {size / 1e9:.1f} GB are free"
        cases.append(replace(case, skip=skip))
    for name, sample in samples.items():
        cases.append(Case(name, sample.shape, partial(np.copy, sample)))
    # Several artifacts are compared, or one in two ways.
    keep = request.several or request.settings.precision.is_half
    return Reference(opened, cases, label_threshold=opened.label_threshold, keep=keep)


def seeded(contract: ShapeContract, seed: int) -> Iterator[Case]:
    """Smooth volumes with noise, at the contract's shapes."""
    for name, shape in contract.parity_shapes().items():
        yield Case(name, shape, partial(volume, shape, seed))


def calibrated(contract: ShapeContract, calibration: Calibration) -> Iterator[Case]:
    """Patches of the calibration volumes at the contract's shapes, for int8.

    On other voxels, a network trained on such volumes predicts regions that mean nothing, and values outside every
    range. So a shape that no volume fills only proves the shape, and the values are compared at a shape that the
    volumes do fill. Along an axis with fewer voxels than the contract's minimum, a volume is mirrored, and compared
    where it is real.
    """
    compared = {shape for shape in contract.parity_shapes().values() if calibration.fills(shape)}
    for name, shape in contract.parity_shapes().items():
        image = partial(calibration.image, shape)
        if calibration.fills(shape):
            yield Case(name, shape, image)
            continue
        inside = calibration.real_shape(shape, contract)
        if inside not in compared:
            compared.add(inside)
            real = partial(calibration.image, inside)
            yield Case(f"real part of the {name}", inside, real, real=calibration.real_part(inside))
        if inside != shape:
            yield Case(name, shape, image, made_up="it is larger than every calibration volume")


def read_samples(
    paths: tuple[Path, ...], normalisation: Normalisation | None, contract: ShapeContract
) -> dict[str, Volume]:
    """The user's volumes, normalised and cut to the contract.

    Raises:
        UsageError: a file is not a volume, or does not fit the contract.
    """
    samples = {}
    for path, name in named(paths).items():
        sample = read_volume(path, normalisation)
        check_channels(path, sample.shape, contract.opt[1])
        fitting = crop_to(contract, sample)
        cut = "" if fitting.shape == sample.shape else f" (its centre, of {'×'.join(map(str, sample.shape[2:]))})"
        samples[f"{name}{cut}"] = fitting
    return samples


def named(paths: Iterable[Path]) -> dict[Path, str]:
    """Files without duplicates, by name, with as many folders in front as it takes to tell them apart."""
    distinct = {path.resolve(): path for path in paths}
    ends = {
        path: ["/".join(whole.parts[-n:]) for n in range(1, len(whole.parts) + 1)] for whole, path in distinct.items()
    }
    counts = Counter(end for several in ends.values() for end in several)
    return {path: next(end for end in several if counts[end] == 1) for path, several in ends.items()}

"""What an artifact is compared on: seeded volumes at the contract's shapes, and the user's samples."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from smp3d_export.arrays import Volume, volume
from smp3d_export.contract import ShapeContract
from smp3d_export.hardware import available_memory
from smp3d_export.runtime.volumes import Normalisation, crop_to, read_volume
from smp3d_export.sources.request import Opened, Program, Request
from smp3d_export.validators.parity import Case, Reference

# Activations are estimated from the graph; kernels take workspace beside them.
WORKSPACE = 1.5


def reference_for(opened: Opened, program: Program, samples: Mapping[str, Volume], request: Request) -> Reference:
    """The reference with the inputs to compare on: seeded volumes at the contract's shapes, and the user's samples.

    In int8 the volumes at the contract's shapes are taken from the calibration: on others, a network that was trained
    on such volumes has regions that mean nothing, and values out of every range.

    A shape whose activations would not fit into the memory of this machine is not run, and says so.
    """
    contract, calibration = opened.contract, request.calibration
    make = partial(volume, seed=request.source.seed) if calibration is None else calibration.image
    cases = []
    for name, shape in contract.parity_shapes().items():
        need = WORKSPACE * program.activations * prod(shape) / prod(contract.opt)
        free = available_memory()
        skip = None
        if free is not None and need > free:
            skip = f"it takes about {need / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free"
        cases.append(Case(name, shape, partial(make, shape), skip))
    for name, sample in samples.items():
        cases.append(Case(name, sample.shape, partial(np.copy, sample)))
    return Reference(opened, cases, label_threshold=opened.label_threshold, keep=request.several)


def read_samples(
    paths: tuple[Path, ...], normalisation: Normalisation | None, contract: ShapeContract
) -> dict[str, Volume]:
    """The user's volumes, normalised and cut to the contract.

    Raises:
        UsageError: a file is no volume, or does not fit the contract.
    """
    samples = {}
    for path in paths:
        sample = read_volume(path)
        if normalisation is not None:
            sample = normalisation(sample)
        fitting = crop_to(contract, sample)
        cut = "" if fitting.shape == sample.shape else f" (its centre, of {'×'.join(map(str, sample.shape[2:]))})"
        samples[f"{path.name}{cut}"] = fitting
    return samples

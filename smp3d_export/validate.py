"""What an artifact is put to: the cases of its parity, its golden input, and its memory in a process of its own.

Imports no torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from smp3d_export.artifact import GOLDEN
from smp3d_export.contract import ShapeContract
from smp3d_export.hardware import available_memory
from smp3d_export.request import Request
from smp3d_export.runtime.volumes import Normalisation, Volume, crop_to, read_volume
from smp3d_export.validators.inputs import volume
from smp3d_export.validators.parity import Case, Reference, Run

# Activations are estimated from the graph; kernels take workspace beside them.
WORKSPACE = 1.5


def reference_for(
    eager: Run,
    contract: ShapeContract,
    samples: Mapping[str, Volume],
    request: Request,
    *,
    activations: int,
    label_threshold: float,
) -> Reference:
    """The eager network with the inputs to compare on: seeded volumes at the contract's shapes, and the user's samples.

    Where ranges are taken from the user's volumes, what is compared at the contract's shapes is of those: on others a
    network that was trained on such has regions that mean nothing, and values out of every range.

    A shape whose activations would not fit into the memory of this machine is not run, and says so; `activations` is
    how many bytes they take at the optimum.
    """
    calibration = request.calibration
    make = partial(volume, seed=request.network.seed) if calibration is None else calibration.image
    cases = []
    for name, shape in contract.parity_shapes().items():
        need = WORKSPACE * activations * prod(shape) / prod(contract.opt)
        free = available_memory()
        skip = None
        if free is not None and need > free:
            skip = f"it takes about {need / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free"
        cases.append(Case(name, shape, partial(make, shape), skip))
    for name, sample in samples.items():
        cases.append(Case(name, sample.shape, partial(np.copy, sample)))
    several = len(request.targets) > 1
    return Reference(eager, cases, label_threshold=label_threshold, keep=several)


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


def write_golden(run: Run, contract: ShapeContract, seed: int, folder: Path) -> None:
    """The smallest input of the contract with its outputs, to prove the artifact again elsewhere.

    It is a seeded volume in every case: an artifact carries nothing of the user's volumes.
    """
    image = volume(contract.min, seed)
    np.savez_compressed(folder / GOLDEN, allow_pickle=False, image=image, **run(image))


def peak_memory(folder: Path, threads: int, device: str) -> int | None:
    """Bytes that a process has in memory at its peak when it loads and runs the artifact alone; None if it failed."""
    command = [sys.executable, "-m", "smp3d_export.runtime", os.fspath(folder.absolute()), str(threads), device]
    # Not from the working directory: a folder there may have the name of a module.
    done = subprocess.run([*command[:1], "-P", *command[1:]], capture_output=True, text=True, check=False)
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])["peak"]
    except (ValueError, IndexError, KeyError):
        return None

"""Loads and runs an artifact, without torch wherever the artifact needs none."""

from __future__ import annotations

import abc
import importlib
from pathlib import Path
from typing import Any

import numpy as np

from smp3d_export.artifact import read_manifest
from smp3d_export.contract import ShapeContract
from smp3d_export.errors import UsageError
from smp3d_export.runtime.volumes import Volume

Outputs = dict[str, np.ndarray]

# Target -> the module whose class `Runner` runs it.
RUNNERS = {
    "torchscript": "smp3d_export.runtime.torchscript",
    "aoti": "smp3d_export.runtime.aoti",
    "compile": "smp3d_export.runtime.compile",
    "onnx": "smp3d_export.runtime.onnx",
    "openvino": "smp3d_export.runtime.openvino",
    "trt": "smp3d_export.runtime.tensorrt",
    "trt-rtx": "smp3d_export.runtime.tensorrt",
}


class Runner(abc.ABC):
    """An artifact, loaded: call it with (N, C, H, W, D) in float32 to have its outputs by name.

    Args:
        folder: the artifact's.
        manifest: its description.
        threads: how many to use; what the backend chooses where it is None.
        device: `cpu`, `cuda` or `cuda:N`.

    Raises:
        UsageError: the files are not what the manifest says.
        TargetUnavailableError: this machine lacks what it takes to run them.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], threads: int | None = None, device: str = "cpu") -> None:
        self.contract = ShapeContract.from_dict(manifest["contract"])

    def __call__(self, image: Volume) -> Outputs:
        """Run.

        Raises:
            ShapeError: `image` is outside the contract; no backend is asked to cope with it.
        """
        self.contract.check(image.shape)
        return self.run(image)

    @abc.abstractmethod
    def run(self, image: Volume) -> Outputs:
        """Run on an image that the contract admits."""

    def seconds(self, image: Volume) -> float | None:
        """Run and say how long it took, where the backend has a better clock than the wall's; else None, having run."""
        self(image)


def load(folder: str | Path, *, threads: int | None = None, device: str = "cpu") -> Runner:
    """Load an artifact.

    Raises:
        UsageError: the folder holds none, or its files are not what the manifest says.
        TargetUnavailableError: this machine lacks what it takes to run it.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    target = manifest.get("target")
    if target not in RUNNERS:
        raise UsageError(f"{str(folder)!r} is for the target {target!r}, which cannot be run here")
    return importlib.import_module(RUNNERS[target]).Runner(folder, manifest, threads, device)

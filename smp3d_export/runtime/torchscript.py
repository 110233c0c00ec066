"""Runs a TorchScript artifact in PyTorch, on the CPU or on an NVIDIA GPU."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.jit._fuser import optimized_execution

from smp3d_export import runtime
from smp3d_export.errors import UsageError
from smp3d_export.runtime.volumes import Volume


class Runner(runtime.Runner):
    """A loaded `model.ts`."""

    def __init__(self, folder: Path, manifest: dict[str, Any], threads: int | None = None, device: str = "cpu") -> None:
        super().__init__(folder, manifest, threads, device)
        if threads:
            torch.set_num_threads(threads)
        path = folder / "model.ts"
        self.device = device
        self.names = [output["name"] for output in manifest["outputs"]]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of its deprecation
                self.program = torch.jit.load(str(path), map_location=device)
        except RuntimeError as error:
            raise UsageError(f"TorchScript cannot load {str(path)!r}: {error}") from error

    def run(self, image: Volume) -> dict[str, np.ndarray]:
        # The profiling executor would compile anew for every shape, and twice.
        with torch.inference_mode(), optimized_execution(False):
            outputs = self.program(torch.from_numpy(image).to(self.device))
        outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
        return {name: output.cpu().numpy() for name, output in zip(self.names, outputs, strict=True)}

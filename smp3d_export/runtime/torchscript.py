"""Runs a TorchScript artifact in PyTorch, on the CPU or on an NVIDIA GPU."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.jit._fuser import optimized_execution

from smp3d_export.errors import UsageError
from smp3d_export.runtime import pytorch


class Runner(pytorch.Runner):
    """A loaded `model.ts`."""

    def __init__(self, folder: Path, manifest: dict[str, Any], threads: int | None = None, device: str = "cpu") -> None:
        super().__init__(folder, manifest, threads, device)
        path = folder / "model.ts"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of its deprecation
                self.program = torch.jit.load(str(path), map_location=device)
        except RuntimeError as error:
            raise UsageError(f"TorchScript cannot load {str(path)!r}: {error}") from error

    def forward(self, image: Tensor) -> Any:
        # The profiling executor would compile anew for every shape, and twice.
        with torch.inference_mode(), optimized_execution(False):
            return self.program(image)

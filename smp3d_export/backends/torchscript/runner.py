"""Runs a TorchScript artifact in PyTorch, on the CPU or on an NVIDIA GPU."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.jit._fuser import optimized_execution

from smp3d_export.backends import pytorch
from smp3d_export.backends.runner import Artifact
from smp3d_export.errors import UsageError


class Runner(pytorch.Runner):
    """A loaded `model.ts`."""

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # TorchScript is deprecated
                self.program = torch.jit.load(str(artifact.file), map_location=artifact.device)
        except RuntimeError as error:
            raise UsageError(f"TorchScript cannot load {str(artifact.file)!r}: {error}") from error

    def forward(self, image: Tensor) -> Any:
        # The profiling executor would compile again for every shape, twice.
        with torch.inference_mode(), optimized_execution(False):
            return self.program(image)

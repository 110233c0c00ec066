"""Runs a package of AOTInductor in PyTorch, on the kind of device that it was compiled for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch._inductor import aoti_load_package

from smp3d_export.backends import inductor, pytorch
from smp3d_export.backends.runner import Artifact
from smp3d_export.errors import UsageError


class Runner(pytorch.Runner):
    """A loaded `model.pt2`."""

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact)
        inductor.check_processor(artifact.manifest.fact("compiled_for", Mapping))
        inductor.check_device(artifact.manifest.device, artifact.device)
        index = -1 if self.device.index is None else self.device.index
        try:
            self.program = aoti_load_package(str(artifact.file), device_index=index)
        except RuntimeError as error:
            raise UsageError(f"PyTorch cannot load {str(artifact.file)!r}: {error}") from error

    def forward(self, image: Tensor) -> Any:
        with torch.inference_mode():
            return self.program(image)

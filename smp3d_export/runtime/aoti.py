"""Runs a package of AOTInductor in PyTorch, on the kind of device that it was compiled for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._inductor import aoti_load_package

from smp3d_export import inductor
from smp3d_export.errors import UsageError
from smp3d_export.runtime import pytorch


class Runner(pytorch.Runner):
    """A loaded `model.pt2`."""

    def __init__(self, folder: Path, manifest: dict[str, Any], threads: int | None = None, device: str = "cpu") -> None:
        super().__init__(folder, manifest, threads, device)
        inductor.check_processor(manifest["compiled_for"])
        inductor.check_device(manifest["device"], device)
        path = folder / "model.pt2"
        index = -1 if self.device.index is None else self.device.index
        try:
            self.program = aoti_load_package(str(path), device_index=index)
        except RuntimeError as error:
            raise UsageError(f"PyTorch cannot load {str(path)!r}: {error}") from error

    def forward(self, image: Tensor) -> Any:
        with torch.inference_mode():
            return self.program(image)

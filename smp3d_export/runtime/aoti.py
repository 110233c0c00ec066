"""Runs a package of AOTInductor in PyTorch, on the kind of device that it was compiled for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._inductor import aoti_load_package

from smp3d_export import inductor, runtime
from smp3d_export.errors import UsageError
from smp3d_export.runtime.volumes import Volume


class Runner(runtime.Runner):
    """A loaded `model.pt2`."""

    def __init__(self, folder: Path, manifest: dict[str, Any], threads: int | None = None, device: str = "cpu") -> None:
        super().__init__(folder, manifest, threads, device)
        inductor.check_processor(manifest["compiled_for"])
        inductor.check_device(manifest["device"], device)
        if threads:
            torch.set_num_threads(threads)
        self.device = torch.device(device)
        self.names = [output["name"] for output in manifest["outputs"]]
        path = folder / "model.pt2"
        index = -1 if self.device.index is None else self.device.index
        try:
            self.program = aoti_load_package(str(path), device_index=index)
        except RuntimeError as error:
            raise UsageError(f"PyTorch cannot load {str(path)!r}: {error}") from error

    def run(self, image: Volume) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            outputs = self.program(torch.from_numpy(image).to(self.device))
        outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
        return {name: output.cpu().numpy() for name, output in zip(self.names, outputs, strict=True)}

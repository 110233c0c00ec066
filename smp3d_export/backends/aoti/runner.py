"""Runs a package of AOTInductor in PyTorch, on the kind of device that it was compiled for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._inductor import aoti_load_package

from smp3d_export.backends import inductor, pytorch
from smp3d_export.backends.first_run import check_first_run
from smp3d_export.backends.runner import Artifact
from smp3d_export.errors import UsageError

FIRST_RUN = "import sys; from smp3d_export.backends.aoti.runner import first_run; first_run(*sys.argv[1:])"


class Runner(pytorch.Runner):
    """A loaded `model.pt2`."""

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact)
        compiled_for = inductor.compiled_for(artifact.manifest)
        inductor.check_processor(compiled_for)
        inductor.check_device(artifact.manifest.device, artifact.device)
        if not inductor.at_home(compiled_for) and artifact.file.exists():
            check_first_run(FIRST_RUN, artifact.file, [artifact.device, *map(str, self.contract.min)])
        try:
            self.program = opened(artifact.file, self.device)
        except RuntimeError as error:
            raise UsageError(f"PyTorch cannot load {str(artifact.file)!r}: {error}") from error

    def forward(self, image: Tensor) -> Any:
        with torch.inference_mode():
            return self.program(image)


def opened(path: Path, device: torch.device) -> Any:
    """The program in a package."""
    return aoti_load_package(str(path), device_index=-1 if device.index is None else device.index)


def first_run(path: str, device: str, *shape: str) -> None:
    """Run a package on zeros of a shape, all given as text."""
    with torch.inference_mode():
        opened(Path(path), torch.device(device))(torch.zeros([int(size) for size in shape], device=device))

"""What PyTorch's runners have in common, on the CPU or on an NVIDIA GPU."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from smp3d_export.arrays import Outputs, Volume
from smp3d_export.backends import runner
from smp3d_export.backends.runner import Artifact
from smp3d_export.errors import UsageError
from smp3d_export.probe import made_elsewhere
from smp3d_export.program.probe import check


class Runner(runner.Runner):
    """An artifact that takes a tensor on its device and returns one, or several."""

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact)
        if artifact.threads:
            torch.set_num_threads(artifact.threads)
        self.device = torch.device(artifact.device)
        manifest = artifact.manifest
        if self.device.type != "cpu":
            without_tf32()
        elif manifest.device != "cpu" or made_elsewhere(manifest.made_on, manifest.versions, "torch"):
            check(manifest.fact("probe", Sequence, ()), manifest.precision)
        self.names = list(artifact.manifest.outputs)

    @abc.abstractmethod
    def forward(self, image: Tensor) -> Any:
        """Run on the device."""

    def _run(self, image: Volume) -> Outputs:
        outputs = self.forward(torch.from_numpy(image).to(self.device))
        outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
        if len(outputs) != len(self.names):
            raise UsageError(f"the artifact has {len(outputs)} outputs, and its manifest lists {self.names}")
        return {name: output.cpu().numpy() for name, output in zip(self.names, outputs, strict=True)}

    def _timed(self, image: Volume) -> float | None:
        if self.device.type == "cpu":
            return super()._timed(image)
        placed = torch.from_numpy(image).to(self.device)
        return seconds_on_gpu(lambda: self.forward(placed), self.device)


def without_tf32() -> None:
    """Turn TF32 off in this process, so that PyTorch does not round the inputs of fp32 products on a GPU."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def seconds_on_gpu(call: Callable[[], object], device: torch.device | str) -> float:
    """The seconds that a call took on a GPU, by CUDA events, without the copies to and from the GPU."""
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

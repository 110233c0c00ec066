"""Runs an ONNX artifact in ONNX Runtime, on the CPU or on an NVIDIA GPU."""

from __future__ import annotations

import time

import onnxruntime

from smp3d_export.arrays import Outputs, Volume
from smp3d_export.backends import runner
from smp3d_export.backends.onnx.exporter import NO_BF16
from smp3d_export.backends.runner import Artifact
from smp3d_export.device import gpu_number, kind
from smp3d_export.errors import TargetUnavailableError, UsageError
from smp3d_export.onnxgraph.session import outputs_of, session
from smp3d_export.precision import Precision


class Runner(runner.Runner):
    """A session over `model.onnx`."""

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact)
        if artifact.manifest.precision is Precision.BF16 and artifact.device == "cpu":
            raise TargetUnavailableError(NO_BF16)
        self.device = artifact.device
        try:
            self.session = session(artifact.file, artifact.threads, artifact.device)
        except TargetUnavailableError:
            raise
        except Exception as error:
            raise UsageError(f"ONNX Runtime cannot load {str(artifact.file)!r}: {error}") from error

    def _run(self, image: Volume) -> Outputs:
        return outputs_of(self.session, image)

    def _timed(self, image: Volume) -> float | None:
        if self.device == "cpu":
            return super()._timed(image)
        return seconds_on(self.device, self.session, image)


def seconds_on(device: str, session: onnxruntime.InferenceSession, image: Volume) -> float:
    """The seconds that a run took with image and outputs on a device, without the copies to and from it."""
    where, number = kind(device), gpu_number(device)
    binding = session.io_binding()
    placed = onnxruntime.OrtValue.ortvalue_from_numpy(image, where, number)
    binding.bind_ortvalue_input(session.get_inputs()[0].name, placed)
    for output in session.get_outputs():
        binding.bind_output(output.name, where, number)
    start = time.perf_counter()
    session.run_with_iobinding(binding)  # which waits for the device
    return time.perf_counter() - start

"""Runs an ONNX artifact in ONNX Runtime, on the CPU or on an NVIDIA GPU."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from smp3d_export import runtime
from smp3d_export.errors import TargetUnavailableError, UsageError
from smp3d_export.hardware import gpu_number
from smp3d_export.runtime.volumes import Volume

CUDA = "CUDAExecutionProvider"


class Runner(runtime.Runner):
    """A session over `model.onnx`."""

    def __init__(self, folder: Path, manifest: dict[str, Any], threads: int | None = None, device: str = "cpu") -> None:
        super().__init__(folder, manifest, threads, device)
        path = folder / "model.onnx"
        if manifest.get("precision") == "bf16" and device == "cpu":
            raise TargetUnavailableError("ONNX Runtime has no bfloat16 operators for a CPU")
        self.device = device
        try:
            self.session = session(path, threads, device)
        except TargetUnavailableError:
            raise
        except Exception as error:
            raise UsageError(f"ONNX Runtime cannot load {str(path)!r}: {error}") from error

    def run(self, image: Volume) -> dict[str, np.ndarray]:
        return outputs_of(self.session, image)

    def seconds(self, image: Volume) -> float | None:
        if self.device == "cpu":
            return super().seconds(image)
        self.contract.check(image.shape)
        return seconds_on(self.device, self.session, image)


def session(model: Path | bytes, threads: int | None, device: str = "cpu") -> onnxruntime.InferenceSession:
    """A session over a file or a serialised graph.

    Raises:
        TargetUnavailableError: this ONNX Runtime cannot use the device.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    providers: list[Any] = ["CPUExecutionProvider"]
    if device != "cpu":
        if CUDA not in onnxruntime.get_available_providers():
            raise TargetUnavailableError(
                f"ONNX Runtime cannot use {device}: pip install onnxruntime-gpu in place of onnxruntime"
            )
        # TF32 rounds fp32 products to 10 bits.
        providers.insert(0, (CUDA, {"device_id": gpu_number(device), "use_tf32": "0"}))
    return onnxruntime.InferenceSession(model, options, providers=providers)


def seconds_on(device: str, session: onnxruntime.InferenceSession, image: Volume) -> float:
    """What a run took with its image and outputs on a device: without the copies to and from it."""
    kind, number = device.partition(":")[0], gpu_number(device)
    binding = session.io_binding()
    placed = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(image), kind, number)
    binding.bind_ortvalue_input(session.get_inputs()[0].name, placed)
    for output in session.get_outputs():
        binding.bind_output(output.name, kind, number)
    start = time.perf_counter()
    session.run_with_iobinding(binding)  # which waits for the device
    return time.perf_counter() - start


def outputs_of(session: onnxruntime.InferenceSession, image: Volume) -> dict[str, np.ndarray]:
    names = [output.name for output in session.get_outputs()]
    values = session.run(names, {session.get_inputs()[0].name: image})
    return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}

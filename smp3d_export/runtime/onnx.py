"""Runs an ONNX artifact in ONNX Runtime, on the CPU or on an NVIDIA GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from smp3d_export import runtime
from smp3d_export.errors import TargetUnavailableError, UsageError
from smp3d_export.runtime.volumes import Volume

CUDA = "CUDAExecutionProvider"


class Runner(runtime.Runner):
    """A session over `model.onnx`."""

    def __init__(self, folder: Path, manifest: dict[str, Any], threads: int | None = None, device: str = "cpu") -> None:
        super().__init__(folder, manifest, threads, device)
        path = folder / "model.onnx"
        if manifest.get("precision") == "bf16" and device == "cpu":
            raise TargetUnavailableError("ONNX Runtime has no bfloat16 operators for a CPU")
        try:
            self.session = session(path, threads, device)
        except TargetUnavailableError:
            raise
        except Exception as error:
            raise UsageError(f"ONNX Runtime cannot load {str(path)!r}: {error}") from error

    def run(self, image: Volume) -> dict[str, np.ndarray]:
        return outputs_of(self.session, image)


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
        providers.insert(0, (CUDA, {"device_id": int(device.partition(":")[2] or 0), "use_tf32": "0"}))
    return onnxruntime.InferenceSession(model, options, providers=providers)


def outputs_of(session: onnxruntime.InferenceSession, image: Volume) -> dict[str, np.ndarray]:
    names = [output.name for output in session.get_outputs()]
    values = session.run(names, {session.get_inputs()[0].name: image})
    return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}

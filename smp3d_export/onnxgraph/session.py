"""ONNX Runtime sessions, on the CPU or on an NVIDIA GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from smp3d_export.arrays import Outputs, Volume
from smp3d_export.device import gpu_number
from smp3d_export.errors import TargetUnavailableError
from smp3d_export.onnxgraph.graph import in_files, too_large

if TYPE_CHECKING:
    import onnx

CUDA = "CUDAExecutionProvider"


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


def session_of(model: onnx.ModelProto, threads: int | None) -> onnxruntime.InferenceSession:
    """A session on the CPU over a graph in memory. A graph over 2 GB is passed in files."""
    if not too_large(model):
        return session(model.SerializeToString(), threads)
    with in_files(model) as file:
        return session(file, threads)


def outputs_of(session: onnxruntime.InferenceSession, image: Volume) -> Outputs:
    """Run a session with one input: (N, C, H, W, D) to the outputs by name."""
    names = [output.name for output in session.get_outputs()]
    values = session.run(names, {session.get_inputs()[0].name: image})
    return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}

"""Runs an ONNX artifact in ONNX Runtime, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from smp3d_export import runtime
from smp3d_export.errors import UsageError
from smp3d_export.runtime.volumes import Volume


class Runner(runtime.Runner):
    """A session over `model.onnx`."""

    def __init__(self, folder: Path, manifest: dict[str, Any], threads: int | None = None) -> None:
        super().__init__(folder, manifest, threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        path = folder / "model.onnx"
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise UsageError(f"ONNX Runtime cannot load {str(path)!r}: {error}") from error
        self.input = self.session.get_inputs()[0].name
        self.outputs = [output.name for output in self.session.get_outputs()]

    def run(self, image: Volume) -> dict[str, np.ndarray]:
        values = self.session.run(self.outputs, {self.input: image})
        return {name: np.asarray(value) for name, value in zip(self.outputs, values, strict=True)}

"""Runs an OpenVINO artifact, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino

from smp3d_export import runtime
from smp3d_export.errors import UsageError
from smp3d_export.runtime.volumes import Volume

# Said in every case: on processors that have bfloat16, OpenVINO computes in it unless it is told otherwise.
PRECISION_HINTS = {"fp32": "f32"}


class Runner(runtime.Runner):
    """A compiled `model.xml`."""

    def __init__(self, folder: Path, manifest: dict[str, Any], threads: int | None = None, device: str = "cpu") -> None:
        super().__init__(folder, manifest, threads, device)
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": PRECISION_HINTS[manifest["precision"]],
        }
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        path = folder / "model.xml"
        try:
            self.model = openvino.Core().compile_model(path, "CPU", settings)
        except RuntimeError as error:
            raise UsageError(f"OpenVINO cannot load {str(path)!r}: {error}") from error
        self.request = self.model.create_infer_request()
        self.outputs = {output.any_name: number for number, output in enumerate(self.model.outputs)}

    def run(self, image: Volume) -> dict[str, np.ndarray]:
        self.request.infer([image], share_inputs=True)
        return {name: np.array(self.request.get_output_tensor(number).data) for name, number in self.outputs.items()}

"""Runs an OpenVINO artifact, on the CPU, in the arithmetic that its manifest names.

That is said to OpenVINO in every case, and read back, for it has its own mind and does not tell. Left to itself it may
compute in bfloat16; asked for f16 on a processor without, it takes bfloat16; asked for bfloat16 on one that has AVX-512
but not its bfloat16 instructions, it emulates them at a third of the speed of fp32; on older ones it computes in fp32.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from smp3d_export.arrays import Outputs, Volume
from smp3d_export.backends import runner
from smp3d_export.backends.openvino.probe import dequantise, is_quantised, save_in_f32, wrong
from smp3d_export.backends.runner import Artifact
from smp3d_export.contract import ShapeContract
from smp3d_export.errors import TargetUnavailableError, UsageError
from smp3d_export.probe import made_elsewhere

HINT = "INFERENCE_PRECISION_HINT"
# What the plugin calls the instructions of a type, among what it says the processor can do.
CAPABILITIES = {"f16": "FP16", "bf16": "BF16"}
# What a precision is computed in, given the instructions for it.
PREFERRED = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}


def arithmetic(precision: str, preferred: str | None = None) -> str:
    """What this machine computes a precision in: f32, f16 or bf16; `preferred`, if it can.

    Of int8 it is what is not quantised that is computed in it: f32, for bf16 is no faster there. Half precision without
    instructions for it are weights of half precision, computed in f32.

    Raises:
        TargetUnavailableError: it is bf16, and the processor has no instructions for that.
        UsageError: there is no such arithmetic.
    """
    preferred = preferred or PREFERRED[precision]
    if preferred not in PREFERRED.values():
        raise UsageError(f"the manifest is damaged: 'arithmetic' is {preferred!r}. Export the artifact again")
    if preferred == "f32" or CAPABILITIES[preferred] in capabilities():
        return preferred
    if precision == "bf16":
        raise TargetUnavailableError(
            "this processor has no bfloat16 instructions (avx512_bf16, amx_bf16), so OpenVINO would emulate them, "
            "slower than fp32, or compute in fp32"
        )
    return "f32"


def capabilities() -> list[str]:
    """What the processor has instructions for, in OpenVINO's words."""
    return openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class Runner(runner.Runner):
    """A compiled `model.xml`. `arithmetic` is what it is computed in here: f32, f16 or bf16."""

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact)
        wanted = arithmetic(artifact.manifest.precision, artifact.manifest.fact("arithmetic", str, None))
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", HINT: wanted}
        if artifact.threads:
            settings["INFERENCE_NUM_THREADS"] = artifact.threads
        core, manifest = openvino.Core(), artifact.manifest
        try:
            model = core.read_model(artifact.file)
            if made_elsewhere(manifest.made_on, manifest.versions, "openvino"):
                model = right_here(core, model, self.contract, manifest.precision, wanted)
            self.model = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise UsageError(f"OpenVINO cannot load {str(artifact.file)!r}: {error}") from error
        self.arithmetic: str = self.model.get_property(HINT).get_type_name()
        if self.arithmetic != wanted:
            raise TargetUnavailableError(f"OpenVINO computes in {self.arithmetic} here, though {wanted} was asked for")
        self.request = self.model.create_infer_request()
        # OpenVINO may add names of operators that it merged into an output.
        found = [output.names & {*artifact.manifest.outputs} for output in self.model.outputs]
        if not all(found) or len(found) != len(artifact.manifest.outputs):
            names = [", ".join(sorted(output.names)) for output in self.model.outputs]
            raise UsageError(f"{str(artifact.file)!r} has the outputs {names}, which its manifest does not say")
        self.outputs = {names.pop(): number for number, names in enumerate(found)}

    def _run(self, image: Volume) -> Outputs:
        self.request.infer([image], share_inputs=True)
        return {name: np.array(self.request.get_output_tensor(number).data) for name, number in self.outputs.items()}


def right_here(
    core: openvino.Core, model: openvino.Model, contract: ShapeContract, precision: str, arithmetic: str
) -> openvino.Model:
    """A model that was made on another processor, with what this one computes wrongly kept in f32."""
    if precision == "int8":
        dequantise(model, wrong(model, contract, "i8", only=is_quantised))
        return model
    faults = wrong(model, contract, arithmetic)
    if not faults:
        return model
    with tempfile.TemporaryDirectory(prefix="smp3d-export-", ignore_cleanup_errors=True) as folder:
        changed = Path(folder) / "model.xml"
        save_in_f32(model, faults, changed)
        return core.read_model(changed)

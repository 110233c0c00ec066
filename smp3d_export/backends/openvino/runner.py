"""Runs an OpenVINO artifact on the CPU, in the arithmetic that its manifest names.

The arithmetic is always set and read back, because OpenVINO may silently choose another. By default it may compute in
bfloat16. If f16 is requested on a processor without it, OpenVINO uses bfloat16. If bfloat16 is requested on a processor
that has AVX-512 but no bfloat16 instructions, it emulates them at a third of the speed of fp32. On older processors it
computes in fp32.
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
from smp3d_export.errors import RunError, TargetUnavailableError, UsageError
from smp3d_export.probe import made_elsewhere

HINT = "INFERENCE_PRECISION_HINT"
# The plugin's names for the instructions of a type, among the capabilities of the processor.
CAPABILITIES = {"f16": "FP16", "bf16": "BF16"}
# The arithmetic of a precision on a processor that has instructions for it.
PREFERRED = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}


def arithmetic(precision: str, preferred: str | None = None) -> str:
    """The arithmetic of a precision on this machine: f32, f16 or bf16; `preferred`, if the processor has it.

    In int8 it applies to what is not quantised: f32, because bf16 is no faster there. Without instructions for half
    precision, half-precision weights are computed in f32.

    Raises:
        TargetUnavailableError: it is bf16, and the processor has no bf16 instructions.
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
    """The types that the processor has instructions for, by OpenVINO's names."""
    return openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class Runner(runner.Runner):
    """A compiled `model.xml`. `arithmetic` is what this machine computes it in: f32, f16 or bf16."""

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
            raise TargetUnavailableError(
                f"OpenVINO computes in {self.arithmetic} on this machine, although {wanted} was requested"
            )
        self.request = self.model.create_infer_request()
        # OpenVINO may add the names of operators that it merged into an output.
        found = [output.names & {*artifact.manifest.outputs} for output in self.model.outputs]
        if not all(found) or len(found) != len(artifact.manifest.outputs):
            names = [", ".join(sorted(output.names)) for output in self.model.outputs]
            raise UsageError(f"{str(artifact.file)!r} has the outputs {names}, but its manifest lists others")
        self.outputs = {names.pop(): number for number, names in enumerate(found)}

    def _run(self, image: Volume) -> Outputs:
        self.request.infer([image], share_inputs=True)
        outputs = {name: np.array(self.request.get_output_tensor(number).data) for name, number in self.outputs.items()}
        for name, output in outputs.items():
            if not output.size:  # OpenVINO 2026.4 loses the error if a single thread infers the shapes
                raise RunError(f"OpenVINO returned an empty {name!r} without an error; with two threads it says more")
        return outputs


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

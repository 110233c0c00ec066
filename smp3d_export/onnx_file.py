"""An ONNX file as the start of an export: its graph, its contract, and what it says of itself. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smp3d_export.contract import AXES, INPUT, ShapeContract
from smp3d_export.errors import UsageError
from smp3d_export.onnx_graph import too_large
from smp3d_export.targets import Precision

if TYPE_CHECKING:
    import onnx

PREFIX = "smp3d-export."
FLOAT = 1  # onnx.TensorProto.FLOAT


@dataclass(frozen=True, eq=False)
class OnnxFile:
    """A graph with one input `image` (N, C, H, W, D) in float32.

    `outputs` are the names of what it returns and their numbers of axes. `description` is the part of a manifest that
    an ONNX file of ours carries; empty for another's.
    """

    path: Path
    model: onnx.ModelProto
    contract: ShapeContract
    outputs: Mapping[str, int]
    precision: Precision
    description: Mapping[str, Any] = field(default_factory=dict)

    def graph(self, precision: Precision) -> onnx.ModelProto:
        """The graph, which is in one precision and in no other.

        Raises:
            UsageError: another one is asked for.
        """
        if precision != self.precision:
            raise UsageError(
                f"{str(self.path)!r} is in {self.precision}, and is not converted to {precision} here: export "
                f"it anew by smp3d-export ARCH ENCODER --to onnx --precision {precision}"
            )
        return self.model


def read(path: Path) -> OnnxFile:
    """Read an ONNX file of ours, or another with the same interface as far as it can be told.

    Raises:
        UsageError: there is no such file, it is no valid ONNX, or its input is no volume.
    """
    import onnx

    if not path.is_file():
        raise UsageError(f"there is no file {str(path)!r}")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(path if too_large(model) else model)
    except Exception as error:  # protobuf, the checker and a missing data file each have their own
        raise UsageError(f"{str(path)!r} is no ONNX file that can be read: {error}") from error
    description = {}
    for entry in model.metadata_props:
        if entry.key.startswith(PREFIX):
            description[entry.key.removeprefix(PREFIX)] = json.loads(entry.value)
    if "contract" not in description:
        raise UsageError(
            f"{str(path)!r} was not exported by smp3d-export: it carries no shape contract, so nothing can be "
            "proved of it. Export the network by smp3d-export ARCH ENCODER --checkpoint FILE --to onnx"
        )
    (value,) = model.graph.input
    axes = len(value.type.tensor_type.shape.dim)
    if (value.name, axes, value.type.tensor_type.elem_type) != (INPUT, len(AXES), FLOAT):
        raise UsageError(f"{str(path)!r} has the input {value.name} of {axes} axes; it must be {INPUT} in float32")
    return OnnxFile(
        path,
        model,
        ShapeContract.from_dict(description["contract"]),
        {output.name: len(output.type.tensor_type.shape.dim) for output in model.graph.output},
        Precision(description.get("precision", Precision.FP32)),
        description,
    )

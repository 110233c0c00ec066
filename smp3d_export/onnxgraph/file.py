"""An ONNX file that an export wrote: its graph, its contract and its description. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smp3d_export.artifact.manifest import PREFIX, Manifest
from smp3d_export.contract import AXES, INPUT, ShapeContract
from smp3d_export.errors import UsageError
from smp3d_export.onnxgraph.graph import copied, too_large
from smp3d_export.onnxgraph.opset import lower_opset, opset_of
from smp3d_export.precision import Precision

if TYPE_CHECKING:
    import onnx

FLOAT = 1  # onnx.TensorProto.FLOAT


@dataclass(frozen=True, eq=False)
class OnnxFile:
    """A graph with one input `image` (N, C, H, W, D) in float32, and the part of a manifest that it carries.

    `data` are the files beside it that hold the weights of a network over 2 GB.
    """

    path: Path
    model: onnx.ModelProto
    manifest: Manifest
    data: tuple[Path, ...] = ()

    @property
    def contract(self) -> ShapeContract:
        return self.manifest.contract

    @property
    def outputs(self) -> Mapping[str, int]:
        """The names of the outputs and their numbers of axes."""
        return {output.name: len(output.type.tensor_type.shape.dim) for output in self.model.graph.output}

    @property
    def precision(self) -> Precision:
        return self.manifest.precision

    @property
    def opset(self) -> int:
        return opset_of(self.model)

    def check_opset(self, opset: int) -> None:
        """Refuse an operator set that is newer than the file's.

        Raises:
            UsageError: it is newer.
        """
        if opset > self.opset:
            raise UsageError(
                f"{str(self.path)!r} has opset {self.opset}, which cannot be raised: leave out --opset, or "
                f"export the network again with --opset {opset}"
            )

    def graph(self, precision: Precision, opset: int) -> onnx.ModelProto:
        """The graph, which is in one precision only, in its operator set or an older one.

        Raises:
            UsageError: another precision, or a newer operator set, is requested.
            ExportError: an operator of the graph does not exist in the older operator set.
        """
        self.check_opset(opset)
        if precision != self.precision:
            raise UsageError(
                f"{str(self.path)!r} is in {self.precision} and cannot be converted to {precision}: export it again "
                f"with smp3d-export ARCH ENCODER --to onnx --precision {precision}"
            )
        if opset == self.opset:
            return self.model
        lowered = copied(self.model)
        lower_opset(lowered, opset)
        return lowered


def read(path: Path) -> OnnxFile:
    """Read an ONNX file that an export wrote.

    Raises:
        UsageError: there is no such file, it is not valid ONNX, or smp3d-export did not write it.
    """
    import onnx

    if not path.is_file():
        raise UsageError(f"there is no file {str(path)!r}")
    try:
        model = onnx.load(path, load_external_data=False)
        entries = (entry for tensor in model.graph.initializer for entry in tensor.external_data)
        data = tuple(path.parent / name for name in sorted({e.value for e in entries if e.key == "location"}))
        onnx.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(path if too_large(model) else model)
    except Exception as error:  # protobuf, the checker and a missing data file raise different errors
        raise UsageError(f"{str(path)!r} cannot be read as an ONNX file: {error}") from error
    description = {}
    for entry in model.metadata_props:
        if entry.key.startswith(PREFIX):
            description[entry.key.removeprefix(PREFIX)] = json.loads(entry.value)
    if "contract" not in description:
        raise UsageError(
            f"{str(path)!r} was not exported by smp3d-export: it carries no shape contract, so nothing can be "
            "proved about it. Export the network with smp3d-export ARCH ENCODER --checkpoint FILE --to onnx"
        )
    manifest = Manifest.from_dict(description, repr(str(path)))
    (value,) = model.graph.input
    axes = len(value.type.tensor_type.shape.dim)
    if (value.name, axes, value.type.tensor_type.elem_type) != (INPUT, len(AXES), FLOAT):
        raise UsageError(f"{str(path)!r} has the input {value.name} with {axes} axes; it must be {INPUT} in float32")
    return OnnxFile(path, model, manifest, data)

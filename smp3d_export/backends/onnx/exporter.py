"""Captured program -> `model.onnx`, with its weights beside it if they are over 2 GB."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smp3d_export.artifact.manifest import PREFIX
from smp3d_export.backends import exporter
from smp3d_export.backends.exporter import Exported, Support
from smp3d_export.device import CPU, kind
from smp3d_export.onnxgraph.graph import copied, save
from smp3d_export.onnxgraph.opset import check_opset
from smp3d_export.precision import Precision
from smp3d_export.progress import megabytes
from smp3d_export.settings import Settings

if TYPE_CHECKING:
    import onnx

    from smp3d_export.backends.variant import Variant

OLDEST_FOR_PLANES = 15
"""The rewrite by planes needs `Shape` with a start and an end, which older operator sets lack."""


NO_BF16 = "ONNX Runtime has no bfloat16 operators for a CPU"


class Exporter(exporter.Exporter):
    """Writes `model.onnx`."""

    def run_support(self, precision: Precision, device: str) -> Support:
        if precision is Precision.BF16 and kind(device) == CPU:
            return Support.no(NO_BF16)
        return Support.yes()

    def check(self, settings: Settings) -> None:
        check_opset(settings.opset)

    def export(self, variant: Variant, settings: Settings, folder: Path) -> Exported:
        from smp3d_export.onnxgraph import int8

        model, planes = variant.graph(settings), {}
        if variant.for_cpu and settings.precision is Precision.FP32 and settings.opset >= OLDEST_FOR_PLANES:
            model, planes = rewritten_by_planes(model, variant)
        quantisation = int8.facts_of(model, settings)
        embedded = {f"{PREFIX}{key}": json.dumps(value) for key, value in {**quantisation, **planes}.items()}
        file = folder / self.row.files[0]
        save(model, file, {**settings.metadata, **embedded})
        size = sum(path.stat().st_size for path in folder.glob(f"{file.name}*"))
        nodes = len(model.graph.node)
        summary = f"opset {settings.opset}, {nodes} nodes, {megabytes(size)}"
        facts: dict[str, Any] = {
            "opset": settings.opset,
            "nodes": nodes,
            **variant.kept_fp32(settings),
            **quantisation,
            **planes,
        }
        return Exported(summary, facts, model)


def rewritten_by_planes(model: onnx.ModelProto, variant: Variant) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The graph rewritten for ONNX Runtime only, and facts for the manifest. Other targets get the original."""
    from smp3d_export.onnxgraph.planes import by_planes

    own = copied(model)
    if not (times := by_planes(own)):
        return model, {}
    return own, {"optimisations": {**(variant.rewrites or {}), "planes": times}}

"""Artifacts made and loaded below the command line: exporters and runners by target, manifests by contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smp3d_export import backends
from smp3d_export.artifact.manifest import Manifest, Model
from smp3d_export.backends.exporter import Exported
from smp3d_export.backends.runner import Artifact, Runner
from smp3d_export.backends.variant import Variant
from smp3d_export.contract import ShapeContract
from smp3d_export.settings import Settings

MODEL = Model(architecture="Unet", encoder="resnet18", arguments={}, parameters=0, weights="none", sha256="")


def export(target: str, source: Any, folder: Path, settings: Settings | None = None) -> Exported:
    """Make a target's files from a captured program or an ONNX file."""
    return backends.find(target).exporter().export(Variant("on", source), settings or Settings(), folder)


def manifest(target: str, contract: ShapeContract, *outputs: str, **more: Any) -> Manifest:
    """As much of a manifest as a runner needs."""
    return Manifest(
        model=MODEL, contract=contract, outputs=dict.fromkeys(outputs or ("masks",), 5), target=target, **more
    )


def load(folder: Path, description: Manifest, device: str = "cpu") -> Runner:
    """The runner of a folder with a manifest that is not in it."""
    row = backends.find(description.target)
    return row.runner()(Artifact(row, folder, description, device=device))

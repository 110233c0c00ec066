"""What the manifest of an artifact says of the network, the export and the machine."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from smp3d_export import hardware
from smp3d_export.capture import Captured
from smp3d_export.contract import AXES, INPUT, OUTPUT_AXES
from smp3d_export.network import Network
from smp3d_export.request import Request
from smp3d_export.validators.parity import Parity
from smp3d_export.validators.throughput import Throughput


def describe(network: Network, captured: Captured, request: Request, target: str, precision: str) -> dict[str, Any]:
    """What is known before the verdict; it is what travels inside an ONNX file too."""
    return {
        "target": target,
        "precision": precision,
        "model": {
            "architecture": network.architecture,
            "encoder": network.encoder,
            "arguments": {name: plain(value) for name, value in network.arguments.items()},
            "parameters": network.parameters,
            "weights": {"source": network.weights, "sha256": network.sha256},
            "notes": list(network.notes),
        },
        "contract": captured.contract.to_dict(),
        "inputs": [{"name": INPUT, "axes": list(AXES), "type": "float32"}],
        "outputs": [{"name": name, "axes": list(OUTPUT_AXES[rank])} for name, rank in captured.outputs.items()],
        "sample_normalisation": None if request.normalisation is None else str(request.normalisation),
        "optimisations": dict(captured.rewrites),
        "versions": hardware.versions(),
    }


def complete(
    description: dict[str, Any], files: dict[str, Any], parity: Parity, throughput: Throughput | None
) -> dict[str, Any]:
    """The whole manifest."""
    return {
        **description,
        "hardware": hardware.describe(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": files,
        "parity": parity.to_dict(),
        "throughput": throughput.to_dict() if throughput else "not run",
    }


def plain(value: Any) -> Any:
    """An argument as JSON has it; of a callable, its name."""
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return getattr(value, "__qualname__", str(value)) if callable(value) else value

"""What the manifest of an artifact says of the network, the export and the machine. Imports no torch."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from smp3d_export import hardware
from smp3d_export.artifact import sha256
from smp3d_export.contract import AXES, INPUT, OUTPUT_AXES
from smp3d_export.request import Request
from smp3d_export.validators.parity import Parity
from smp3d_export.validators.throughput import Throughput

if TYPE_CHECKING:
    from smp3d_export.capture import Captured
    from smp3d_export.network import Network
    from smp3d_export.onnx_file import OnnxFile


def describe(network: Network, captured: Captured, request: Request, gflop: float) -> dict[str, Any]:
    """What is known of a network before any target; it travels inside an ONNX file too.

    `gflop` is the work of the network as it was captured, at the optimum shape.
    """
    return {
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
        "gflop": round(gflop, 3),
        "label_threshold": network.label_threshold,
        "device": request.device,
        "versions": hardware.versions(),
    }


def describe_file(file: OnnxFile, request: Request) -> dict[str, Any]:
    """What is known of an ONNX file: what it says of itself, and its hash."""
    source = {"file": file.path.name, "sha256": sha256(file.path)}
    return {**file.description, "source": source, "device": request.device, "versions": hardware.versions()}


def complete(
    description: dict[str, Any],
    files: dict[str, Any],
    parity: Parity,
    throughput: Throughput | None,
    not_run: str | None,
) -> dict[str, Any]:
    """The whole manifest; `not_run` is why the artifact could not be run here."""
    return {
        **description,
        "hardware": hardware.describe(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": files,
        "run": "here" if not_run is None else f"not run: {not_run}",
        "parity": parity.to_dict(),
        "throughput": throughput.to_dict() if throughput else "not run",
    }


def plain(value: Any) -> Any:
    """An argument as JSON has it; of a callable, its name."""
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return getattr(value, "__qualname__", str(value)) if callable(value) else value

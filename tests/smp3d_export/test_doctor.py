"""`doctor`: what can be exported on this machine and what can be run, and advice that helps on it."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import pytest

from smp3d_export import backends, hardware
from smp3d_export.cli import doctor
from smp3d_export.precision import Precision

ENGINES = [row.name for row in backends.ROWS if row.gpu]


def machine(monkeypatch: pytest.MonkeyPatch, *capabilities: str, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """What is found on a machine with GPUs of these compute capabilities, some packages not installed."""
    gpus = [{"name": "a GPU", "compute_capability": capability, "memory": 10**10} for capability in capabilities]
    monkeypatch.setattr(hardware, "gpus", lambda: gpus)
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name in without else find_spec(name))
    versions = {name: version for name, version in hardware.versions().items() if name not in without}
    monkeypatch.setattr(hardware, "versions", lambda: versions)
    return doctor.examine()["targets"]


def test_every_cell_says_both_and_has_a_reason_for_a_no(cli) -> None:
    targets = json.loads(cli("doctor", "--json").stdout)["targets"]
    assert list(targets) == backends.names()
    for row in targets.values():
        assert list(row) == list(Precision)
        for cell in row.values():
            assert set(cell) == {"ready", "reason", "fix", "never", "run"}
            assert set(cell["run"]) == {"ready", "reason", "fix", "never"}
            assert all(found["ready"] or found["reason"] for found in (cell, cell["run"]))
            assert cell["never"] == cell["run"]["never"]


def test_bf16_onnx_is_exported_on_a_cpu_and_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = machine(monkeypatch)["onnx"]["bf16"]
    assert cell["ready"]
    assert cell["run"]["reason"] == "ONNX Runtime has no bfloat16 operators for a CPU"


def test_without_torch_artifacts_run(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = machine(monkeypatch, without=("torch",))
    assert targets["onnx"]["fp32"]["run"]["ready"]
    assert targets["openvino"]["fp32"]["run"]["ready"]
    for name in ("torchscript", "aoti", "compile"):
        for found in (targets[name]["fp32"], targets[name]["fp32"]["run"]):
            assert (found["ready"], found["reason"]) == (False, "PyTorch is not installed")
            assert found["fix"] == "pip install torch"


def test_without_a_gpu_nothing_is_to_be_installed_that_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = machine(monkeypatch, without=("tensorrt",))
    trt, rtx = targets["trt"]["fp16"], targets["trt-rtx"]["fp16"]
    for found in (trt, trt["run"], rtx["run"]):
        assert not found["ready"]
        assert "NVIDIA GPU" in found["reason"]
        assert "install" not in found["fix"]
    assert "--to trt-rtx" in trt["fix"]
    assert rtx["ready"] or "install" in rtx["fix"]
    assert "NVIDIA GPU" in targets["aoti"]["fp16"]["run"]["reason"]


def test_with_a_gpu_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = machine(monkeypatch, "8.6", without=tuple(backends.find(name).library for name in ENGINES))
    for name in ENGINES:
        for found in (targets[name]["fp32"], targets[name]["fp32"]["run"]):
            assert not found["ready"]
            assert found["fix"] == f"pip install 'smp3d-export[{name}]'"


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
@pytest.mark.parametrize(("capability", "runs"), [("8.6", True), ("9.0", False)])
def test_an_engine_runs_on_the_gpus_that_its_builder_knows(
    capability: str, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = machine(monkeypatch, capability)["trt-rtx"]["fp32"]["run"]
    assert found["ready"] == runs
    assert runs or "9.0" in found["reason"]


def test_what_people_see(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, without=("torch", "tensorrt"))
    result = cli("doctor")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    (onnx,) = (line.split() for line in lines if line.startswith("onnx "))
    assert onnx == ["onnx", "✓", "✓", "–", "✓", "✓", "✓", "✗", "✓", "✓"]
    assert "smp3d-export from FILE.onnx" in " ".join(result.stdout.split())
    assert "TensorRT is not installed" not in result.stdout
    notes = [" ".join(note.split()) for note in result.stdout.split("✗ ")]
    assert (
        "aoti, compile, torchscript cannot be exported or run here: PyTorch is not installed: pip install torch"
        in notes
    )
    assert "onnx in bf16 cannot be run here: ONNX Runtime has no bfloat16 operators for a CPU" in notes

"""Artifacts of an earlier version still verify, run, and become artifacts for other targets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from earlier import EARLIER

from smp3d_export import runtime
from smp3d_export.arrays import volume

pytest.importorskip("openvino")
TARGETS = ("onnx", "openvino", "torchscript")


def test_they_are_proved(cli) -> None:
    result = cli("verify", EARLIER, "--json")
    assert result.exit_code == 0, result.output
    verdicts = json.loads(result.stdout)["verdicts"]
    assert [verdict["target"] for verdict in verdicts] == [*TARGETS]
    assert all(verdict["parity"]["passed"] for verdict in verdicts)


def test_they_run_at_any_shape_of_their_contract() -> None:
    runners = [runtime.load(EARLIER / target) for target in TARGETS]
    for shape in ((1, 1, 20, 12, 8), (2, 1, 4, 24, 16)):
        image = volume(shape, seed=1)
        first, *others = (runner(image)["masks"] for runner in runners)
        assert first.shape == (shape[0], 3, *shape[2:])
        assert all(np.abs(other - first).max() <= 1e-5 * np.ptp(first) for other in others)


def test_the_onnx_file_becomes_an_openvino_artifact(cli) -> None:
    result = cli("from", EARLIER / "onnx" / "model.onnx", "--to", "openvino", "--no-bench", "-o", "net")
    assert result.exit_code == 0, result.output
    manifest = json.loads(Path("net/manifest.json").read_text())
    before = json.loads((EARLIER / "onnx" / "manifest.json").read_text())
    assert manifest["model"] == before["model"]
    assert manifest["contract"] == before["contract"]
    assert manifest["parity"]["passed"]


def test_one_more_target_goes_beside_those_that_are_there(cli) -> None:
    for target in ("onnx", "torchscript"):
        shutil.copytree(EARLIER / target, f"net/{target}")
    source = ("from", "net/onnx/model.onnx", "--no-bench", "-o", "net")
    assert cli(*source, "--to", "openvino").exit_code == 0
    assert sorted(path.name for path in Path("net").iterdir()) == ["onnx", "openvino", "torchscript"]
    result = cli(*source, "--to", "onnx,openvino")
    assert result.exit_code == 2
    assert "holds 'model.onnx' itself" in result.stderr

"""Targets that run in PyTorch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small import SMALL

from smp3d_export import runtime
from smp3d_export.errors import ShapeError


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_torchscript_is_dynamic_and_agrees(cli, precision: str) -> None:
    result = cli(*SMALL, "--to", "torchscript", "--precision", precision, "--aux-params", "classes=2", "--no-bench")
    assert result.exit_code == 0, result.output
    manifest = json.loads(Path("unet-resnet18/manifest.json").read_text())
    assert {case["output"] for case in manifest["parity"]["cases"]} == {"masks", "labels"}
    assert manifest["parity"]["relative"] < {"fp32": 1e-5, "bf16": 3e-2}[precision]
    run = runtime.load("unet-resnet18")
    assert run(np.zeros((2, 1, 8, 40, 32), np.float32))["masks"].shape == (2, 1, 8, 40, 32)
    with pytest.raises(ShapeError, match="W is 44, outside the contract"):
        run(np.zeros((1, 1, 8, 44, 32), np.float32))


def test_torchscript_carries_its_description_and_runs_without_this_package(cli) -> None:
    assert cli(*SMALL, "--to", "torchscript", "--no-bench", "-o", "net").exit_code == 0
    extra = {"smp3d-export.contract": ""}
    program = torch.jit.load("net/model.ts", _extra_files=extra)
    assert json.loads(extra["smp3d-export.contract"])[2]["name"] == "H"
    golden = dict(np.load("net/golden.npz"))
    found = program(torch.from_numpy(golden["image"]))
    assert found.is_contiguous()
    assert np.abs(found.numpy() - golden["masks"]).max() < 1e-5 * np.ptp(golden["masks"]) + 1e-6


def test_torchscript_has_no_int8(cli) -> None:
    np.save("scan.npy", np.zeros((32, 32, 32), np.float32))
    result = cli(*SMALL, "--to", "torchscript", "--precision", "int8", "--calibration", ".")
    assert result.exit_code == 3
    assert "torchscript has no int8: give --precision fp32, fp16, bf16" in result.stderr

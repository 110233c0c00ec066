"""Verdicts in half precision: every case rounded as the target rounds, whatever the other targets are."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_encoder
from tiny_encoder import TINY
from typer.testing import Result

from smp3d_export import backends, hardware
from smp3d_export.onnxgraph import emulation
from smp3d_export.program import lowering

Cli = Callable[..., Result]
FP16 = ("--precision", "fp16", "--no-bench")


@pytest.fixture
def fp16(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Exports the tiny network in fp16 at one shape. A 16-bit scan is compared; fp16 cannot hold one of its voxels."""
    tiny_encoder.register(monkeypatch)
    scan = (np.random.default_rng(0).random((16, 12, 8)) ** 2 * 65535).astype(np.uint16)
    scan[0, 0, 0] = 65535
    np.save("scan.npy", scan)
    return lambda *args: cli(*TINY, *FP16, "--static", "--sample", "scan.npy", *args)


def flat(text: str) -> str:
    return " ".join(text.split())


def manifest_of(folder: str) -> dict[str, Any]:
    return json.loads((Path(folder) / "manifest.json").read_text())


@pytest.mark.skipif(bool(hardware.gpus()), reason="this machine has a GPU, so the engine runs")
@pytest.mark.parametrize("limit", [lowering.LIMIT, float("inf")], ids=["kept in fp32", "overflowing"])
def test_the_verdict_of_a_target_is_the_same_alone_first_and_last(
    fp16: Cli, monkeypatch: pytest.MonkeyPatch, limit: float
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    monkeypatch.setattr(lowering, "LIMIT", limit)
    found: dict[str, list[Any]] = {"onnx": [], "trt-rtx": []}
    for targets in ("onnx", "trt-rtx", "onnx,trt-rtx", "trt-rtx,onnx"):
        result = fp16("--to", targets, "-o", targets, "--json")
        for verdict in json.loads(result.stdout)["verdicts"]:
            found[verdict["target"]].append((verdict["parity"], verdict["error"]))
    for target, verdicts in found.items():
        assert len(verdicts) == 3
        assert all(verdict == verdicts[0] for verdict in verdicts), target
        assert verdicts[0][0]["passed"] == np.isfinite(limit)


@pytest.mark.usefixtures("fp16")
def test_every_case_is_compared_rounded_too_and_a_graph_of_two_targets_once(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second target is a copy of the first under another name, since engines of two kinds take a GPU."""
    second = replace(backends.find("onnx"), name="second")
    monkeypatch.setattr(backends, "ROWS", (*backends.ROWS, second))
    emulated: list[Any] = []

    class Counted(emulation.Emulation):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            emulated.append(self)

    monkeypatch.setattr(emulation, "Emulation", Counted)
    assert cli(*TINY, *FP16, "--sample", "scan.npy", "--to", "onnx,second", "-o", "net").exit_code == 0
    assert len(emulated) == 1
    first, other = (manifest_of(f"net/{target}")["parity"] for target in ("onnx", "second"))
    assert first == other
    cases = [case["case"] for case in first["cases"]]
    assert cases == [
        *(own := ["optimum", "minimum", "anisotropic", "maximum", "scan.npy"]),
        *(f"{name}, rounded" for name in own),
    ]


@pytest.mark.parametrize("target", ["onnx", "torchscript"])
def test_what_overflows_on_a_sample_alone_stays_in_fp32(fp16: Cli, target: str) -> None:
    result = fp16("--to", target, "-o", "net")
    assert result.exit_code == 0, result.output
    kept = manifest_of("net")["kept_fp32"]
    assert "too close to 65504" in kept["encoder.features.0 conv3d"]


def test_a_failure_names_the_layers_and_keeping_them_helps(fp16: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowering, "LIMIT", float("inf"))
    result = fp16("-o", "net")
    assert result.exit_code == 5
    options = re.findall(r"--keep-fp32 (\S*\w)", flat(result.output))
    assert options == ["encoder.features.0"]
    result = fp16(*(part for layer in options for part in ("--keep-fp32", layer)), "-o", "net")
    assert result.exit_code == 0, result.output


def test_a_target_without_a_graph_of_its_own_says_what_fp16_holds(fp16: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowering, "LIMIT", float("inf"))
    result = fp16("--to", "torchscript", "-o", "net")
    assert result.exit_code == 5
    assert "fp16 holds numbers up to 65504: if values are larger, normalise" in flat(result.output)


def test_a_file_that_overflows_on_a_sample_names_its_layers(fp16: Cli, cli: Cli) -> None:
    """It was exported without the sample."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    result = cli(*TINY, *FP16, "--static", "-o", "net")
    assert result.exit_code == 0, result.output
    result = cli("from", "net/model.onnx", "--to", "trt-rtx", "--sample", "scan.npy", "--no-bench", "-o", "other")
    assert result.exit_code == 5
    assert "--keep-fp32 encoder.features.0" in flat(result.output)

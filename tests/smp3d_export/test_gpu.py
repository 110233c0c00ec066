"""`--device cuda`: capture, parity and throughput on a GPU; and of it what can be shown without one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small import SMALL

from smp3d_export.backends.onnx.runner import onnxruntime, seconds_on
from smp3d_export.device import gpu_number
from smp3d_export.onnxgraph.session import CUDA, session

needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no NVIDIA GPU"),
]
# Target, precision: all that the compiler's targets and ONNX Runtime have on a GPU.
EXPORTS = [
    *((target, precision) for target in ("torchscript", "aoti", "compile") for precision in ("fp32", "fp16", "bf16")),
    ("onnx", "fp32"),
    ("onnx", "fp16"),
]


@pytest.mark.parametrize(("target", "precision"), [pytest.param(*export, marks=needs_gpu) for export in EXPORTS])
def test_an_artifact_is_made_compared_and_timed_on_a_gpu(cli, target: str, precision: str) -> None:
    if target == "onnx" and CUDA not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA")
    result = cli(*SMALL, "--device", "cuda", "--to", target, "--precision", precision, "-o", "net")
    assert result.exit_code == 0, result.output
    manifest = json.loads(Path("net/manifest.json").read_text())
    assert (manifest["device"], manifest["run"]) == ("cuda", "here")
    assert manifest["throughput"]["artifact"]["p50"] > 0
    assert cli("verify", "net", "--device", "cuda").exit_code == 0


def test_without_a_gpu_the_device_is_refused(cli) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    result = cli(*SMALL, "--device", "cuda:1", "--to", "onnx", "-o", "net")
    assert result.exit_code == 3
    assert "--device is cuda:1, but PyTorch sees no GPU on this machine: use --device cpu" in " ".join(
        result.stderr.split()
    )
    assert not Path("net").exists()


def test_onnx_runtime_is_timed_with_its_volumes_on_the_device(exported: Path) -> None:
    """By the same code on the processor: what is bound there is what it runs on."""
    timed = session(exported / "model.onnx", 1)
    assert seconds_on("cpu", timed, np.zeros((1, 1, 8, 16, 16), np.float32)) > 0
    with pytest.raises(Exception, match="Got invalid dimensions"):
        seconds_on("cpu", timed, np.zeros((1, 2, 8, 16, 16), np.float32))


@pytest.mark.parametrize(("device", "number"), [("cpu", 0), ("cuda", 0), ("cuda:3", 3)])
def test_the_number_of_a_gpu(device: str, number: int) -> None:
    assert gpu_number(device) == number

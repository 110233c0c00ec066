"""A file run above its contract's maximum by a runtime that has not read the manifest: exact, or an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import pytest
import torch

import smp3d_export as smp
from smp3d_export.sources.network import randomise_normalisations

ABOVE = np.random.default_rng(0).standard_normal((1, 1, 128, 8, 8), np.float32)
"""The dilations of 12, 24 and 36 reach into its map of 16, but beyond the map of 4 at the maximum."""


@pytest.fixture(scope="module")
def network() -> smp.DeepLabV3:
    torch.manual_seed(0)
    model = smp.DeepLabV3("resnet18", encoder_weights=None, in_channels=1, decoder_channels=8)
    randomise_normalisations(model)
    return model.eval()


@pytest.fixture(scope="module")
def folder(network: smp.DeepLabV3, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its artifacts, in which H and W are dynamic, and D is frozen."""
    folder = tmp_path_factory.mktemp("outside") / "net"
    targets = ["onnx", "torchscript", "openvino"]
    report = smp.export(network, shape=(1, 1, 8, 8, 8), max=(1, 1, 32, 16, 8), to=targets, bench=False, output=folder)
    assert report.exit_code == 0
    return folder


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def test_onnx_is_exact_above_the_maximum(network: smp.DeepLabV3, folder: Path) -> None:
    session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx")
    found = np.asarray(session.run(None, {"image": ABOVE})[0])
    with torch.no_grad():
        expected = network(torch.from_numpy(ABOVE)).numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert manifest(folder / "onnx")["optimisations"]["dilated-taps"] == 11  # along D
    assert "taps-up-to-max" not in manifest(folder / "onnx")["optimisations"]


@pytest.mark.parametrize("target", ["torchscript", "openvino"])
def test_files_that_refuse_larger_sizes_lose_the_taps_along_dynamic_axes(folder: Path, target: str) -> None:
    assert manifest(folder / target)["optimisations"]["taps-up-to-max"] == 11
    assert manifest(folder / target)["exact_up_to_max_only"] is True


def test_openvino_refuses_what_is_above_the_maximum(folder: Path) -> None:
    compiled = openvino.Core().compile_model(folder / "openvino" / "model.xml", "CPU")
    with pytest.raises(RuntimeError, match="128"):
        compiled([ABOVE])


@pytest.mark.filterwarnings("ignore:.*torch.jit.load:DeprecationWarning")
def test_torchscript_refuses_every_shape_outside_the_contract(folder: Path) -> None:
    program = torch.jit.load(str(folder / "torchscript" / "model.ts"))
    with pytest.raises(torch.jit.Error, match="H is 128; it must be 8 to 32, a multiple of 8"):
        program(torch.from_numpy(ABOVE))
    with pytest.raises(torch.jit.Error, match="W is 12; it must be 8 to 16, a multiple of 8"):
        program(torch.zeros(1, 1, 8, 12, 8))
    with pytest.raises(torch.jit.Error, match="the image has 4 axes, not 5"):
        program(torch.zeros(1, 8, 8, 8))

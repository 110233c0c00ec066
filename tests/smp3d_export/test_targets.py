"""Targets beside ONNX: one capture for several, each proved, each runner behind the contract."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from layouts import check_layouts, check_refused
from small import SMALL

from smp3d_export import backends as targets
from smp3d_export import runtime
from smp3d_export.errors import ShapeError, TargetUnavailableError
from smp3d_export.precision import Precision

FILES = {
    "torchscript": ["golden.npz", "manifest.json", "model.ts"],
    "onnx": ["golden.npz", "manifest.json", "model.onnx"],
    "openvino": ["golden.npz", "manifest.json", "model.bin", "model.xml"],
}


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export to every target that takes seconds, by the command line."""
    from typer.testing import CliRunner

    from smp3d_export.cli.main import app

    folder = tmp_path_factory.mktemp("several") / "net"
    result = CliRunner().invoke(
        app, [*SMALL, "--classes", "2", "--to", ",".join(FILES), "--no-bench", "--json", "-o", str(folder)]
    )
    assert result.exit_code == 0, result.output
    verdicts = json.loads(result.stdout)["verdicts"]
    assert [verdict["target"] for verdict in verdicts] == list(FILES)
    assert all(verdict["parity"]["passed"] for verdict in verdicts)
    return folder


@pytest.mark.parametrize("target", FILES)
def test_each_target_has_a_folder_of_its_own(several: Path, target: str) -> None:
    assert sorted(path.name for path in (several / target).iterdir()) == FILES[target]
    manifest = json.loads((several / target / "manifest.json").read_text())
    assert manifest["target"] == target
    # The bound of fp32: a processor with bfloat16 would miss it by far if the backend chose to use that.
    assert manifest["parity"]["relative"] < 1e-5


@pytest.mark.parametrize("target", FILES)
def test_each_runner_refuses_a_shape_outside_the_contract(several: Path, target: str) -> None:
    run = runtime.load(several / target)
    assert run(np.zeros((2, 1, 8, 40, 32), np.float32))["masks"].shape == (2, 2, 8, 40, 32)
    with pytest.raises(ShapeError, match="W is 44, outside the contract"):
        run(np.zeros((1, 1, 8, 44, 32), np.float32))


@pytest.mark.parametrize("target", FILES)
def test_every_layout_of_a_volume_gives_the_same_outputs(several: Path, target: str) -> None:
    check_layouts(runtime.load(several / target))


@pytest.mark.parametrize("target", FILES)
def test_what_is_not_a_volume_is_refused_by_name(several: Path, target: str) -> None:
    check_refused(runtime.load(several / target))


def test_openvino_keeps_the_weights_in_single_precision(several: Path) -> None:
    assert (several / "openvino" / "model.bin").stat().st_size > 0.95 * (several / "onnx" / "model.onnx").stat().st_size


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_a_precision_that_a_target_lacks_is_said_to_be_unavailable(target: str) -> None:
    with pytest.raises(TargetUnavailableError, match=f"{target} in tf32 cannot be exported on this machine"):
        targets.ready(target, Precision.TF32)


def test_without_openvino_the_other_target_is_kept(cli, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "find_spec", lambda name: None if name == "openvino" else find_spec(name))
    result = cli(*tiny, "--static", "--to", "openvino,onnx", "--no-bench", "-o", "net")
    assert result.exit_code == 3
    assert "pip install 'smp3d-export[openvino]'" in " ".join(result.output.split())
    assert [path.name for path in Path("net").iterdir()] == ["onnx"]
    assert cli(*SMALL, "--to", "openvino", "-o", "none").exit_code == 3
    assert not Path("none").exists()

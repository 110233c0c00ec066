"""`verify DIR`: an artifact proved again where it is deployed, and every way in which it can be wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from smp3d_export.artifact import folder as artifact
from smp3d_export.artifact import manifest as manifests


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "net"))


def rewrite_golden(folder: Path) -> None:
    """Another network's outputs, with a manifest that admits them."""
    golden = dict(np.load(folder / artifact.GOLDEN))
    golden["masks"] = golden["masks"] + np.float32(0.1) * np.ptp(golden["masks"])
    np.savez_compressed(folder / artifact.GOLDEN, allow_pickle=False, **golden)
    manifests.write(folder, replace(manifests.read(folder), files=artifact.describe_files(folder)))


def test_an_artifact_is_proved_without_torch(copy: Path) -> None:
    code = (
        "import sys; sys.argv = ['smp3d-export', 'verify', sys.argv[1]]; from smp3d_export.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code, str(copy)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "of 1e-04" in done.stdout
    assert "100 %" in done.stdout


def test_a_folder_of_several_is_proved_whole(cli, copy: Path) -> None:
    shutil.copytree(copy, "all/onnx")
    shutil.copytree(copy, "all/again")
    verdicts = json.loads(cli("verify", "all", "--json").stdout)["verdicts"]
    assert [verdict["parity"]["passed"] for verdict in verdicts] == [True, True]


def test_other_outputs_are_exit_code_5(cli, copy: Path) -> None:
    rewrite_golden(copy)
    result = cli("verify", copy)
    assert result.exit_code == 5
    assert "masks differs from eager by 1.0e-01 of its range" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda net: (net / "model.onnx").write_bytes(b"another"), "model.onnx' is not what the manifest says"),
        (lambda net: (net / "model.onnx").unlink(), "model.onnx' is missing"),
        (lambda net: (net / "manifest.json").write_text("{"), "holds none"),
        (lambda net: shutil.rmtree(net), "there is no folder"),
    ],
)
def test_a_file_that_is_not_what_the_manifest_says_is_exit_code_2(cli, copy: Path, spoil, says: str) -> None:
    spoil(copy)
    result = cli("verify", copy)
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stdout == ""


def test_without_torch_what_needs_it_says_so_and_the_rest_works(exported: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv[0] = 'smp3d-export'; sys.modules['torch'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'torch' else find(name, *rest)\n"
        "from smp3d_export.cli.main import main; main()"
    )

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-c", code, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    assert run("verify", str(exported)).returncode == 0
    findings = json.loads(run("doctor", "--json").stdout)["targets"]
    assert findings["onnx"]["fp32"]["run"]["ready"]
    assert findings["onnx"]["fp32"]["ready"], "from an ONNX file"
    assert findings["aoti"]["fp32"]["reason"] == "PyTorch is not installed"
    done = run("unet", "resnet18")
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1] == "error: torch is not installed here: pip install torch"

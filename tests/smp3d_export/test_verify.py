"""`verify DIR`: an artifact proved again where it is deployed, and every way in which it can be wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from earlier import EARLIER

from smp3d_export import backends
from smp3d_export.artifact import folder as artifact
from smp3d_export.artifact import manifest as manifests


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EARLIER / "onnx", tmp_path / "net"))


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
        (lambda net: (net / "model.onnx.data").write_text("weights"), "may be loaded with the artifact"),
        (lambda net: edit(net, lambda content: content["files"].pop("model.onnx")), "is not in the manifest"),
        (lambda net: edit(net, lambda content: content["files"].pop("golden.npz")), "was not finished"),
        (lambda net: edit(net, lambda content: content.pop("contract")), "is damaged: it lacks 'contract'"),
        (lambda net: edit(net, lambda content: content.update(format="smp3d-export/99")), "does not have the format"),
        (lambda net: (net / "manifest.json").write_text("{"), "is not valid JSON"),
    ],
)
def test_a_damaged_artifact_is_exit_code_2_and_the_others_are_proved(cli, copy: Path, spoil, says: str) -> None:
    shutil.copytree(copy, copy.parent / "deep" / "good")
    spoil(copy)
    for damaged, count in ((copy, 1), (copy.parent, 2)):
        result = cli("verify", damaged, "--json")
        assert result.exit_code == 2, result.output
        *others, verdict = json.loads(result.stdout)["verdicts"]
        assert says in verdict["error"]
        assert len(others) == count - 1
        assert all(other["parity"]["passed"] for other in others)
    shown = "".join(cli("verify", copy.parent).stdout.split())  # wherever its lines end
    assert "".join(says.split()) in shown.replace(str(copy.parent), "")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda net: (net / "manifest.json").unlink(), "net' is not an artifact, and holds none"),
        (lambda net: shutil.rmtree(net), "there is no folder"),
    ],
)
def test_what_is_not_an_artifact_is_exit_code_2(cli, copy: Path, spoil, says: str) -> None:
    spoil(copy)
    result = cli("verify", copy)
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stdout == ""


def test_what_lies_beside_an_artifact_is_said(cli, copy: Path) -> None:
    (copy / "figures").mkdir()
    for number in range(4):
        (copy / "figures" / f"{number}.png").write_text("")
    (copy / "notes.txt").write_text("mine")
    result = cli("verify", copy)
    assert result.exit_code == 0, result.output
    assert f"not part of the artifact {copy}: figures/0.png" in " ".join(result.stderr.split())
    assert "notes.txt" in result.stderr
    (copy / "zzz").write_text("mine")
    assert "notes.txt and 1 more" in " ".join(cli("verify", copy).stderr.split())


def test_artifacts_are_found_at_all_levels_and_what_is_skipped_is_said(cli, copy: Path) -> None:
    for name in ("a/b/c/net", ".net.smp3d-export/net", "a/net.failed", "other", "lost", "a/b/c/net/openvino"):
        shutil.copytree(copy, f"all/{name}")
    Path("all/linked").symlink_to(Path("all/a/b/c/net").resolve())
    Path("all/elsewhere").symlink_to(copy)
    Path("all/loop").symlink_to(Path("all").resolve())
    Path("all/other/manifest.json").write_text('{"name": "a web page"}')
    Path("all/other/golden.npz").unlink()
    Path("all/lost/manifest.json").unlink()
    result = cli("verify", "all", "--json")
    assert result.exit_code == 0, result.output
    verdicts = json.loads(result.stdout)["verdicts"]
    assert sorted(verdict["artifact"] for verdict in verdicts) == [
        "all/a/b/c/net/openvino",
        "all/elsewhere",
        "all/linked",
    ]
    assert all(verdict["parity"]["passed"] for verdict in verdicts)
    said = " ".join(result.stderr.split())
    assert "all/a/net.failed is skipped: what missed parity is there" in said
    assert "all/other is skipped: its manifest.json is not an artifact's" in said
    assert "all/lost is skipped: it has a golden.npz but no manifest.json" in said
    assert "not part of" not in said
    assert cli("verify", "all/a/net.failed").exit_code == 0
    table = cli("verify", "all").stdout
    assert "a/b/c/net/openvino" in table
    assert "elsewhere" in table


def edit(net: Path, change: Callable[[dict], object]) -> None:
    path = net / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def without(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line on a machine where a package is not installed."""
    code = (
        "import sys; sys.argv[0] = 'smp3d-export'; sys.modules[sys.argv.pop(1)] = None\n"
        "from smp3d_export.cli.main import main; main()"
    )
    command = [sys.executable, "-P", "-c", code, module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("target", "library"), [("onnx", "onnxruntime"), ("openvino", "openvino"), ("torchscript", "torch")]
)
def test_a_runtime_that_is_not_installed_is_exit_code_3(target: str, library: str) -> None:
    row = backends.find(target)
    says = f"{row.title} is not installed"
    one = str(EARLIER / target)
    done = without(library, "verify", str(EARLIER), "--json")
    assert done.returncode == 3, done.stderr
    verdicts = {verdict["target"]: verdict for verdict in json.loads(done.stdout)["verdicts"]}
    assert says in verdicts[target]["not_run"]
    assert verdicts[target]["not_run"].endswith(row.install)
    assert all(verdict["parity"]["passed"] for name, verdict in verdicts.items() if name != target)
    for job in (["verify", one], ["bench", one, "--against", one]):
        done = without(library, *job)
        assert done.returncode == 3, done.stderr
        assert "is not installed" in " ".join((done.stdout + done.stderr).split())
        assert "Traceback" not in done.stderr
        assert "bug" not in done.stderr


def test_a_runtime_that_cannot_be_imported_is_exit_code_3(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package is there, and a library of the system that it needs is not."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "openvino"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "smp3d_export.backends.openvino.runner", raising=False)
    (tmp_path / "openvino.py").write_text("raise ImportError('libtbb.so.12: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    result = cli("verify", EARLIER / "openvino")
    assert result.exit_code == 3, result.output
    said = " ".join(result.stdout.split())
    assert "OpenVINO, which openvino artifacts run in, cannot be imported" in said
    assert "libtbb.so.12: cannot open shared object file" in said


def test_a_runtime_that_fails_leaves_the_verdicts_of_the_others(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self, image):
        raise RuntimeError("out of something")

    monkeypatch.setattr("smp3d_export.backends.onnx.runner.Runner._run", run)
    result = cli("verify", EARLIER, "--json")
    assert result.exit_code == 4
    errors = [verdict["error"] for verdict in json.loads(result.stdout)["verdicts"]]
    assert errors[0].endswith("failed at the shape 1,1,4,4,4: RuntimeError: out of something")
    assert errors[1:] == [None, None]
    monkeypatch.setattr("smp3d_export.validators.verify.runtime.load", lambda *args, **kwargs: 1 / 0)
    result = cli("verify", EARLIER, "--debug")
    assert result.exit_code == 1
    assert "this is a bug in smp3d-export" in result.stdout
    assert "ZeroDivisionError" in result.stderr


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
    assert done.stderr.splitlines()[-1] == "error: torch is not installed: pip install torch"

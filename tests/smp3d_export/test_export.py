"""The main job through the command line, on a small network: the artifact, its proof, and whatever can go wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from small import SMALL
from tiny_encoder import SPEC

import smp3d_export as smp
from smp3d_export import hardware, runtime
from smp3d_export.arrays import volume
from smp3d_export.artifact import folder as artifact
from smp3d_export.backends.onnx import exporter as onnx_target
from smp3d_export.backends.onnx import runner as onnx_runner
from smp3d_export.errors import ExportError, ShapeError
from smp3d_export.onnxgraph import planes
from smp3d_export.sources.named import NamedNetwork, build
from smp3d_export.sources.network import randomise_normalisations


@pytest.fixture
def static(tiny: tuple[str, ...]) -> tuple[str, ...]:
    """The tiny network at one shape, for what does not depend on shapes."""
    return (*tiny, "--static")


def manifest_of(folder: Path):
    return json.loads((folder / "manifest.json").read_text())


def test_the_artifact_is_complete(exported: Path) -> None:
    manifest = manifest_of(exported)
    assert sorted(p.name for p in exported.iterdir()) == ["golden.npz", "manifest.json", "model.onnx"]
    assert artifact.describe_files(exported) == manifest["files"]
    assert manifest["model"]["architecture"] == "Unet"
    assert manifest["model"]["arguments"]["decoder_channels"] == [16, 8, 8]
    assert len(manifest["model"]["weights"]["sha256"]) == 64
    assert (manifest["target"], manifest["precision"], manifest["opset"]) == ("onnx", "fp32", 20)
    assert manifest["versions"]["torch"] == metadata.version("torch")
    assert manifest["hardware"]["cores"] >= 1
    assert [entry["name"] for entry in manifest["outputs"]] == ["masks", "labels"]
    assert manifest["parity"]["passed"]
    assert manifest["throughput"]["rounds"] >= 5
    assert manifest["throughput"]["peak_memory"] > 1e7


def test_parity_was_measured_at_every_shape_on_both_outputs(exported: Path) -> None:
    cases = manifest_of(exported)["parity"]["cases"]
    assert {(case["case"], case["output"]) for case in cases} == {
        (name, output) for name in ("optimum", "minimum", "anisotropic", "maximum") for output in ("masks", "labels")
    }
    assert all(case["relative"] < 1e-5 for case in cases)
    assert all(len(case["dice"]) == 3 for case in cases if case["output"] == "masks")
    assert all(case["range"] > 0.1 for case in cases), "outputs near zero would agree whatever the graph does"


def test_the_file_describes_itself(exported: Path) -> None:
    model = onnx.load(exported / "model.onnx")
    axes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert axes == {"image": ["N", 1, "H", "W", "D"], "masks": ["N", 3, "H", "W", "D"], "labels": ["N", 2]}
    properties = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    manifest = manifest_of(exported)
    for name in ("model", "contract", "versions", "precision"):
        assert properties[f"smp3d-export.{name}"] == manifest[name]
    assert str(Path.cwd()) not in str(model.SerializeToString()), "the exporter's traces hold paths of the machine"


def test_it_runs_in_plain_onnxruntime_at_a_shape_of_its_own(exported: Path) -> None:
    """The eager network built anew from what the manifest says, its weights by the seed that it says."""
    arguments = manifest_of(exported)["model"]["arguments"]
    network = build(NamedNetwork(architecture="Unet", encoder="resnet18", arguments=arguments, seed=0))
    assert network.sha256 == manifest_of(exported)["model"]["weights"]["sha256"]
    image = volume((2, 1, 16, 40, 32), seed=5)
    session = onnxruntime.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    masks, labels = session.run(["masks", "labels"], {"image": image})
    for name, found in (("masks", masks), ("labels", labels)):
        eager = network(image)[name]
        assert np.abs(found - eager).max() <= 1e-5 * np.ptp(eager)


def test_the_golden_input_proves_it_without_torch(exported: Path) -> None:
    code = (
        "import sys, numpy as np; from smp3d_export import load; run = load(sys.argv[1]);"
        "golden = dict(np.load(sys.argv[1] + '/golden.npz')); found = run(golden.pop('image'));"
        "assert golden.keys() == found.keys();"
        "assert all(np.abs(found[k] - golden[k]).max() < 1e-5 for k in golden);"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-P", "-c", code, str(exported)], check=True)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((1, 1, 32, 24, 20), "D is 20"),
        ((1, 2, 32, 24, 16), "C is 2"),
        ((3, 1, 32, 24, 16), "N is 3"),
        ((1, 32, 24, 16), "4 axes"),
    ],
)
def test_a_shape_outside_the_contract_is_refused_before_it_runs(exported: Path, shape, says: str) -> None:
    with pytest.raises(ShapeError, match=says):
        runtime.load(exported)(np.zeros(shape, np.float32))


def test_the_optimiser_is_recorded_and_can_be_turned_off(exported: Path, cli, static: tuple[str, ...]) -> None:
    assert manifest_of(exported)["optimisations"] == {"fold-batch-norm": 16, "concat-conv": 2, "upsample-conv": 3}
    assert cli(*static, "--optimise", "off", "--no-bench", "-o", "net").exit_code == 0
    assert manifest_of(Path("net"))["optimisations"] == {}
    operators = {node.op_type for node in onnx.load("net/model.onnx").graph.node}
    assert "ConvTranspose" not in operators
    assert "Resize" in operators


@pytest.mark.parametrize("faster", ["on", "cpu", "off"])
def test_the_fastest_form_is_kept_for_each_target(
    cli, static: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, faster: str
) -> None:
    """By runners that say how long they took."""
    monkeypatch.setattr(planes, "MIN_CHANNELS", 1)
    taken = {name: 1.0 if name == faster else 2.0 for name in ("on", "cpu", "off")}
    used = {name: json.dumps({"asked": "auto", "used": name}) for name in taken}

    def seconds(run: Any, image: Any) -> float:
        form = run.session.get_modelmeta().custom_metadata_map["smp3d-export.optimise"]
        return next(taken[name] for name, text in used.items() if text == form)

    monkeypatch.setattr(onnx_runner.Runner, "seconds", seconds)
    result = cli(*static, "--optimise", "auto", "--no-bench", "-o", "net")
    assert result.exit_code == 0, result.output
    manifest = json.loads(Path("net/manifest.json").read_text())
    assert manifest["optimise"] == {
        "asked": "auto",
        "used": faster,
        "milliseconds": {k: 1e3 * v for k, v in taken.items()},
    }
    assert bool(manifest["optimisations"]) == (faster != "off")
    assert ("planes" in manifest["optimisations"]) == (faster == "cpu")
    assert sorted(path.name for path in Path("net").iterdir()) == ["golden.npz", "manifest.json", "model.onnx"]
    assert ("ConvTranspose" in {node.op_type for node in onnx.load("net/model.onnx").graph.node}) == (faster != "off")


def test_a_form_that_cannot_be_exported_is_left_out(
    cli, static: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    export = onnx_target.Exporter.export

    def failing(self: Any, variant: Any, settings: Any, folder: Path) -> Any:
        if variant.rewrites:
            raise ExportError("an operator is missing")
        return export(self, variant, settings, folder)

    monkeypatch.setattr(onnx_target.Exporter, "export", failing)
    result = cli(*static, "--optimise", "auto", "--no-bench", "-o", "net")
    assert result.exit_code == 0, result.output
    found = manifest_of(Path("net"))["optimise"]
    assert list(found["milliseconds"]) == ["off"]
    assert found["failed"] == dict.fromkeys(("on", "cpu"), "an operator is missing")


def test_the_form_for_processors_can_be_asked_for(cli) -> None:
    assert cli(*SMALL, "--optimise", "cpu", "--no-bench", "-o", "net").exit_code == 0
    manifest = manifest_of(Path("net"))
    assert manifest["optimise"] == {"asked": "cpu", "used": "cpu"}
    assert manifest["optimisations"]["planes"] > 0
    assert manifest["optimisations"]["packed-conv"] == 1
    carried = {entry.key: entry.value for entry in onnx.load("net/model.onnx").metadata_props}
    assert json.loads(carried["smp3d-export.optimisations"]) == manifest["optimisations"]


def test_json_is_the_verdict_alone_and_a_static_export_is_static(cli) -> None:
    result = cli(*SMALL, "--static", "--no-bench", "--json", "-o", "net", "--opset", "18")
    assert result.exit_code == 0, result.output
    verdict = json.loads(result.stdout)["verdicts"][0]
    assert verdict["parity"]["passed"]
    assert verdict["throughput"] == "not run"
    assert [case["case"] for case in verdict["parity"]["cases"]] == ["optimum"]
    model = onnx.load("net/model.onnx")
    assert [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == [1, 1, 32, 24, 16]
    assert model.opset_import[0].version == 18
    assert "\x1b" not in result.output


@pytest.mark.usefixtures("tiny")
def test_a_checkpoint_with_strides_a_sample_and_an_activation(cli, tmp_path: Path) -> None:
    strides = ((2, 2, 1), (1, 2, 2), (2, 1, 2))
    torch.manual_seed(0)
    model = smp.Unet(
        SPEC.name, encoder_weights=None, encoder_depth=3, decoder_channels=(16, 8, 8), in_channels=1, classes=1,
        strides=strides, activation="sigmoid",
    )  # fmt: skip
    randomise_normalisations(model)
    torch.save({"state_dict": {f"model.{k}": v for k, v in model.state_dict().items()}}, "best.ckpt")
    np.save("scan.npy", 40 + 10 * volume((1, 1, 21, 16, 24), 3)[0, 0])
    result = cli(
        "unet", SPEC.name, "--checkpoint", "best.ckpt", "--strides", "2,2,1/1,2,2/2,1,2", "--activation", "sigmoid",
        "--shape", "1,1,16,16,16", "--sample", "scan.npy", "--normalize", "zscore", "--no-bench",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "decoder_channels 16,8,8" in " ".join(result.output.split())
    cases = manifest_of(tmp_path / "unet-tiny")["parity"]["cases"]
    assert cases[-1]["case"] == "scan.npy (its centre, of 21×16×24)"
    assert cases[-1]["shape"] == [1, 1, 20, 16, 24]
    assert manifest_of(tmp_path / "unet-tiny")["model"]["weights"]["source"] == "best.ckpt"


def test_too_slow_is_an_exit_code_of_its_own_and_the_artifact_is_kept(cli, static: tuple[str, ...]) -> None:
    result = cli(*static, "--min-speedup", "1000", "-o", "net")
    assert result.exit_code == 6
    assert "--min-speedup asks for 1000" in result.output
    assert Path("net/model.onnx").exists()


def test_cores_that_were_not_used_are_said(cli, static: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cores", lambda: 4)
    result = cli(*static, "--threads", "1", "-o", "net")
    assert "timed on 1 of 4 cores; --threads 4 uses all" in result.output
    throughput = json.loads(Path("net/manifest.json").read_text())["throughput"]
    assert (throughput["threads"], throughput["cores"]) == (1, 4)


def test_a_wrong_artifact_fails_and_goes_beside(cli, static: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Sabotage: one weight of the exported file is changed behind the exporter's back."""
    export = onnx_target.Exporter.export

    def sabotage(self, variant, settings, folder):
        exported = export(self, variant, settings, folder)
        model = onnx.load(folder / "model.onnx")
        weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        values = onnx.numpy_helper.to_array(weight).copy()
        values.flat[0] += 0.5
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        onnx.save(model, folder / "model.onnx")
        return exported

    monkeypatch.setattr(onnx_target.Exporter, "export", sabotage)
    result = cli(*static, "-o", "net")
    assert result.exit_code == 5
    assert "differs from eager by" in result.output
    assert [p.name for p in Path().iterdir()] == ["net.failed"]
    assert not manifest_of(Path("net.failed"))["parity"]["passed"]


def test_a_failing_exporter_is_reported_and_leaves_nothing(
    cli, static: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args, **kwargs):
        raise IndexError("inside")

    monkeypatch.setattr(torch.onnx, "export", fail)
    result = cli(*static, "-o", "net")
    assert result.exit_code == 4
    assert "the ONNX exporter failed: IndexError: inside" in result.output
    assert not list(Path().iterdir())


def test_a_bug_of_ours_is_one_line_and_exit_code_1(
    cli, static: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smp3d_export.sources.network.capture", lambda *args: 1 / 0)
    result = cli(*static, "-o", "net")
    assert result.exit_code == 1
    assert "a bug in smp3d-export" in result.output
    assert "Traceback" not in result.output
    assert "Traceback" in cli(*static, "-o", "net", "--debug").output
    assert not list(Path().iterdir())


def test_an_interrupt_leaves_nothing(cli, static: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.onnx, "export", interrupt)
    result = cli(*static, "-o", "net")
    assert result.exit_code == 130
    assert not list(Path().iterdir())


@pytest.mark.skipif(os.name != "posix", reason="kills by signals")
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_killed_it_leaves_nothing_that_looks_finished_and_runs_again(cli, tmp_path: Path, kind) -> None:
    command = [sys.executable, "-P", "-m", "smp3d_export", *SMALL, "--no-bench", "-o", "net"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "✓ onnx" in line:  # written, not yet proved
            break
    process.send_signal(kind)
    assert process.wait(60) != 0
    assert not (tmp_path / "net").exists()
    if kind is signal.SIGTERM:
        assert not list(tmp_path.iterdir())
    assert cli(*SMALL, "--static", "--no-bench", "-o", "net").exit_code == 0
    assert [p.name for p in tmp_path.iterdir()] == ["net"]

"""Networks of a user's: any module with one input, in memory or by `file.py:factory`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest
import torch

import smp3d_export as smp
from smp3d_export.arrays import volume

FILE = Path(foreign.__file__)
SHAPE = ("--shape", "1,1,8,8,8")
QUICK = (*SHAPE, "--no-bench")


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def ranges(folder: Path) -> dict[str, tuple[int, int, int]]:
    return {axis["name"]: (axis["min"], axis["max"], axis["multiple"]) for axis in manifest(folder)["contract"]}


def line_of(code: str) -> int:
    return next(number for number, line in enumerate(FILE.read_text().splitlines(), 1) if code in line)


# Network -> the outputs of its artifact with their numbers of axes, and its range along H.
WORKS = {
    "Net": ({"masks": 5}, (4, 16, 4)),
    "PadsOddSizes": ({"masks": 5}, (4, 16, 4)),  # runs at any size, by another graph
    "TwoOutputs": ({"masks": 5, "deep": 5}, (4, 16, 4)),
    "Nested": ({"masks": 5, "heads_0": 5, "heads_1": 2}, (4, 16, 4)),
    "BufferInForward": ({"masks": 5}, (4, 16, 4)),
    "UpsampleBySize": ({"masks": 5}, (4, 16, 1)),
    "FixedSize": ({"masks": 5}, (8, 8, 8)),
}


@pytest.mark.parametrize("name", WORKS)
def test_it_is_exported_for_the_sizes_that_it_takes(cli, tmp_path: Path, name: str) -> None:
    result = cli("from", f"{FILE}:{name}", *QUICK, "-o", "net")
    assert result.exit_code == 0, result.output
    outputs, height = WORKS[name]
    found = manifest(tmp_path / "net")
    assert {row["name"]: len(row["axes"]) for row in found["outputs"]} == outputs
    assert ranges(tmp_path / "net")["H"] == height
    assert ranges(tmp_path / "net")["N"] == (1, 2, 1)
    assert "this runs the code in" in result.output
    assert found["model"]["architecture"] == name
    assert found["factory"] == f"foreign.py:{name}", "no folder of this machine"
    verified = cli("verify", "net")
    assert verified.exit_code == 0, verified.output


@pytest.mark.parametrize(
    ("source", "options", "says"),
    [
        ("SETTINGS", (), "is a dict, not a function or class that returns a network"),
        ("raises", (), f"raised foreign.py:{line_of('no licence')} (raise RuntimeError("),
        ("returns_a_number", (), "returned a int, not a torch.nn.Module"),
        ("build", (), "needs classes: give --factory-arg classes=..."),
        ("build", ("--factory-arg", "class=3", "--factory-arg", "classes=3"), "no argument 'class'. Nearest: classes"),
        ("ready", ("--factory-arg", "classes=3"), "is a network already"),
        ("biuld", (), "has no 'biuld'. Nearest: build"),
        ("TwoInputs", (), "takes 2 inputs (image, mask), and a network with one input is exported"),
        ("Flat", (), "Flat does not run at the shape 1,1,8,8,8: foreign.py"),
        ("ReturnsNothing", (), "returns no tensor, but a NoneType"),
        ("Net", ("--shape", "1,2,8,8,8"), "Net does not run at the shape 1,2,8,8,8"),
        ("TwoOutputs", ("--keep-output", "mask"), "there is no output 'mask'. Nearest: masks. The network has: masks"),
        ("FixedSize", ("--max", "2,1,16,16,16"), "H of --max is 16, but FixedSize runs at H 8 only"),
        ("Net", ("--revision", "main"), "--revision does not go with code of your own"),
        ("Net", ("--fold", "0"), "--fold does not go with code of your own"),
        ("Net", ("--weights-key", "ema"), "needs a --checkpoint"),
        ("Net", ("--checkpoint", "none.pth"), "there is no checkpoint"),
    ],
)
def test_a_wrong_one_is_one_line(cli, tmp_path: Path, source: str, options: tuple[str, ...], says: str) -> None:
    result = cli("from", f"{FILE}:{source}", *QUICK, *options, "-o", "net")
    assert result.exit_code == 2, result.output
    [line] = [line for line in result.output.splitlines() if line.startswith("error:")]
    assert says in line
    assert list(tmp_path.iterdir()) == []
    if "raised" in says:
        assert "Traceback" in cli("from", f"{FILE}:{source}", *QUICK, "--debug").output


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("nowhere.py:Net", "there is no file 'nowhere.py'"),
        ("no_such_package.nets:Net", "there is no module 'no_such_package'"),
        ("broken.py:Net", "broken.py cannot be imported: broken.py:2 (1 / 0): ZeroDivisionError"),
        ("lacks.py:Net", "lacks.py needs no_such_package, which is not installed"),
        ("broken.py", "'broken.py' is a file of code: name the function or class in it, such as broken.py:build"),
    ],
)
def test_code_that_cannot_be_imported_is_one_line(cli, tmp_path: Path, source: str, says: str) -> None:
    (tmp_path / "broken.py").write_text("x = 1\n1 / 0\n")
    (tmp_path / "lacks.py").write_text("import no_such_package\n")
    result = cli("from", source, *QUICK)
    assert result.exit_code == 2
    assert says in result.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "LooksAtValues",
            f"foreign.py:{line_of('if image.sum()')} (if image.sum() > 0:): the network decides by values",
        ),
        ("FixesItsSize", "its code fixes H at 8. It turns the size of an axis into a plain number"),
    ],
)
def test_what_cannot_be_captured_is_one_line_with_a_way_out(cli, name: str, says: str) -> None:
    result = cli("from", f"{FILE}:{name}", *QUICK)
    assert result.exit_code == 4, result.output
    [line] = [line for line in result.output.splitlines() if line.startswith("error:")]
    assert says in line
    assert "--static exports it for --shape alone" in line
    assert "def forward" not in result.output


def test_a_static_export_needs_no_sizes(cli, tmp_path: Path) -> None:
    assert (
        cli("from", f"{FILE}:PadsOddSizes", "--shape", "1,1,9,8,7", "--static", "--no-bench", "-o", "n").exit_code == 0
    )
    assert ranges(tmp_path / "n")["H"] == (9, 9, 1)


def test_a_checkpoint_is_found_in_what_a_training_saved(cli, tmp_path: Path) -> None:
    torch.manual_seed(3)
    trained = foreign.Net(classes=3)
    torch.save({"epoch": 3, "state_dict": {f"net.{k}": v for k, v in trained.state_dict().items()}}, "best.ckpt")
    options = (*QUICK, "--factory-arg", "classes=3", "--checkpoint", "best.ckpt", "--name", "liver")
    result = cli("from", f"{FILE}:build", *options)
    assert result.exit_code == 0, result.output
    image = volume((1, 1, 12, 8, 4), 5)
    with torch.no_grad():
        expected = trained.eval()(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(smp.load(tmp_path / "liver")(image)["masks"], expected, atol=1e-4)
    model = manifest(tmp_path / "liver")["model"]
    assert (model["architecture"], model["arguments"]) == ("liver", {"classes": 3})
    assert model["weights"]["source"] == "best.ckpt"
    other = cli("from", f"{FILE}:build", *QUICK, "--factory-arg", "classes=2", "--checkpoint", "best.ckpt")
    assert other.exit_code == 2
    assert re.search(r"does not fit Net:\s+2 wrongly shaped: head.weight is \(3, 8, 1, 1, 1\)", other.output)


def test_a_module_in_memory_is_left_as_it_is(tmp_path: Path) -> None:
    module = foreign.TwoOutputs().half().train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    report = smp.export(module, shape=(1, 1, 8, 8, 8), output=tmp_path / "net", bench=False, keep_outputs=["masks"])
    report.raise_for_failure()
    assert report.network == "twooutputs"
    assert module.training
    assert type(module) is foreign.TwoOutputs
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert [row["name"] for row in manifest(tmp_path / "net")["outputs"]] == ["masks"]


def test_a_subclass_of_ours_is_exported_with_what_it_changes(tmp_path: Path) -> None:
    class Halved(smp.Unet):
        def forward(self, x: torch.Tensor) -> Any:
            masks: Any = super().forward(x)
            return masks / 2

    torch.manual_seed(0)
    model = Halved("resnet18", encoder_weights=None, in_channels=1, encoder_depth=3, decoder_channels=(8, 8, 4)).eval()
    smp.export(model, shape=(1, 1, 16, 16, 16), output=tmp_path / "net", bench=False).raise_for_failure()
    image = volume((1, 1, 8, 16, 24), 1)
    with torch.no_grad():
        expected = model(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(smp.load(tmp_path / "net")(image)["masks"], expected, atol=1e-4)


def test_a_probability_has_its_threshold(tmp_path: Path) -> None:
    smp.export(foreign.Probability(), shape=(1, 1, 8, 8, 8), output=tmp_path / "net", bench=False).raise_for_failure()
    assert manifest(tmp_path / "net")["label_threshold"] == 0.5


def test_every_target_and_precision_takes_it(cli, tmp_path: Path) -> None:
    options = (*QUICK, "--to", "onnx,openvino,torchscript,trt-rtx", "--max", "1,1,8,8,8", "-o", "net")
    result = cli("from", f"{FILE}:TwoOutputs", *options)
    assert result.exit_code == 0, result.output
    assert cli("from", f"{FILE}:Net", *QUICK, "--to", "onnx", "--precision", "fp16", "-o", "half").exit_code == 0
    kept = manifest(tmp_path / "half")["kept_fp32"]
    assert any("instance_norm" in name for name in kept), kept


def test_the_manifest_names_only_axes_of_the_input(cli, tmp_path: Path) -> None:
    """An output of a quarter of the size has axes of its own in the ONNX file."""
    import onnx

    assert cli("from", f"{FILE}:TwoOutputs", *QUICK, "-o", "net").exit_code == 0
    graph = onnx.load(tmp_path / "net/model.onnx").graph
    names = {value.name: [dim.dim_param for dim in value.type.tensor_type.shape.dim] for value in graph.output}
    assert names["masks"] == ["N", "", "H", "W", "D"]
    assert names["deep"] == ["N", "", "deep_2", "deep_3", "deep_4"]


def test_an_artifact_of_ones_own_network_is_timed_against_another(cli) -> None:
    assert cli("from", f"{FILE}:Net", *QUICK, "-o", "net").exit_code == 0
    result = cli("bench", "net", "--seconds", "0.1")
    assert result.exit_code == 2
    assert "give another artifact by" in result.output

"""`from FILE.onnx`: further artifacts of an exported file, proved against it, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

pytest.importorskip("openvino")


def test_openvino_is_made_and_proved_without_torch(exported: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv[0] = 'smp3d-export'; from smp3d_export.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules"
    )
    arguments = ["from", str(exported / "model.onnx"), "--to", "openvino", "--json", "-o", str(tmp_path / "net")]
    done = subprocess.run([sys.executable, "-P", "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)["verdicts"][0]
    assert verdict["parity"]["relative"] < 1e-5
    assert {case["output"] for case in verdict["parity"]["cases"]} == {"masks", "labels"}
    assert verdict["throughput"]["against"] == "ONNX Runtime"
    manifest = json.loads((tmp_path / "net" / "manifest.json").read_text())
    first = json.loads((exported / "manifest.json").read_text())
    for name in ("model", "contract", "outputs", "optimisations", "label_threshold"):
        assert manifest[name] == first[name]
    assert manifest["source"] == {"file": "model.onnx", "sha256": first["files"]["model.onnx"]["sha256"]}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none.onnx"], "there is no file 'none.onnx'"),
        (["text.onnx"], "'text.onnx' cannot be read as an ONNX file"),
        (["other.onnx"], "was not exported by smp3d-export"),
        (["model.onnx", "--to", "torchscript"], "torchscript is made from the network, not from an ONNX file"),
        (["model.onnx", "--keep-fp32", "decoder"], "leave out --keep-fp32"),
        (["model.onnx", "--optimise", "on"], "leave out --optimise"),
        (["model.onnx", "--opset", "21"], "has opset 20, which cannot be raised"),
        (["model.onnx", "--to", "onnx", "--precision", "fp16"], "is in fp32 and cannot be converted to fp16"),
        (["model.onnx", "-o", "."], "holds 'model.onnx' itself"),
        (["model.onnx", "--to", "openvino", "--shape", "1,1,32,32,32"], "leave out --shape"),
        (["model.onnx", "--to", "openvino", "--multiple", "64"], "leave out --shape"),
        (["model.onnx", "--to", "openvino", "--revision", "main"], "--revision does not go with an ONNX file"),
    ],
)
def test_wrong_input_is_one_line(exported: Path, cli, arguments: list[str], says: str) -> None:
    Path("text.onnx").write_text("no protobuf")
    model = onnx.load(exported / "model.onnx")
    onnx.save(model, "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, "other.onnx")
    result = cli("from", *arguments, *([] if "--to" in arguments else ["--to", "openvino"]))
    assert result.exit_code == 2, result.output
    assert says in " ".join(result.output.split())


def test_without_options_it_is_proved_again_in_a_folder_named_after_the_network(exported: Path, cli) -> None:
    result = cli("from", exported / "model.onnx", "--no-bench")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in Path("unet-resnet18-from-onnx").iterdir()) == [
        "golden.npz", "manifest.json", "model.onnx",
    ]  # fmt: skip
    properties = [entry.key for entry in onnx.load("unet-resnet18-from-onnx/model.onnx").metadata_props]
    assert len(properties) == len(set(properties))
    again = cli("from", "unet-resnet18-from-onnx/model.onnx", "--opset", "13", "--no-bench", "-o", "old")
    assert again.exit_code == 0, again.output
    assert onnx.load("old/model.onnx").opset_import[0].version == 13
    assert json.loads(Path("old/manifest.json").read_text())["opset"] == 13

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
        (["text.onnx"], "'text.onnx' is no ONNX file"),
        (["other.onnx"], "was not exported by smp3d-export"),
        (["model.onnx", "--to", "onnx"], "onnx is not made from an ONNX file, but from the network"),
        (["model.onnx", "--to", "openvino", "--shape", "1,1,32,32,32"], "leave out --shape"),
        (["model.onnx", "--to", "openvino", "--multiple", "64"], "leave out --shape"),
        (["model.onnx", "--to", "openvino", "--revision", "main"], "--revision is of a repository"),
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
    assert says in result.stderr

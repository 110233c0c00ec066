"""Adding a target takes one package and one row; every job knows it then."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from small import SMALL

from smp3d_export import backends, load
from smp3d_export.precision import Precision

EXPORTER = """
from smp3d_export.backends import exporter
from smp3d_export.backends.exporter import Exported, Support


class Exporter(exporter.Exporter):
    def run_support(self, precision, device):
        return Support.no("toys do not run in fp16") if precision == "fp16" else Support.yes()

    def export(self, variant, settings, folder):
        graph = variant.graph(settings)
        (folder / self.row.files[0]).write_bytes(graph.SerializeToString())
        return Exported("a toy", {"toy": True}, graph)
"""
RUNNER = """
import onnxruntime

from smp3d_export.backends import runner


class Runner(runner.Runner):
    def __init__(self, artifact):
        super().__init__(artifact)
        self.session = onnxruntime.InferenceSession(artifact.file.read_bytes())

    def _run(self, image):
        return {"masks": self.session.run(["masks"], {"image": image})[0]}
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[backends.Backend]:
    package = tmp_path / "packages" / "toy_target"
    package.mkdir(parents=True)
    for name, text in (("__init__", ""), ("exporter", EXPORTER), ("runner", RUNNER)):
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(package.parent)
    row = backends.Backend(
        name="toy",
        package="toy_target",
        files=("model.toy",),
        through="the ONNX graph, unchanged",
        precisions=(Precision.FP32, Precision.FP16),
        library="onnxruntime",
        needs="a child",
        from_onnx=True,
    )
    monkeypatch.setattr(backends, "ROWS", (*backends.ROWS, row))
    yield row
    for name in [name for name in sys.modules if name.partition(".")[0] == package.name]:
        del sys.modules[name]


def test_a_package_and_a_row_are_a_target(cli, tiny: tuple[str, ...], toy: backends.Backend) -> None:
    exported = cli(*tiny, "--to", "onnx,toy", "-o", "net")
    assert exported.exit_code == 0, exported.output
    assert "  toy    fp32" in exported.stdout
    assert "net/toy/: golden.npz, manifest.json, model.toy" in exported.stdout

    assert cli("from", "net/onnx/model.onnx", "--to", "toy", "--no-bench", "-o", "again").exit_code == 0
    assert cli("verify", "net").exit_code == 0
    timed = json.loads(cli("bench", "net/toy", "--against", "net/onnx", "--seconds", "0", "--json").stdout)
    assert timed["precisions"]["toy"] == "fp32"

    run = load("net/toy")
    assert run(np.zeros((1, 1, 32, 24, 16), np.float32))["masks"].shape == (1, 1, 32, 24, 16)


def test_whatever_shows_the_targets_shows_it(cli, toy: backends.Backend) -> None:
    cell = json.loads(cli("doctor", "--json").stdout)["targets"]["toy"]
    assert cell["fp32"]["run"]["ready"]
    assert cell["fp16"]["ready"]
    assert cell["fp16"]["run"]["reason"] == "toys do not run in fp16"
    assert cell["bf16"]["never"]
    assert "toy in fp16 cannot be run here: toys do not run in fp16" in cli("doctor").stdout
    row = json.loads(cli("list", "targets", "--json").stdout)[-1]
    assert (row["name"], row["files"], row["needs"]) == ("toy", ["model.toy"], "a child")
    assert "the ONNX graph, unchanged; needs a child" in cli("list", "targets").stdout
    assert "toy" in cli("--help").stdout
    assert "Nearest: toy" in cli(*SMALL, "--to", "toi").stderr

"""The user's samples: every one is compared, under a name that tells it apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from earlier import EARLIER

from smp3d_export.validators.cases import named

pytest.importorskip("openvino")


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["a/scan.npy", "b/scan.npy"], ["a/scan.npy", "b/scan.npy"]),
        (["a/scan.npy", "b/other.npy"], ["scan.npy", "other.npy"]),
        (["x/1/scan.npy", "y/1/scan.npy", "y/2/scan.npy"], ["x/1/scan.npy", "y/1/scan.npy", "2/scan.npy"]),
        (["a/scan.npy", "a/../a/scan.npy"], ["scan.npy"]),
    ],
)
def test_names_tell_files_apart(given: list[str], names: list[str]) -> None:
    assert list(named(map(Path, given)).values()) == names


def test_samples_of_one_name_are_all_compared(cli) -> None:
    for name, shape in (("a", (16, 12, 8)), ("b", (9, 8, 8))):
        Path(name).mkdir()
        np.save(f"{name}/scan.npy", np.random.default_rng(0).standard_normal(shape))
    samples = ["--sample", "a/scan.npy", "--sample", "b/scan.npy"]
    onnx = EARLIER / "onnx" / "model.onnx"
    result = cli("from", onnx, "--to", "openvino", "--no-bench", "-o", "net", *samples)
    assert result.exit_code == 0, result.output
    cases = json.loads(Path("net/manifest.json").read_text())["parity"]["cases"]
    assert {case["case"]: case["shape"][2:] for case in cases[-2:]} == {
        "a/scan.npy": [16, 12, 8],
        "b/scan.npy (its centre, of 9×8×8)": [8, 8, 8],
    }

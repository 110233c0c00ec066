"""Networks too large for one protobuf message take every path that small ones take, to the same result."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_encoder
from tiny_encoder import TINY
from typer.testing import Result

from smp3d_export import backends
from smp3d_export.arrays import volume
from smp3d_export.artifact.folder import sha256
from smp3d_export.onnxgraph import graph, planes
from smp3d_export.precision import Precision

Cli = Callable[..., Result]

LIMIT = 5000
"""Bytes: less than the weights of the tiny network in any precision, and more than what stays beside its nodes."""

# One of them with dynamic axes, which take three times as long.
EXPORTS = {
    "fp32": ("onnx,openvino,trt-rtx,torchscript",),
    "for cpu": ("onnx,openvino", "--static", "--optimise", "cpu"),
    "fp16": ("onnx,openvino,trt-rtx,torchscript", "--static", "--precision", "fp16"),
    "bf16": ("onnx,trt-rtx", "--static", "--precision", "bf16", "--keep-fp32", "decoder"),
    "int8": ("onnx,openvino", "--static", "--precision", "int8", "--calibration", "scans"),
}
FILES = {
    "fp32": ("openvino,trt-rtx",),
    "fp16": ("openvino,trt-rtx",),
    "int8": ("openvino",),
    "fp32 to int8": ("openvino", "--precision", "int8", "--calibration", "scans"),
}


@pytest.fixture
def export(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Exports, and gives what is to be equal of each target's verdict."""
    tiny_encoder.register(monkeypatch)
    Path("scans").mkdir()
    np.save("scans/scan.npy", volume((1, 1, 16, 12, 8), 3)[0, 0])

    def verdicts(*arguments: str) -> dict[str, Any]:
        result = cli(*arguments, "--no-bench", "--json")
        assert result.exit_code in (0, 3, 5), result.output
        found = {verdict.pop("target"): verdict for verdict in json.loads(result.stdout)["verdicts"]}
        assert [name for name, verdict in found.items() if verdict["parity"] == "not run"] == unavailable(arguments)
        return {name: (verdict["parity"], verdict["error"]) for name, verdict in found.items()}

    return verdicts


def unavailable(arguments: tuple[str, ...]) -> list[str]:
    """Targets of a command that this machine lacks something for."""
    given = dict(pairwise(arguments))
    precision = Precision(given.get("--precision", "fp32"))
    return [name for name in given["--to"].split(",") if not backends.find(name).support(precision).ready]


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Lowers the limit; past it a graph can neither be written nor be copied as one message, by whomever."""

    def lower() -> None:
        monkeypatch.setattr(graph, "MESSAGE_LIMIT", LIMIT)
        for name in ("SerializeToString", "CopyFrom"):
            monkeypatch.setattr(onnx.ModelProto, name, refusing(getattr(onnx.ModelProto, name)))

    return lower


def refusing(method: Any) -> Any:
    def limited(message: onnx.ModelProto, *arguments: Any, **options: Any) -> Any:
        whole = arguments[0] if arguments and isinstance(arguments[0], onnx.ModelProto) else message
        assert sum(len(tensor.raw_data) for tensor in whole.graph.initializer) < LIMIT, "more than 2 GB"
        return method(message, *arguments, **options)

    return limited


@pytest.mark.parametrize("name", EXPORTS)
def test_a_network_over_the_limit_exports_as_a_small_one_does(
    export: Callable[..., Any], limit: Callable[[], None], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(planes, "MIN_CHANNELS", 1)
    small = export(*TINY, "--to", *EXPORTS[name], "-o", "small")
    limit()
    assert export(*TINY, "--to", *EXPORTS[name], "-o", "large") == small
    folder = next(Path().glob("large*/onnx"))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert ("planes" in manifest["optimisations"]) == (name == "for cpu")
    assert sorted(manifest["files"]) == ["golden.npz", "model.onnx", "model.onnx.data"]
    expected = onnx.load(str(folder / "model.onnx").replace("large", "small", 1))
    found = onnx.load(folder / "model.onnx")
    assert found.graph.node == expected.graph.node
    weights = zip(expected.graph.initializer, found.graph.initializer, strict=True)
    assert all(
        (a.name, a.data_type, a.dims, a.raw_data) == (b.name, b.data_type, b.dims, b.raw_data) for a, b in weights
    )


def test_what_lies_beside_the_file_is_verified(export: Callable[..., Any], limit: Callable[[], None], cli: Cli) -> None:
    limit()
    export(*TINY, "--static", "--to", "onnx", "-o", "net")
    assert cli("verify", "net").exit_code == 0
    data = Path("net/model.onnx.data")
    data.write_bytes(data.read_bytes()[:-1] + b"x")
    result = cli("verify", "net")
    assert result.exit_code == 2
    assert "model.onnx.data' is not what the manifest says" in " ".join(result.output.split())


@pytest.mark.parametrize("name", FILES)
def test_a_file_over_the_limit_is_exported_as_a_small_one_is(
    export: Callable[..., Any], limit: Callable[[], None], name: str
) -> None:
    made = ("--static", *EXPORTS[name.partition(" ")[0]][1:])
    export(*TINY, "--to", "onnx", *made, "-o", "small")
    (small,) = Path().glob("small*/model.onnx")
    expected = export("from", str(small), "--to", *FILES[name], "-o", "of-small")
    limit()
    export(*TINY, "--to", "onnx", *made, "-o", "large")
    (large,) = Path().glob("large*/model.onnx")
    assert export("from", str(large), "--to", *FILES[name], "-o", "of-large") == expected
    (manifest,) = list(Path().glob("of-large*/openvino/manifest.json")) or list(Path().glob("of-large*/manifest.json"))
    source = json.loads(manifest.read_text())["source"]
    assert source["data"] == [{"file": "model.onnx.data", "sha256": sha256(large.with_name("model.onnx.data"))}]

"""ONNX graphs as they are written: weight by weight, and what a graph's weights cost on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from smp3d_export.onnxgraph import graph as onnx_graph


@given(st.lists(st.integers(0, 300), max_size=4), st.text(max_size=5))
def test_what_is_written_in_parts_is_what_is_written_whole(tmp_path_factory, sizes: list[int], text: str) -> None:
    weights = [numpy_helper.from_array(np.arange(size, dtype=np.float32), f"w{size}") for size in sizes]
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 4])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "graph", [value], [], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], producer_name=text)
    helper.set_model_props(model, {"text": text})
    path = tmp_path_factory.mktemp("file") / "model.onnx"
    onnx_graph.save(model, path)
    assert onnx.load(path) == model
    assert path.stat().st_size == model.ByteSize()


def test_a_graph_too_large_for_one_message_has_its_weights_beside_it(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from small import SMALL

    monkeypatch.setattr(onnx_graph, "MESSAGE_LIMIT", 1_000_000)
    result = cli(*SMALL, "--static", "--no-bench", "-o", "net")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in Path("net").iterdir()) == [
        "golden.npz", "manifest.json", "model.onnx", "model.onnx.data",
    ]  # fmt: skip
    assert Path("net/model.onnx").stat().st_size < 100_000

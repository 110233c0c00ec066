"""Operator sets older than PyTorch's exporter writes: valid, equal, in an IR version that old runtimes read."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from smp3d_export.arrays import volume
from smp3d_export.contract import ShapeContract
from smp3d_export.errors import ExportError
from smp3d_export.onnxgraph.conversion import convert
from smp3d_export.onnxgraph.opset import EXPORTED, OLDEST, lower_opset, opset_of
from smp3d_export.onnxgraph.session import outputs_of, session_of
from smp3d_export.optimise import optimise
from smp3d_export.program.capture import capture
from smp3d_export.sources.named import NamedNetwork, build


def test_a_network_in_an_old_operator_set_computes_the_same() -> None:
    """One with attention, whose activation is an operator of its own in newer sets. tests/architectures has others."""
    arguments = {"encoder_depth": 2, "decoder_channels": (16, 8), "in_channels": 1, "classes": 2}
    model = build(NamedNetwork(architecture="Unet", encoder="mit_b0", arguments=arguments)).model
    contract = ShapeContract.of((1, 1, *model.min_size), multiple=model.multiple, min_size=model.min_size)
    image = volume((1, 1, *(size + k for size, k in zip(model.min_size, model.multiple, strict=True))), 0)
    newest = convert(optimise(capture(model, contract)).captured, EXPORTED[0])
    expected = outputs_of(session_of(newest, 1), image)
    for opset in (17, OLDEST):
        lowered = onnx.ModelProto()
        lowered.CopyFrom(newest)
        lower_opset(lowered, opset)
        assert opset_of(lowered) == opset
        assert lowered.ir_version == helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
        onnx.checker.check_model(lowered, full_check=True)
        found = outputs_of(session_of(lowered, 1), image)
        for output, values in expected.items():
            assert np.abs(found[output] - values).max() <= 1e-5 * np.ptp(values)


@pytest.mark.parametrize(
    ("operator", "attributes", "inputs", "says"),
    [
        ("Mish", {}, 1, "opset 13 does not have Mish as this network uses it: use --opset 18 or more"),
        ("BatchNormalization", {"training_mode": 1}, 5, "does not have BatchNormalization"),
        ("LayerNormalization", {"axis": 1}, 2, "does not have LayerNormalization"),
        ("ReduceMean", {}, 2, "does not have ReduceMean"),
        ("Resize", {"antialias": 1}, 3, "does not have Resize"),
    ],
)
def test_what_an_old_operator_set_lacks_is_refused_by_name(
    operator: str, attributes: dict[str, Any], inputs: int, says: str
) -> None:
    names = [f"x{number}" for number in range(inputs)]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (*names, "y")]
    graph = helper.make_graph([helper.make_node(operator, names, ["y"], **attributes)], "g", values[:-1], values[-1:])
    with pytest.raises(ExportError, match=says):
        lower_opset(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), OLDEST)


def test_the_command_line_takes_old_operator_sets(cli, tiny: tuple[str, ...]) -> None:
    result = cli(*tiny, "--opset", "13", "--precision", "fp16", "--no-bench", "-o", "net")
    assert result.exit_code == 0, result.output
    assert opset_of(onnx.load("net/model.onnx")) == 13
    result = cli(*tiny, "--opset", "12", "-o", "none")
    assert result.exit_code == 2
    assert "--opset is 12; it must be 13 to 25" in result.stderr

"""Convolutions by planes: the same function where they are rewritten, also of maps that a dilation reaches beyond."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from smp3d_export.onnxgraph.emulation import Emulation
from smp3d_export.onnxgraph.planes import by_planes


def graph(kernel: tuple[int, ...] = (3, 3, 3), channels: int = 2, bias: bool = True, **options) -> onnx.ModelProto:
    """One convolution, and an activation behind it."""
    random = np.random.default_rng(0)
    weights = {"w": random.standard_normal((channels, channels // options.get("group", 1), *kernel), np.float32)}
    if bias:
        weights["b"] = random.standard_normal(channels, np.float32)
    image, masks = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", channels, "H", "W", "D"])
        for name in ("image", "masks")
    )
    nodes = [
        helper.make_node("Conv", ["image", *weights], ["y"], name="conv", **options),
        helper.make_node("Relu", ["y"], ["masks"]),
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    return helper.make_model(
        helper.make_graph(nodes, "graph", [image], [masks], initializers),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


def run(model: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    (masks,) = Emulation(model, 1)(image).values()
    return masks


CASES = {
    "dilation 2": {"dilations": (2, 2, 2), "pads": (2,) * 6},
    "no bias": {"dilations": (2, 2, 2), "pads": (2,) * 6, "bias": False},
    "unlike along the axes": {"dilations": (1, 3, 4), "pads": (1, 3, 4) * 2},
    "taps of D alone": {"kernel": (1, 1, 3), "dilations": (1, 1, 2), "pads": (0, 0, 2) * 2},
    "many channels": {"channels": 64, "pads": (1,) * 6},
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_function(case: str) -> None:
    model, rewritten = graph(**CASES[case]), graph(**CASES[case])
    assert by_planes(rewritten) == 1
    onnx.checker.check_model(rewritten, full_check=True)
    assert "w" not in {tensor.name for tensor in rewritten.graph.initializer}
    channels = CASES[case].get("channels", 2)
    for n, h, w, d in ((1, 6, 5, 8), (2, 5, 6, 4), (2, 3, 4, 3), (1, 2, 3, 2), (2, 4, 3, 1)):
        image = np.random.default_rng(1).standard_normal((n, channels, h, w, d), np.float32)
        expected = run(model, image)
        assert np.abs(run(rewritten, image) - expected).max() <= 1e-5 * np.abs(expected).max()
    assert by_planes(rewritten) == 0


MISSES = {
    "few channels": {"pads": (1,) * 6},
    "stride": {"dilations": (2, 2, 2), "pads": (2,) * 6, "strides": (2, 2, 2)},
    "groups": {"dilations": (2, 2, 2), "pads": (2,) * 6, "group": 2},
    "no padding": {"dilations": (2, 2, 2), "pads": (2, 2, 0) * 2},
    "one tap along D": {"kernel": (3, 3, 1), "dilations": (2, 2, 2), "pads": (2, 2, 0) * 2},
    "five taps": {"kernel": (3, 3, 5), "dilations": (1, 1, 2), "pads": (1, 1, 2) * 2},
}


@pytest.mark.parametrize("case", MISSES)
def test_others_are_left_alone(case: str) -> None:
    model = graph(**MISSES[case])
    before = model.SerializeToString()
    assert by_planes(model) == 0
    assert model.SerializeToString() == before

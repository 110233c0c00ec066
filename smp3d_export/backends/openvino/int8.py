"""Post-training int8 quantisation of an OpenVINO model by NNCF, calibrated on the user's volumes, biases corrected."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from smp3d_export.errors import ExportError, Smp3dExportError
from smp3d_export.quiet import quiet
from smp3d_export.settings import Batches

if TYPE_CHECKING:
    import openvino


LAYERS = ("Convolution", "ConvolutionBackpropData", "GroupConvolution", "GroupConvolutionBackpropData", "MatMul")
LEFT_OUT = dict.fromkeys(
    ("GroupConvolution", "GroupConvolutionBackpropData"),
    "OpenVINO has no int8 kernel for a grouped or depthwise 3D convolution",
)
"""Operators that stay in fp32, and why."""


def quantises(layer: openvino.Node) -> bool:
    """Whether a convolution is of a kind that is quantised."""
    return layer.get_type_name() not in LEFT_OUT


def quantised(model: openvino.Model, batches: Batches, left_out: Collection[str] = ()) -> openvino.Model:
    """The model with symmetric per-channel int8 weights and 8-bit inputs to every layer.

    The operations named in `left_out` stay in fp32, and so do those of `LEFT_OUT`.

    Asymmetric activations get a zero point (the mixed preset). In measurements that was as fast as without, and cost a
    trained network only a quarter as much Dice.

    Raises:
        UsageError: a volume of the calibration cannot be read, or does not fit the contract.
        ExportError: NNCF fails.
    """
    try:
        with quiet(), without_torch(), without_telemetry():
            nncf: Any = importlib.import_module("nncf")
            nncf.set_log_level(logging.ERROR)
            return nncf.quantize(
                model,
                nncf.Dataset(batches),
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(batches),
                ignored_scope=nncf.IgnoredScope(names=list(left_out), types=list(LEFT_OUT), validate=False),
            )
    except Smp3dExportError:
        raise
    except Exception as error:  # NNCF has no base class for its own
        raise ExportError(f"NNCF cannot quantise the network: {type(error).__name__}: {error}") from error


def facts(model: openvino.Model, left_out: Mapping[str, str]) -> dict[str, Any]:
    """For the manifest: how many layers have weights, how many of them are in int8, and why the others are not.

    `left_out` has the reasons for the operations that were left out by name.
    """
    layers = [layer for layer in model.get_ops() if layer.get_type_name() in LAYERS and weights_of(layer)]
    others = Counter(layer.get_type_name() for layer in layers if weights_of(layer) != "i8")
    named = [layer for layer in layers if layer.get_friendly_name() in left_out]
    reasons = LEFT_OUT | {layer.get_type_name(): left_out[layer.get_friendly_name()] for layer in named}
    return {
        "by": "NNCF, mixed preset",
        "layers": len(layers),
        "int8": len(layers) - others.total(),
        "left_out": {
            name: {"count": count, "reason": reasons.get(name, "NNCF leaves it in fp32")}
            for name, count in others.items()
        },
    }


def weights_of(layer: openvino.Node) -> str:
    """The type of a layer's weights on disk; empty if its second input is not a constant."""
    node = layer.input_value(1).get_node()
    while node.get_input_size():
        # The constant is followed by its conversion, zero point, scale and shape.
        if node.get_type_name() not in ("Convert", "Subtract", "Multiply", "Reshape", "FakeQuantize", "Transpose"):
            return ""
        node = node.input_value(0).get_node()
    return node.get_element_type().get_type_name() if node.get_type_name() == "Constant" else ""


@contextlib.contextmanager
def without_torch() -> Iterator[None]:
    """Keep NNCF from importing torch, which it needs for PyTorch models only but imports whenever it is installed."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]  what is None there cannot be imported
    try:
        yield
    finally:
        del sys.modules["torch"]


@contextlib.contextmanager
def without_telemetry() -> Iterator[None]:
    """Keep NNCF from sending telemetry. It reads this variable when it is imported; its own tests set it."""
    before = os.environ.get("NNCF_CI")
    os.environ["NNCF_CI"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["NNCF_CI"]
        else:
            os.environ["NNCF_CI"] = before

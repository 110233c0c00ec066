"""Post-training quantisation of an OpenVINO model to int8 by NNCF: ranges from the user's volumes, biases corrected."""

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
    "OpenVINO has no int8 kernel for a grouped or depthwise convolution over three axes",
)
"""Operators that stay in fp32, and why."""


def quantises(layer: openvino.Node) -> bool:
    """Whether a convolution is of a kind that is quantised."""
    return layer.get_type_name() not in LEFT_OUT


def quantised(model: openvino.Model, batches: Batches, left_out: Collection[str] = ()) -> openvino.Model:
    """The model with int8 weights, symmetric and by channel, and 8 bits wherever a layer reads activations.

    The operations named in `left_out` stay in fp32, beside those of `LEFT_OUT`.

    A range of activations has a zero point where they are not symmetric (the mixed preset): as fast as without on what
    was measured, and on a trained network a quarter of the loss of Dice.

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
    """For the manifest: how many layers with weights a quantised model has, how many are in int8, and why not all.

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
            name: {"count": count, "reason": reasons.get(name, "NNCF keeps it")} for name, count in others.items()
        },
    }


def weights_of(layer: openvino.Node) -> str:
    """The type of a layer's weights on disk; empty where its second input is no constant."""
    node = layer.input_value(1).get_node()
    while node.get_input_size():
        # Behind the constant stand its conversion, its zero point, its scale and its shape.
        if node.get_type_name() not in ("Convert", "Subtract", "Multiply", "Reshape", "FakeQuantize", "Transpose"):
            return ""
        node = node.input_value(0).get_node()
    return node.get_element_type().get_type_name() if node.get_type_name() == "Constant" else ""


@contextlib.contextmanager
def without_torch() -> Iterator[None]:
    """Keep NNCF from importing torch, which it does wherever it finds it and needs for PyTorch's models alone."""
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
    """Keep NNCF from sending telemetry: at its import it reads this variable, which its own tests set."""
    before = os.environ.get("NNCF_CI")
    os.environ["NNCF_CI"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["NNCF_CI"]
        else:
            os.environ["NNCF_CI"] = before

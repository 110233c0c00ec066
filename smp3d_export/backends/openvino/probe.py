"""The convolutions of an OpenVINO model that its CPU plugin computes wrongly on this processor; see `probe`.

It is right in f32. OpenVINO has a mark in the file that keeps an operation in it: `precise`, which 2025.0 to 2026.4
read. In int8 the mark does nothing, but a convolution whose weights are stored in f32 is computed in it.

OpenVINO merges a convolution with the elementwise operations behind it, a residual sum among them, and the result has
the type of the last one. If only the convolution has the mark, 2026.4 cannot run the merged one on processors with AMX,
and with a single thread it returns an empty map without an error. So the operations behind it are marked too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import openvino
from openvino import opset13

from smp3d_export import probe
from smp3d_export.contract import INPUT, ShapeContract

TYPES = ("Convolution", "ConvolutionBackpropData", "GroupConvolution", "GroupConvolutionBackpropData")
MERGED = ("Add", "Clamp", "Elu", "HSwish", "HSigmoid", "Mish", "Multiply", "PRelu", "Relu", "Sigmoid", "Swish")
PRECISIONS = {"bf16": "bf16", "f16": "fp16", "i8": "int8"}
HINT = "INFERENCE_PRECISION_HINT"
LIBRARY = "oneDNN in OpenVINO"

Arrays = list[np.ndarray]
Only = Callable[[openvino.Node], bool]
Compute = Callable[[openvino.Model, str, Sequence[Arrays]], list[Arrays]]


@dataclass
class Case:
    """A convolution of a model by its name, with the sizes of its input (N, C, H, W, D) to probe it at."""

    name: str
    sizes: list[tuple[int, ...]] = field(default_factory=list)


def outputs_of(model: openvino.Model, arithmetic: str, inputs: Sequence[Arrays]) -> list[Arrays]:
    """The outputs of a model for each of some inputs, by one thread."""
    compiled = openvino.Core().compile_model(model, "CPU", {HINT: arithmetic, "INFERENCE_NUM_THREADS": 1})
    request = compiled.create_infer_request()
    return [[np.array(value) for value in request.infer(images).values()] for images in inputs]


def wrong(
    model: openvino.Model,
    contract: ShapeContract,
    arithmetic: str,
    *,
    only: Only = lambda operation: True,
    compute: Compute | None = None,
) -> dict[str, str]:
    """The names of the convolutions that come out wrong here in bf16, f16 or i8, with the reason.

    Args:
        model: in fp32 or quantised, with the contract's bounds.
        contract: its shapes.
        arithmetic: what is computed in: f32, which is never wrong, f16, bf16 or i8.
        only: whether a convolution is asked about.
        compute: what computes the probes; OpenVINO by default.
    """
    found = cases(model, contract, only) if arithmetic in PRECISIONS else []
    if not found:
        return {}
    compute = compute or outputs_of
    rounds = max(len(case.sizes) for case in found)
    # With other values each time: memory that the last round left behind is not taken for a result.
    inputs = [
        [np.repeat(probe.image(size), size[1], axis=1) * np.float32(scale) for size in sizes]
        for scale in (1, 1 / 2)
        for sizes in ([case.sizes[min(number, len(case.sizes) - 1)] for case in found] for number in range(rounds))
    ]
    low = "f32" if arithmetic == "i8" else arithmetic
    exact = compute(probes(model, found, quantised=False), "f32", inputs)
    results = compute(probes(model, found, quantised=arithmetic == "i8"), low, inputs)
    reasons: dict[str, str] = {}
    for images, expected, given in zip(inputs, exact, results, strict=True):
        for case, image, a, b in zip(found, images, expected, given, strict=True):
            if probe.is_wrong(b, a):
                reasons.setdefault(case.name, probe.reason(PRECISIONS[arithmetic], LIBRARY, image.shape))
    return reasons


def is_quantised(operation: openvino.Node) -> bool:
    """Whether the weights of an operation are stored in 8 bits."""
    node = operation.input_value(1).get_node()
    while node.get_input_size():
        node = node.input_value(0).get_node()
    return node.get_element_type() in (openvino.Type.i8, openvino.Type.u8)


def dequantise(model: openvino.Model, names: Collection[str]) -> None:
    """Store the weights of some operations in f32, in place, so that they are computed in f32."""
    for operation in model.get_ops():
        if operation.get_friendly_name() in names:
            weights = openvino.Model([operation.input_value(1)], [])  # pyright: ignore[reportGeneralTypeIssues]
            [[values]] = outputs_of(weights, "f32", [[]])
            operation.input(1).replace_source_output(opset13.constant(values).output(0))


def cases(model: openvino.Model, contract: ShapeContract, only: Only) -> list[Case]:
    """The convolutions of a model with the sizes to probe them at; those without any are left out."""
    asked = [operation for operation in model.get_ops() if is_convolution(operation) and only(operation)]
    found = {operation.get_friendly_name(): Case(operation.get_friendly_name()) for operation in asked}
    for shape in probe.shapes(contract):
        sized = model.clone()
        sized.reshape({INPUT: openvino.PartialShape(list(shape))})
        for operation in sized.get_ops():
            case = found.get(operation.get_friendly_name())
            maps = [] if case is None else [operation.input_value(0).partial_shape, operation.output(0).partial_shape]
            if case is None or any(sizes.is_dynamic for sizes in maps):
                continue
            image, output = (tuple(sizes.to_shape()) for sizes in maps)
            if probe.is_thin(image, output) and image not in case.sizes:
                case.sizes.append(image)
    return [case for case in found.values() if case.sizes]


def is_convolution(operation: openvino.Node) -> bool:
    return operation.get_type_name() in TYPES and operation.output(0).partial_shape.rank.get_length() == 5


def probes(model: openvino.Model, cases: Sequence[Case], *, quantised: bool) -> openvino.Model:
    """A model of the convolutions alone, each with the bounds that it has, an image of its own and other weights."""
    weights: dict[tuple[int, ...], openvino.Output] = {}
    images, outputs = [], []
    operations = {operation.get_friendly_name(): operation for operation in model.clone().get_ops()}
    for case in cases:
        operation = operations[case.name]
        shape = tuple(operation.input_value(1).get_shape())
        if shape not in weights:
            values = opset13.constant(np.full(shape, probe.WEIGHT, np.float32)).output(0)
            weights[shape] = rounded(values, -2 * probe.WEIGHT, 2 * probe.WEIGHT, 255) if quantised else values
        image: Any = opset13.parameter(operation.input_value(0).partial_shape, np.float32)
        # At most half of the range: processors without VNNI add two products in 16 bits.
        read = rounded(image.output(0), 0, 2, 256) if quantised else image.output(0)
        operation.input(0).replace_source_output(read)
        operation.input(1).replace_source_output(weights[shape])
        images.append(image)
        outputs.append(opset13.result(operation.output(0)))
    return openvino.Model(outputs, images)  # pyright: ignore[reportGeneralTypeIssues]


def rounded(value: openvino.Output, low: float, high: float, levels: int) -> openvino.Output:
    """A value in 8 bits between two bounds."""
    bounds = [opset13.constant(np.full((1,) * 5, bound, np.float32)) for bound in (low, high)]
    return opset13.fake_quantize(value, *bounds, *bounds, levels).output(0)


def save_in_f32(model: openvino.Model, names: Collection[str], path: Path, *, compress: bool = False) -> None:
    """Write a model, changed in place, as a `.xml` and a `.bin`, with some operations kept in f32.

    `compress` stores the weights in fp16.
    """
    for operation in model.get_ops():
        kind = operation.output(0).get_element_type()
        if operation.get_friendly_name() in names and kind != openvino.Type.f32:  # in a graph of a low precision
            readers = list(operation.output(0).get_target_inputs())
            for place in operation.inputs()[:2]:
                place.replace_source_output(opset13.convert(place.get_source_output(), "f32").output(0))
            operation.validate_and_infer_types()
            lowered = opset13.convert(operation.output(0), kind.to_string())
            for reader in readers:
                reader.replace_source_output(lowered.output(0))
    marked = [
        name for operation in model.get_ops() if operation.get_friendly_name() in names for name in chain(operation)
    ]
    openvino.save_model(model, path, compress_to_fp16=compress)
    if marked:
        mark_precise(path, marked)


def chain(operation: openvino.Node) -> list[str]:
    """The names of an operation and of those that OpenVINO may merge into it."""
    names = [operation.get_friendly_name()]
    while True:
        readers = [place.get_node() for place in operation.output(0).get_target_inputs()]
        readers = [reader for reader in readers if reader.get_type_name() != "ShapeOf"]
        if len(readers) != 1 or readers[0].get_type_name() not in MERGED:
            return names
        [operation] = readers
        names.append(operation.get_friendly_name())


def mark_precise(path: Path, names: Collection[str]) -> None:
    """Put OpenVINO's mark on some operations of a `.xml`."""
    tree = ElementTree.parse(path)
    for layer in tree.iterfind("./layers/layer"):
        if layer.get("name") in names and layer.find("rt_info/attribute[@name='precise']") is None:
            info = layer.find("rt_info")
            if info is None:
                info = ElementTree.Element("rt_info")
                layer.insert(0 if layer.find("data") is None else 1, info)
            ElementTree.SubElement(info, "attribute", name="precise", version="0")
    tree.write(path, encoding="utf-8", xml_declaration=True)

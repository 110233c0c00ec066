"""Means and variances of large maps, in steps, because OpenVINO's CPU plugin adds up a whole map in one go.

Its MVN (instance, group and layer normalisation) and its ReduceMean keep one f32 sum per lane and add the values of a
map to it one after another. Each addition is rounded at the size of the sum, and in constant regions always the same
way: over 96³ voxels a variance was off by 1e-2, and over 128³ voxels with a large mean the sum stopped growing. So the
axes are reduced one by one, the last first, which adds a few hundred values at a time. For axes of n1, n2, n3 values:

    mean(x) = mean1(mean2(mean3(x)))
    rms(d)  = norm1(norm2(norm3(d) / sqrt(n3)) / sqrt(n2)) / sqrt(n1)      norm: the square root of a sum of squares
    MVN(x)  = d / norm(rms(d), sqrt(epsilon)),  d = x - mean(x)

In a group of channels, the channels are one more axis. The variance stays exact if the mean is large, because the mean
is subtracted first. Norms instead of squares stay within the range of f16. Only the order of sums differs from MVN.

OpenVINO would merge a ReduceMean with the next one, so a multiplication by a power of two, which is exact, separates
them. Small maps keep MVN: it is exact enough there, and faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, prod, sqrt
from typing import Any

import numpy as np
import openvino
from openvino import opset13
from openvino.passes import ConstantFolding, Manager

KINDS = ("MVN", "ReduceMean", "GroupNormalization")
FEW = {"f32": 2**10, "f16": 2**18, "bf16": 2**18}
"""Maps of so many values are left alone, by arithmetic: the error on them stays below 2e-5 in f32, and below 1e-3."""
HALF_SCALE = 1 / 16
"""In f16, a row of deviations is scaled by it, because its norm may be larger than any of them."""
HALF_LEAST = 3e-4
"""The least square root of epsilon in f16, where the reciprocal of a smaller deviation would overflow."""
AFFINE: dict[str, Any] = {"Multiply": opset13.multiply, "Add": opset13.add}


def refine(model: openvino.Model, arithmetic: str) -> None:
    """Reduce large maps in steps in every MVN, GroupNormalization and ReduceMean, in place.

    Left alone are maps that are small within the model's bounds, and a single long axis, unless it is a flattened group
    of channels.

    Args:
        model: in fp32 or quantised, with the contract's bounds on its input.
        arithmetic: what it will be computed in: f32, f16 or bf16.
    """
    operations = [operation for operation in model.get_ordered_ops() if operation.get_type_name() in KINDS]
    axes = constant_axes(model, [operation for operation in operations if operation.get_input_size() == 2])
    for operation in operations:
        statistics = statistics_of(operation, axes.get(operation.get_friendly_name(), []))
        if statistics is None or statistics.most <= FEW[arithmetic]:
            continue
        if operation.get_type_name() == "ReduceMean":
            replace_mean(operation, statistics)
        else:
            replace_normalisation(operation, statistics, half=arithmetic == "f16")
    model.validate_nodes_and_infer_types()


def constant_axes(model: openvino.Model, operations: Sequence[openvino.Node]) -> dict[str, list[int]]:
    """The axes of operations, the second input, ascending, by name; without those that depend on an image."""
    if not operations:
        return {}
    # Exporters compute some of them from the rank of a map.
    values = [opset13.result(operation.input_value(1)) for operation in operations]
    graph: Any = openvino.Model(values, model.get_parameters()).clone()  # pyright: ignore[reportGeneralTypeIssues]
    passes = Manager()
    passes.register_pass(ConstantFolding())
    passes.run_passes(graph)
    found: dict[str, list[int]] = {}
    for operation, value in zip(operations, graph.get_results(), strict=True):
        node, rank = value.input_value(0).get_node(), operation.input_value(0).partial_shape.rank
        if node.get_type_name() == "Constant" and rank.is_static:
            found[operation.get_friendly_name()] = sorted(int(a) % rank.get_length() for a in np.ravel(node.get_data()))
    return found


@dataclass(frozen=True)
class Statistics:
    """The mean and the deviation of a map over some axes, ascending; with `groups`, over groups of its axis 1 too."""

    image: openvino.Output
    axes: list[int]
    groups: int | None = None

    @property
    def most(self) -> float:
        """The most values that one mean is of; infinity if an axis has no bound."""
        sizes = [self.image.partial_shape[axis].get_max_length() for axis in self.axes]
        return inf if -1 in sizes else prod(sizes) * self.channels // (self.groups or 1)

    @property
    def channels(self) -> int:
        return self.image.partial_shape[1].get_length() if self.groups else 1

    def mean(self) -> openvino.Output:
        """The mean, with size 1 in the axes."""
        value, kind = self.image, self.image.element_type.to_dtype()
        for step, axis in enumerate(reversed(self.axes)):
            if step:
                value = opset13.multiply(value, np.array(0.5 if step % 2 else 2, kind)).output(0)
            value = opset13.reduce_mean(value, [axis], keep_dims=True).output(0)
        if len(self.axes) % 2 == 0:
            value = opset13.multiply(value, np.array(2, kind)).output(0)
        if self.groups:
            value = self.spread(opset13.reduce_mean(self.grouped(value), [2], keep_dims=True).output(0))
        return value

    def deviation(self, centred: openvino.Output, least: float) -> openvino.Output:
        """sqrt(variance + least²), with size 1 in the axes, from the map less its mean."""
        kind = centred.element_type.to_dtype()
        value = centred
        for axis in reversed(self.axes):
            value = opset13.reduce_l2(value, [axis], keep_dims=True).output(0)
            value = opset13.multiply(value, self.inverse_root(axis)).output(0)
        axis = self.axes[0]
        if self.groups:
            axis, scale = 2, np.array((self.groups / self.channels) ** 0.5, kind)
            value = opset13.reduce_l2(self.grouped(value), [axis], keep_dims=True).output(0)
            value = opset13.multiply(value, scale).output(0)
        rank = len(value.partial_shape)
        after = [int(number == axis) for number in range(rank)]
        value = opset13.pad(value, [0] * rank, after, "constant", np.array(least, kind)).output(0)
        value = opset13.reduce_l2(value, [axis], keep_dims=True).output(0)
        return self.spread(value) if self.groups else value

    def inverse_root(self, axis: int) -> openvino.Output:
        """1 / sqrt(the size of an axis)."""
        kind = self.image.element_type
        size = opset13.gather(opset13.shape_of(self.image), np.array(axis), np.array(0))
        return opset13.power(opset13.convert(size, kind.to_string()), np.array(-0.5, kind.to_dtype())).output(0)

    def grouped(self, value: openvino.Output) -> openvino.Output:
        """A value a channel, (N, C, 1, ...), as (N, groups, channels of a group)."""
        return opset13.reshape(value, np.array([0, self.groups, -1]), special_zero=True).output(0)

    def spread(self, value: openvino.Output) -> openvino.Output:
        """A value a group, (N, groups, 1), as one a channel, (N, C, 1, ...)."""
        assert self.groups
        value = opset13.tile(value, np.array([1, 1, self.channels // self.groups])).output(0)
        ones = [1] * (len(self.image.partial_shape) - 2)
        return opset13.reshape(value, np.array([-1, self.channels, *ones]), special_zero=False).output(0)


def statistics_of(operation: openvino.Node, axes: Sequence[int]) -> Statistics | None:
    """What an operation computes; None if it cannot be reduced in steps."""
    kind, image, attributes = operation.get_type_name(), operation.input_value(0), operation.get_attributes()
    if kind == "GroupNormalization":
        return grouped(image, attributes["num_groups"])
    if kind == "MVN" and not attributes["normalize_variance"]:
        return None
    if len(axes) > 1:
        return Statistics(image, list(axes))
    return flattened(image) if kind == "MVN" and axes == [2] else None


def grouped(image: openvino.Output, groups: int) -> Statistics | None:
    shape = image.partial_shape
    if shape.rank.is_dynamic or len(shape) < 3 or shape[1].is_dynamic or shape[1].get_length() % groups:
        return None
    return Statistics(image, list(range(2, len(shape))), groups)


def flattened(rows: openvino.Output) -> Statistics | None:
    """The statistics of rows (N, groups, everything else) that are a reshaped map: a group normalisation."""
    reshape = rows.get_node()
    if reshape.get_type_name() != "Reshape" or not reshape.get_attributes()["special_zero"]:
        return None
    target = reshape.input_value(1).get_node()
    if target.get_type_name() != "Constant":
        return None
    sizes = [int(size) for size in np.ravel(target.get_data())]
    if len(sizes) != 3 or sizes[0] != 0 or sizes[1] < 1 or sizes[2] != -1:
        return None
    return grouped(reshape.input_value(0), sizes[1])


def replace_mean(operation: openvino.Node, statistics: Statistics) -> None:
    value = statistics.mean()
    if not operation.get_attributes()["keep_dims"]:
        value = opset13.squeeze(value, np.array(statistics.axes)).output(0)
    put(value, operation)


def replace_normalisation(operation: openvino.Node, statistics: Statistics, *, half: bool) -> None:
    attributes, image = operation.get_attributes(), statistics.image
    kind = image.element_type.to_dtype()
    inside = attributes.get("eps_mode") != "OUTSIDE_SQRT"
    epsilon = float(attributes["epsilon" if operation.get_type_name() == "GroupNormalization" else "eps"])
    least = sqrt(epsilon) if inside else epsilon
    centred = opset13.subtract(image, statistics.mean()).output(0)
    if half:
        centred = opset13.multiply(centred, np.array(HALF_SCALE, kind)).output(0)
        least = max(least, HALF_LEAST) * HALF_SCALE
    deviation = statistics.deviation(centred, least if inside else 0)
    if not inside:
        deviation = opset13.add(deviation, np.array(least, kind)).output(0)
    value = opset13.divide(centred, deviation).output(0)
    if operation.get_type_name() == "GroupNormalization":
        per_channel = np.array([1, -1, *[1] * len(statistics.axes)])
        scale, bias = (opset13.reshape(operation.input_value(i), per_channel, special_zero=False) for i in (1, 2))
        put(opset13.add(opset13.multiply(value, scale), bias).output(0), operation)
    elif statistics.groups:
        put_rows(value, operation, statistics)
    else:
        put(value, operation)


def put(value: openvino.Output, operation: openvino.Node) -> None:
    """Give a value to the readers of an operation, under its name."""
    value.get_node().set_friendly_name(operation.get_friendly_name())
    value.add_names(operation.output(0).names)
    operation.output(0).replace(value)


def put_rows(value: openvino.Output, operation: openvino.Node, statistics: Statistics) -> None:
    """Give a map to the readers of an operation that computes the map in rows.

    Behind the operation there may be a scale and a shift of every group, and the rows are then reshaped to the map.
    The scale and the shift are applied to the map too, so that its memory layout need not change.
    """
    rows = operation
    while True:
        readers: list[openvino.Node] = []
        for place in rows.output(0).get_target_inputs():
            if place.get_node().get_type_name() == "ShapeOf":  # it would keep the operation in the graph
                place.replace_source_output(operation.input_value(0))
            else:
                readers.append(place.get_node())
        if len(readers) != 1:
            break
        [reader] = readers
        shape = reader.input_value(1).get_node() if reader.get_input_size() == 2 else None
        if reader.get_type_name() == "Reshape" and shape and is_shape_of(shape, statistics.image):
            put(value, reader)
            return
        operand = per_group(reader, rows, statistics.groups)
        if operand is None:
            break
        value = AFFINE[reader.get_type_name()](value, statistics.spread(operand)).output(0)
        rows = reader
    put(opset13.reshape(value, operation.input_value(0).get_node().input_value(1), special_zero=True).output(0), rows)


def is_shape_of(node: openvino.Node, image: openvino.Output) -> bool:
    source = node.input_value(0) if node.get_type_name() == "ShapeOf" else None
    return source is not None and source.get_node() == image.get_node() and source.get_index() == image.get_index()


def per_group(reader: openvino.Node, rows: openvino.Node, groups: int | None) -> openvino.Output | None:
    """What a scale or shift of rows, (1, groups, 1), applies to them; None if the reader is something else."""
    if reader.get_type_name() not in AFFINE:
        return None
    [operand] = [place for place in reader.input_values() if place.get_node() != rows] or [None]
    fits = operand is not None and operand.partial_shape == openvino.PartialShape([1, groups or 1, 1])
    return operand if fits else None

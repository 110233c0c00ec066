"""Captured program -> ONNX graph, by PyTorch's dynamo exporter and onnxsim."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from smp3d_export.contract import AXES, INPUT
from smp3d_export.errors import ExportError
from smp3d_export.hardware import return_free_memory
from smp3d_export.onnxgraph.graph import in_files, too_large
from smp3d_export.onnxgraph.opset import EXPORTED, lower_opset, opset_of, set_opset
from smp3d_export.quiet import quiet

if TYPE_CHECKING:
    import onnx

    from smp3d_export.program.capture import Captured


def convert(captured: Captured, opset: int) -> onnx.ModelProto:
    """The ONNX graph of a captured program, which may be in half precision.

    Raises:
        ExportError: the exporter fails, or an operator of the network does not exist in the operator set.
    """
    import torch

    written = max(opset, EXPORTED[0])
    try:
        with quiet():
            program = torch.onnx.export(
                captured.program,
                dynamo=True,
                opset_version=written,
                input_names=[INPUT],
                output_names=list(captured.outputs),
                verbose=False,
            )
            assert program is not None
            weights = take_weights(program)
            model = program.model_proto
    except Exception as error:  # the exporter passes on whatever a decomposition raises
        hint = (
            ". Some operators cannot be exported with dynamic axes: try --static" if captured.contract.dynamic else ""
        )
        raise ExportError(f"the ONNX exporter failed: {type(error).__name__}: {error}{hint}") from error
    made = opset_of(model)
    if made != written:
        raise ExportError(f"opset {written} was requested, but the exporter wrote {made}: use --opset {made}")
    if not too_large(model):
        model = checked(simplified(model))
    give_back(model, weights)
    tidy(model, captured)
    if opset < written:
        lower_opset(model, opset)
        checked(model)
    set_opset(model, opset)
    return model


def take_weights(program: Any) -> dict[str, Any]:
    """Make the weights of convolutions inputs of a graph. They are most of it, and nothing folds them any further.

    Further copies of the graph, of which onnxsim makes several, then have no weights.
    """
    graph = program.model.graph
    weights = {}
    for name, value in list(graph.initializers.items()):
        if all(use.node.op_type in ("Conv", "ConvTranspose") for use in value.uses()):
            weights[name] = value.const_value
            del graph.initializers[name]
            graph.inputs.append(value)
    return weights


def give_back(model: onnx.ModelProto, weights: Mapping[str, Any]) -> None:
    """Undo `take_weights`. Each weight is copied once, the largest first, while there are few others."""
    graph = model.graph
    inputs = [value for value in graph.input if value.name not in weights]
    used = {name for node in graph.node for name in node.input}
    del graph.input[:]
    graph.input.extend(inputs)
    for name, tensor in sorted(weights.items(), key=lambda item: item[1].nbytes, reverse=True):
        if name in used:
            graph.initializer.add(
                name=name, data_type=int(tensor.dtype), dims=tuple(tensor.shape), raw_data=tensor.tobytes()
            )
    return_free_memory()


def checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, if it is valid.

    Raises:
        ExportError: it is not.
    """
    import onnx

    try:
        if too_large(model):
            with in_files(model) as file:
                onnx.checker.check_model(file)
        else:
            onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the exporter wrote an invalid ONNX graph: {error}") from error
    return model


def simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model after onnxsim's constant folding and graph simplification.

    Raises:
        ExportError: onnxsim fails.
    """
    import onnxsim

    try:
        with quiet():
            result, _ = onnxsim.simplify(model)  # onnxsim's own check is skipped: parity is stricter
    except Exception as error:
        raise ExportError(f"onnxsim failed: {error}") from error
    return result


def tidy(model: onnx.ModelProto, captured: Captured) -> None:
    """Name the axes as the contract does, and drop the exporter's stack traces, which hold paths of this machine."""
    graph = model.graph
    dynamic = {axis.name for axis in captured.contract.dynamic}
    for value in graph.input:
        name_axes(value, {number: name for number, name in enumerate(AXES) if name in dynamic})
    for place, value in enumerate(graph.output):
        names = enumerate(captured.axes_of(place))
        # An axis of another size, such as half the input's, must not have its name.
        name_axes(value, {number: name or f"{value.name}_{number}" for number, name in names})
    del graph.value_info[:]  # shapes in the exporter's own symbols
    for item in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    model.producer_name = "smp3d-export"


def name_axes(value: onnx.ValueInfoProto, names: Mapping[int, str]) -> None:
    for number, dim in enumerate(value.type.tensor_type.shape.dim):
        if number in names and not dim.HasField("dim_value"):
            dim.dim_param = names[number]

"""ONNX by the dynamo exporter of PyTorch, simplified by onnxsim."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smp3d_export.contract import AXES, INPUT, OUTPUT_AXES
from smp3d_export.errors import ExportError, UsageError
from smp3d_export.hardware import return_free_memory
from smp3d_export.targets import Exported, Options, Precision, Support
from smp3d_export.targets.sizes import megabytes

if TYPE_CHECKING:
    import onnx

    from smp3d_export.capture import Captured
    from smp3d_export.targets import Exportable

name = "onnx"
suffix = ".onnx"
from_onnx = False

FILE = "model.onnx"
PRECISIONS = (Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8)
OPSETS = range(18, 26)


def support(precision: Precision, device: str) -> Support:
    if precision not in PRECISIONS:
        return Support.none(name, precision, PRECISIONS)
    return Support.yes()


def check(options: Options) -> None:
    import onnx

    newest = min(OPSETS[-1], onnx.defs.onnx_opset_version())
    if options.opset not in range(OPSETS[0], newest + 1):
        raise UsageError(f"--opset is {options.opset}; it must be {OPSETS[0]} to {newest}")


def export(captured: Captured, options: Options, folder: Path) -> Exported:
    """Write `model.onnx`, its weights beside it where they are over 2 GB.

    Raises:
        ExportError: the exporter fails, or makes no valid ONNX of the opset that was asked for.
    """
    import onnx

    from smp3d_export.onnx_file import PREFIX
    from smp3d_export.onnx_graph import save, too_large

    model, planes = graph(captured, options), {}
    if captured.for_cpu and options.precision is Precision.FP32:
        model, planes = rewritten_by_planes(model, captured)
    quantisation = quantised_from(model, options)
    embedded = {f"{PREFIX}{key}": json.dumps(value) for key, value in {**quantisation, **planes}.items()}
    onnx.helper.set_model_props(model, {**options.metadata, **embedded})
    if too_large(model):
        onnx.save_model(model, folder / FILE, save_as_external_data=True, location=f"{FILE}.data")
    else:
        save(model, folder / FILE)
    size = sum(file.stat().st_size for file in folder.glob(f"{FILE}*"))
    nodes = len(model.graph.node)
    summary = f"opset {options.opset}, {nodes} nodes, {megabytes(size)}"
    facts: dict[str, Any] = {
        "opset": options.opset,
        "nodes": nodes,
        **kept_fp32(captured, options),
        **quantisation,
        **planes,
    }
    return Exported(summary, facts, model)


def rewritten_by_planes(model: onnx.ModelProto, captured: Captured) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The graph for ONNX Runtime alone, others having the one that it is made of, and what a manifest says of it."""
    import onnx

    from smp3d_export.targets.planes import by_planes

    own = onnx.ModelProto()
    own.CopyFrom(model)
    if not (times := by_planes(own)):
        return model, {}
    return own, {"optimisations": {**captured.rewrites, "planes": times}}


def kept_fp32(source: Exportable, options: Options) -> dict[str, Any]:
    """For the manifest: what stays in fp32 of a captured program that is exported in a lower precision."""
    from smp3d_export.onnx_file import OnnxFile

    if isinstance(source, OnnxFile) or options.precision not in (Precision.FP16, Precision.BF16):
        return {}
    from smp3d_export.lower import lowered

    return {"kept_fp32": dict(lowered(source, options).kept)}


def quantised_from(model: onnx.ModelProto, options: Options) -> dict[str, Any]:
    """For the manifest: what of a graph is in int8, and which volumes its ranges are from; nothing of others."""
    if options.precision is not Precision.INT8 or options.calibration is None:
        return {}
    from smp3d_export.targets import quantise

    return {"quantisation": quantise.facts(model), "calibration": options.calibration.to_dict()}


def graph(source: Exportable, options: Options) -> onnx.ModelProto:
    """The ONNX graph of a captured program, or of an ONNX file, in the precision that is asked for.

    Raises:
        ExportError: the exporter fails, or makes another opset.
        UsageError: the file is in another precision.
    """
    from smp3d_export.onnx_file import OnnxFile
    from smp3d_export.targets import quantise

    if options.precision is Precision.INT8 and source.precision is not Precision.INT8:
        assert options.calibration is not None
        return quantise.quantised(source, options.calibration, options.opset)
    if isinstance(source, OnnxFile):
        return source.graph(options.precision)
    from smp3d_export.lower import lowered

    return convert(lowered(source, options), options.opset)


@lru_cache(maxsize=3)  # the forms that --optimise auto has the choice of
def convert(captured: Captured, opset: int) -> onnx.ModelProto:
    """The ONNX graph of a captured program, once for however many targets are made from it.

    Raises:
        ExportError: the exporter fails, or makes another opset.
    """
    import torch

    from smp3d_export.onnx_graph import too_large

    try:
        with quiet():
            program = torch.onnx.export(
                captured.program,
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=list(captured.outputs),
                verbose=False,
            )
            assert program is not None
            weights = take_weights(program)
            model = program.model_proto
    except Exception as error:  # the exporter lets whatever a decomposition raises through
        hint = ". Some operators have no form for dynamic axes: --static may do" if captured.contract.dynamic else ""
        raise ExportError(f"the ONNX exporter failed: {type(error).__name__}: {error}{hint}") from error
    made = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if made != opset:
        raise ExportError(f"opset {opset} was asked for, but the exporter made {made}: give --opset {made}")
    if not too_large(model):
        model = checked(simplified(model))
    give_back(model, weights)
    tidy(model, captured)
    return model


def take_weights(program: Any) -> dict[str, Any]:
    """Make the weights of convolutions inputs of a graph, for they are most of it and nothing folds them any further.

    What copies a graph from here on, onnxsim several times, copies no weights.
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
    """Undo `take_weights`; each weight is copied this once, the largest while there are few others."""
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
    """The model, which is valid.

    Raises:
        ExportError: it is not.
    """
    import onnx

    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the exporter made no valid ONNX: {error}") from error
    return model


def simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model after onnxsim's constant folding and graph simplification.

    Raises:
        ExportError: onnxsim fails.
    """
    import onnxsim

    try:
        with quiet():
            result, _ = onnxsim.simplify(model)  # its own check is left out: parity is a stricter one
    except Exception as error:
        raise ExportError(f"onnxsim failed: {error}") from error
    return result


def tidy(model: onnx.ModelProto, captured: Captured) -> None:
    """Name the axes as the contract does, and drop the exporter's traces, which hold paths of this machine."""
    graph = model.graph
    dynamic = {axis.name for axis in captured.contract.dynamic}
    for value in graph.input:
        name_axes(value, {number: name for number, name in enumerate(AXES) if name in dynamic})
    for value in graph.output:
        axes = OUTPUT_AXES[len(value.type.tensor_type.shape.dim)]
        name_axes(value, {number: axes[number] for number in range(len(axes)) if axes[number] in dynamic})
    del graph.value_info[:]  # shapes in the exporter's own symbols
    for item in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    model.producer_name = "smp3d-export"


def name_axes(value: onnx.ValueInfoProto, names: Mapping[int, str]) -> None:
    for number, dim in enumerate(value.type.tensor_type.shape.dim):
        if number in names:
            dim.dim_param = names[number]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' chatter from the user; what matters of it is checked afterwards."""
    logger: Any = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

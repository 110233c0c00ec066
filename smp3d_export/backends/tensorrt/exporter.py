"""TensorRT and TensorRT-RTX engines, from the ONNX graph with a profile from the contract.

The two have the same Python API under two names, so they share this implementation and have a row each. The precision
is in the graph: TensorRT 11 knows no other way, and 10 accepts it as a strongly typed network. The only builder flag is
TF32, which is on by default for fp32.

TensorRT chooses kernels by running them, so it builds on the GPU that the engine is for. TensorRT-RTX leaves that to
the first run, so it builds anywhere, for given compute capabilities.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smp3d_export import hardware
from smp3d_export.backends import exporter
from smp3d_export.backends.exporter import Exported, Support
from smp3d_export.backends.tensorrt.cuda import Cuda, logger
from smp3d_export.contract import INPUT, Shape, ShapeContract, written
from smp3d_export.device import gpu_number
from smp3d_export.errors import ExportError, UsageError
from smp3d_export.onnxgraph import int8
from smp3d_export.onnxgraph.graph import in_files, in_fp32, tensor_shapes, tensor_types, too_large
from smp3d_export.onnxgraph.opset import check_opset
from smp3d_export.precision import Precision
from smp3d_export.progress import megabytes
from smp3d_export.settings import Settings

if TYPE_CHECKING:
    from onnx import ModelProto

    from smp3d_export.backends.variant import Variant

LARGEST_TENSOR = 2**31 - 1
"""In elements: TensorRT's kernels count in 32 bits."""

# ONNX's numbers for types of values, with TensorRT's names.
TYPES = {1: "FLOAT", 10: "HALF", 16: "BF16", 3: "INT8", 6: "INT32", 7: "INT64", 9: "BOOL"}
# The types of an engine by its precision: those that may occur, and the one that must.
COMPUTED = {
    Precision.FP32: ({"FLOAT"}, "FLOAT"),
    Precision.TF32: ({"FLOAT"}, "FLOAT"),
    Precision.FP16: ({"FLOAT", "HALF"}, "HALF"),
    Precision.BF16: ({"FLOAT", "BF16"}, "BF16"),
    Precision.INT8: ({"FLOAT", "INT8"}, "INT8"),
}


WITHOUT: Mapping[tuple[str, Precision], frozenset[str]] = {
    ("trt-rtx", Precision.BF16): frozenset({"ConvTranspose"}),
}
"""ONNX operators without a kernel in a precision, by target: they stay in fp32."""


class Exporter(exporter.Exporter):
    """Writes `model.engine`. The parsed network is read back, and must match what was requested."""

    def run_support(self, precision: Precision, device: str) -> Support:
        if find_spec("cuda") is None:
            return Support.no("cuda-python is not installed", self.row.install)
        here = [gpu["compute_capability"] for gpu in hardware.gpus()]
        if not self.row.builds_on_gpu and not {*here} & {*self.capabilities()}:
            return Support.no(
                f"{self.row.title} builds for the compute capabilities {', '.join(self.capabilities())}, and the GPU "
                f"of this machine has {', '.join(here)}"
            )
        return Support.yes()

    def check(self, settings: Settings) -> None:
        check_opset(settings.opset)
        if not settings.gpus:
            return
        library = self.row.library
        if self.row.builds_on_gpu:
            raise UsageError(f"--gpu does not go with {self.row.name}, which builds for the GPU of this machine")
        if find_spec(library) is None:
            return
        possible = self.capabilities()
        for gpu in settings.gpus:
            if gpu not in possible:
                raise UsageError(
                    f"--gpu is {gpu}, but {self.row.title} does not build for that compute capability: use one of "
                    f"{', '.join(possible)}"
                )

    def capabilities(self) -> list[str]:
        """The compute capabilities that the library builds for, such as `8.6`."""
        names = importlib.import_module(self.row.library).ComputeCapability.__members__
        numbers = sorted(int(name.removeprefix("SM")) for name in names if name.startswith("SM"))
        return [f"{number // 10}.{number % 10}" for number in numbers]

    def export(self, variant: Variant, settings: Settings, folder: Path) -> Exported:
        precision, contract = settings.precision, variant.contract
        if precision is Precision.TF32:  # TF32 is a flag of the builder; the graph is fp32
            settings = replace(settings, precision=Precision.FP32)
        graph, kept = in_fp32(variant.graph(settings), WITHOUT.get((self.row.name, precision), frozenset()))
        quantised = int8.facts_of(graph, settings)
        check_sizes(graph, contract.max, self.row.name)

        trt = importlib.import_module(self.row.library)
        if self.row.builds_on_gpu and gpu_number(settings.device):
            Cuda(gpu_number(settings.device))
        log = logger(trt)
        builder = trt.Builder(log)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parse(trt.OnnxParser(network, log), graph)
        config = builder.create_builder_config()
        (config.set_flag if precision is Precision.TF32 else config.clear_flag)(trt.BuilderFlag.TF32)
        if settings.gpus:
            config.num_compute_capabilities = len(settings.gpus)
            for number, gpu in enumerate(settings.gpus):
                config.set_compute_capability(trt.ComputeCapability.__members__[f"SM{gpu.replace('.', '')}"], number)
        profile = builder.create_optimization_profile()
        profile.set_shape(INPUT, contract.min, contract.opt, contract.max)
        config.add_optimization_profile(profile)
        facts = read_back(network, profile) | {"gpus": self.gpus(settings), "kept_fp32": kept}
        check_engine(facts, contract, variant.outputs, precision, tensor_types(graph))

        engine = builder.build_serialized_network(network, config)
        if engine is None:
            raise ExportError(f"{self.row.library} cannot build the engine: {operator_of(graph, log.errors)}")
        (folder / self.row.files[0]).write_bytes(engine)
        layers, size, gpus = network.num_layers, megabytes(engine.nbytes), facts["gpus"]
        where = f"compute capability {', '.join(gpus)}" if settings.gpus else gpus[0]
        summary = f"{layers} layers, {size}, for {where}"
        return Exported(summary, {"engine": facts, **variant.kept_fp32(settings), **quantised}, graph)

    def gpus(self, settings: Settings) -> list[str]:
        """The GPUs that the engine is for, as the manifest lists them."""
        if not self.row.builds_on_gpu:
            return list(settings.gpus) or ["the builder's default GPUs"]
        gpu = hardware.gpus()[gpu_number(settings.device)]
        return [f"{gpu['name']} ({gpu['compute_capability']})"]


def check_sizes(model: ModelProto, largest: Shape, target: str) -> None:
    """Refuse a graph with a tensor that is too large, before minutes are spent on building.

    Raises:
        ExportError: it names the layer, the tensor's size and the limit.
    """
    shapes = tensor_shapes(model, largest)
    for node in model.graph.node:
        for name in node.output:
            elements = prod(shapes.get(name, ()))
            if elements > LARGEST_TENSOR:
                size = "×".join(map(str, shapes[name]))
                raise ExportError(
                    f"at the contract's maximum {written(largest)} the output of {layer_of(node)} has {size} = "
                    f"{elements} elements, but {target} takes at most {LARGEST_TENSOR} (2^31 - 1) per tensor: give a "
                    "smaller --max"
                )


def layer_of(node: Any) -> str:
    """A node by its operator and the layer that its weights belong to, or by its own name."""
    weights = [name.rpartition(".") for name in node.input]
    layers = [layer for layer, _, leaf in weights if leaf.partition("__")[0] in ("weight", "bias")]
    return f"{layers[0] if layers else node.name or node.output[0]} ({node.op_type})"


def parse(parser: Any, model: ModelProto) -> None:
    """Give a graph to the parser. A graph over 2 GB is passed in files.

    Raises:
        ExportError: the parser does not support an operator; the message names it.
    """
    if not too_large(model):
        parsed = parser.parse(model.SerializeToString())
    else:
        with in_files(model) as file:
            parsed = parser.parse_from_file(str(file))
    if not parsed:
        error = parser.get_error(0)
        raise ExportError(
            f"TensorRT's parser does not support {error.node_operator() or 'the graph'} ({error.node_name()}): "
            f"{error.desc()}"
        )


def read_back(network: Any, profile: Any) -> dict[str, Any]:
    """The bindings, profile and tensor types of a parsed network, and how many tensors have each type."""
    tensors = [
        layer.get_output(number)
        for layer in (network.get_layer(number) for number in range(network.num_layers))
        for number in range(layer.num_outputs)
    ]
    bindings = [network.get_input(number) for number in range(network.num_inputs)]
    bindings += [network.get_output(number) for number in range(network.num_outputs)]
    return {
        "layers": network.num_layers,
        "bindings": [
            {"name": tensor.name, "type": tensor.dtype.name, "shape": [int(size) for size in tensor.shape]}
            for tensor in bindings
        ],
        "profile": [[int(size) for size in shape] for shape in profile.get_shape(INPUT)],
        "types": dict(Counter(tensor.dtype.name for tensor in tensors)),
        "tensors": {tensor.name: tensor.dtype.name for tensor in tensors},
    }


def check_engine(
    facts: dict[str, Any],
    contract: ShapeContract,
    outputs: Mapping[str, int],
    precision: Precision,
    types: Mapping[str, int],
) -> None:
    """Compare what was read back with what was requested: bindings, profile, and the type of every tensor.

    `types` are the types of the graph's tensors by name; the network keeps most of the names. The hundreds of names are
    removed from the facts.

    Raises:
        ExportError: something differs.
    """
    ranges = zip(contract.axes, contract.opt, strict=True)
    expected = {INPUT: ("FLOAT", [-1 if axis.dynamic else size for axis, size in ranges])}
    found = {binding["name"]: (binding["type"], binding["shape"]) for binding in facts["bindings"]}
    if found.get(INPUT) != expected[INPUT] or {*found} != {INPUT, *outputs}:
        raise ExportError(f"the parsed network has the bindings {found}; it should have {expected} and {list(outputs)}")
    for name, axes in outputs.items():
        if len(found[name][1]) != axes:
            raise ExportError(f"the parsed network's {name} has the axes {found[name][1]}; it must have {axes}")
    profile = [list(contract.min), list(contract.opt), list(contract.max)]
    if facts["profile"] != profile:
        raise ExportError(f"the engine's profile is {facts['profile']}; the contract asks for {profile}")
    tensors = facts.pop("tensors")
    for name, kind in tensors.items():
        if name in types and TYPES.get(types[name], kind) != kind:
            raise ExportError(f"the parsed network has {name} in {kind}; in the graph it is in {TYPES[types[name]]}")
    possible, must = COMPUTED[precision]
    kinds = {kind for kind in tensors.values() if kind in ("FLOAT", "HALF", "BF16", "INT8")}
    if not kinds <= possible or must not in kinds:
        raise ExportError(f"the parsed network computes in {', '.join(sorted(kinds))}, which is not {precision}")


def operator_of(model: ModelProto, errors: list[str]) -> str:
    """The builder's last error, with the operator if a node is named in it."""
    message = errors[-1] if errors else "it does not say why"
    nodes = [node for node in model.graph.node if node.name and f"'{node.name}'" in message]
    return f"no kernel for {layer_of(nodes[0])}: {message}" if nodes else message

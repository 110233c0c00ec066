"""Model + contract -> captured program: one graph for every shape of the contract."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import re
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import Node

from smp3d_export.contract import AXES, Shape, ShapeContract, output_axes
from smp3d_export.errors import ExportError
from smp3d_export.precision import Precision
from smp3d_export.quiet import quiet

FIXED = (
    r"You marked \S*?([nhwd])(?:_steps|_before)?\S* as dynamic but your code specialized it to be a constant \((\d+)\)"
)
"""What PyTorch says of an axis that turns out not to be dynamic."""


@dataclass(frozen=True, eq=False)
class Captured:
    """A network as one graph, with what every target needs to know about it.

    `outputs` maps the name of each output to its number of axes: `masks` (N, classes, H, W, D), or (N, H, W, D) if they
    are class numbers; and `labels` (N, classes) with a classification head. A network of the user's has other outputs.
    `rewrites` says how often each rewrite of the optimiser was applied, and `rejected` why others were not kept.
    `precision` is the precision of the graph, and `kept` names the layers that stay in fp32 nevertheless, with the
    reason. `for_cpu` says that the graph is optimised for CPUs, whatever that costs elsewhere, and
    `up_to_max` that it is wrong above the contract's maximum.
    """

    program: ExportedProgram
    contract: ShapeContract
    outputs: dict[str, int]
    rewrites: Mapping[str, int] = field(default_factory=dict)
    rejected: Mapping[str, str] = field(default_factory=dict)
    precision: Precision = Precision.FP32
    kept: Mapping[str, str] = field(default_factory=dict)
    for_cpu: bool = False
    up_to_max: bool = False

    def axes_of(self, number: int) -> list[str | None]:
        """The names of an output's axes that have the size of the input's axis of this name; None for the others."""
        graph = self.program.graph
        [image] = (node for node in graph.nodes if node.name in self.program.graph_signature.user_inputs)
        sizes = image.meta["val"].shape
        dynamic = {name: _hint(size) for name, size in zip(AXES, sizes, strict=True) if isinstance(size, torch.SymInt)}
        found = graph.output_node().all_input_nodes[number].meta["val"].shape
        names = zip(output_axes(len(found)), found, strict=True)
        return [name if name in dynamic and _hint(size) == dynamic[name] else None for name, size in names]

    def holds(self, shape: Shape) -> bool:
        """Whether the graph is right at a shape: whether what the network decides by sizes comes out the same there.

        PyTorch notes these decisions as Python expressions. Those that a size is not 1 are left out: it decides so for
        its own sake, in operators that are right at 1 too.
        """
        names = {"image": torch.empty(shape, device="meta"), "max": max, "min": min, "abs": abs, "math": math}
        for condition in getattr(self.program, "_guards_code", ()):
            code = re.sub(r"L(\['?\w+'?\])+", "image", condition)
            try:
                if not code.endswith("!= 1") and not eval(code, {"__builtins__": {}}, names):
                    return False
            except (NameError, TypeError, ZeroDivisionError):
                continue  # parity at this contract's shapes has the last word
        return True


def capture(model: nn.Module, contract: ShapeContract, outputs: Sequence[str] = ("masks", "labels")) -> Captured:
    """Trace a model in eval mode with `torch.export`, keeping the contract's dynamic axes symbolic.

    `outputs` are the names of what it returns.

    Raises:
        ExportError: the network cannot be captured, or one of the axes turns out not to be dynamic.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    example = torch.zeros(contract.example(), device=device)
    logging.getLogger("torch.fx.experimental.symbolic_shapes").setLevel(logging.ERROR)
    try:
        # PyTorch prints the graph to stderr if it cannot go on.
        with torch.no_grad(), quiet(), contextlib.redirect_stderr(io.StringIO()):
            program = torch.export.export(model, (example,), dynamic_shapes=(contract.torch_dims(),), strict=False)
    except Exception as error:  # torch.export passes on whatever an operator raises
        raise ExportError(f"the network cannot be captured with the axes {contract}: {reason(error)}") from error
    returned = [node.meta["val"].ndim for node in program.graph.output_node().all_input_nodes]
    return Captured(program, contract, dict(zip(outputs, returned, strict=False)))


def reason(error: BaseException) -> str:
    """Why a network cannot be captured, in a line, with the line of its code if that is known."""
    text = str(error)
    fixed = {name.upper(): size for name, size in re.findall(FIXED, text)}
    if fixed:
        sizes = ", ".join(f"{name} at {size}" for name, size in sorted(fixed.items()))
        return (
            f"its code fixes {sizes}. It turns the size of an axis into a plain number, as int(x.shape[2]) or "
            "torch.linspace do, or decides by it"
        )
    if "data-dependent" in text:
        return f"{users_line(error)}the network decides by values of the volume, which one graph cannot"
    first = next((line for line in text.splitlines() if line.strip()), type(error).__name__)
    return f"{users_line(error)}{first.strip()[:300]}"


def users_line(error: BaseException) -> str:
    """Where an error arose in the network's own code: the deepest line outside PyTorch and this package."""
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((*ours, "<")):
            return f"{Path(frame.filename).name}:{frame.lineno} ({frame.line}): "
    return ""


def activation_bytes(captured: Captured) -> int:
    """The peak memory of activations in eager execution at the optimum shape, in bytes.

    Computed from the lifetime of every tensor in the graph. It grows with N·H·W·D, so other shapes can be estimated.
    """
    graph = captured.program.graph
    last_use: dict[Node, Node] = {}
    for node in graph.nodes:
        for source in node.all_input_nodes:
            last_use[source] = node
    parameters = set(captured.program.graph_signature.inputs_to_parameters) | set(
        captured.program.graph_signature.inputs_to_buffers
    )
    live: dict[Node, int] = {}
    peak = 0
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and node.name not in parameters:
            live[node] = prod(_hint(size) for size in value.shape) * value.element_size()
        peak = max(peak, sum(live.values()))
        for source in node.all_input_nodes:
            if last_use[source] is node:
                live.pop(source, None)
    example, optimum = prod(captured.contract.example()), prod(captured.contract.opt)
    return peak * optimum // example


def _hint(size: int | torch.SymInt) -> int:
    return size if isinstance(size, int) else int(size.node.hint)

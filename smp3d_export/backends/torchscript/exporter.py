"""TorchScript, for LibTorch in C++ and for PyTorch without the network's code.

The captured graph is compiled as it is, not traced again: a trace would freeze the example's sizes wherever the graph
computes with sizes. The file checks the shape of its input, because LibTorch would run any.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smp3d_export.backends import exporter
from smp3d_export.backends.exporter import Exported
from smp3d_export.errors import ExportError
from smp3d_export.progress import megabytes
from smp3d_export.settings import Settings

if TYPE_CHECKING:
    from torch.fx import GraphModule
    from torch.nn import Module

    from smp3d_export.backends.variant import Variant
    from smp3d_export.contract import ShapeContract


class Exporter(exporter.Exporter):
    """Writes `model.ts`. Its extra files hold what an ONNX file has as metadata."""

    def export(self, variant: Variant, settings: Settings, folder: Path) -> Exported:
        import torch

        from smp3d_export.program import probe
        from smp3d_export.program.graph import graph_module
        from smp3d_export.program.memory_format import channels_last

        captured, file = variant.lowered(settings, runs_in_torch=True), folder / self.row.files[0]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # TorchScript is deprecated
                script = torch.jit.script(checking(scriptable(channels_last(captured)), captured.contract))
                program = torch.jit.freeze(script)
                torch.jit.save(program, str(file), _extra_files=dict(settings.metadata))
        except RuntimeError as error:
            raise ExportError(f"TorchScript cannot compile the graph: {error}") from error
        nodes = sum(1 for _ in program.graph.nodes())
        facts: dict[str, Any] = {"nodes": nodes, "memory_format": "channels_last_3d"}
        facts |= probe.facts(graph_module(captured), captured.contract, settings.precision)
        if captured.kept:
            facts["kept_fp32"] = dict(captured.kept)
        return Exported(f"{nodes} nodes, {megabytes(file.stat().st_size)}", facts)


def checking(program: GraphModule, contract: ShapeContract) -> Module:
    """The program behind a check of its input's shape, which raises a `ValueError` that names the axis."""
    from torch import Tensor, nn

    class Checked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.program = program
            self.axes = [(axis.name, axis.min, axis.max, axis.multiple) for axis in contract.axes]
            self.training = False  # as eval() would set it, which modules of exported programs refuse

        def forward(self, image: Tensor):
            if image.dim() != len(self.axes):
                raise ValueError(f"the image has {image.dim()} axes, not 5: N, C, H, W, D")
            for number, (name, lowest, largest, multiple) in enumerate(self.axes):
                size = image.size(number)
                if size < lowest or size > largest or size % multiple != 0:
                    raise ValueError(f"{name} is {size}; it must be {lowest} to {largest}, a multiple of {multiple}")
            return self.program(image)

    return Checked()


def scriptable(module: GraphModule) -> GraphModule:
    """The module in a form that TorchScript compiles: operators without an overload, which it resolves itself."""
    from torch._ops import OpOverload
    from torch.fx import GraphModule
    from torch.fx.graph import CodeGen

    from smp3d_export.program.graph import aten, operator

    graph = module.graph
    graph.set_codegen(CodeGen())  # plain arguments and results, not the exported program's trees
    (image,) = graph.find_nodes(op="placeholder")
    with graph.inserting_after(image):
        device = graph.call_function(getattr, (image, "device"))
    for node in list(graph.nodes):
        if node.op == "output" and len(node.all_input_nodes) == 1:
            node.args = tuple(node.all_input_nodes)  # return a tensor, as the network does, not a tuple of one
        elif operator(node) == "_assert_tensor_metadata":
            graph.erase_node(node)
        elif isinstance(node.target, OpOverload):
            node.target = aten.size if operator(node) == "sym_size" else node.target.overloadpacket
            # TorchScript lacks pin_memory, and the device must be the image's, not the one it was captured on.
            kwargs = {key: value for key, value in node.kwargs.items() if key != "pin_memory"}
            node.kwargs = {**kwargs, "device": device} if "device" in kwargs else kwargs
    graph.eliminate_dead_code()
    scriptable = GraphModule(module, graph)
    scriptable.training = False  # as eval() would set it, which modules of exported programs refuse
    return scriptable

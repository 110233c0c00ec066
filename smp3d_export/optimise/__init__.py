"""Captured program -> optimised program: exact rewrites in a fixed order, verified on the network at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, prod

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Interpreter, Node
from torch.utils.flop_counter import FlopCounterMode

from smp3d_export.contract import Shape
from smp3d_export.hardware import return_free_memory
from smp3d_export.optimise.concat_conv import ConcatConv
from smp3d_export.optimise.dilated_taps import LARGEST, DilatedTaps, TapsUpToMax
from smp3d_export.optimise.fold_batch_norm import FoldBatchNorm
from smp3d_export.optimise.packed_conv import PackedConv
from smp3d_export.optimise.parallel_conv import ParallelConv
from smp3d_export.optimise.rewrite import Rewrite
from smp3d_export.optimise.upsample_conv import UpsampleConv
from smp3d_export.optimise.winograd import Winograd
from smp3d_export.precision import Precision
from smp3d_export.program.capture import Captured, capture
from smp3d_export.program.graph import device_of, drop_unused, graph_module

REWRITES: tuple[Rewrite, ...] = (FoldBatchNorm(), ParallelConv(), DilatedTaps(), ConcatConv(), UpsampleConv())

# Wrong above the contract's maximum, so only for files that refuse larger sizes.
UP_TO_MAX: tuple[Rewrite, ...] = (TapsUpToMax(),)

# Exact too, but faster on CPUs only. The second group needs fp32 precision.
FOR_CPU: tuple[Rewrite, ...] = (PackedConv(),)
FOR_CPU_IN_FP32: tuple[Rewrite, ...] = (Winograd(),)

# Shown in the progress line, which has little room: the rewrites that change the amount of work.
SHOWN = tuple(rewrite.name for rewrite in (ParallelConv, DilatedTaps, TapsUpToMax, UpsampleConv, PackedConv, Winograd))

# Weights are combined in float64, so the only error left is the order of float32 sums.
AGREEMENT = 1e-5


@dataclass(frozen=True)
class Optimised:
    """A rewritten program.

    Attributes:
        captured: the program; as it was given if no rewrite was kept.
        fired: how often each rewrite was applied.
        gflop_before, gflop_after: its work at the optimum, in 10⁹ operations.
        rejected: the rewrites that were not kept because they change the outputs, and by how much they do.
    """

    captured: Captured
    fired: Mapping[str, int]
    gflop_before: float
    gflop_after: float
    rejected: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        shown = [f"{times} {name}" for name, times in self.fired.items() if name in SHOWN]
        shown += [f"{name} rejected: {reason}" for name, reason in self.rejected.items()]
        return f"{', '.join(shown) or 'nothing to rewrite'}, {self.gflop_before:.3g} → {self.gflop_after:.3g} GFLOP"


def up_to_max(captured: Captured) -> Optimised:
    """Apply the rewrites that are wrong above the maximum to a program that `optimise` has already rewritten."""
    found = optimise(captured, UP_TO_MAX)
    return replace(found, captured=replace(found.captured, up_to_max=bool(found.fired)))


def for_cpu(captured: Captured, precision: Precision) -> Optimised:
    """Apply the CPU rewrites for a precision to a program that `optimise` has already rewritten."""
    found = optimise(captured, (*FOR_CPU, *(FOR_CPU_IN_FP32 if precision is Precision.FP32 else ())))
    return replace(found, captured=replace(found.captured, for_cpu=True))


def optimise(captured: Captured, rewrites: Sequence[Rewrite] = REWRITES) -> Optimised:
    """Rewrite a program. Rewrites that make it disagree with the original are left out, and `rejected` names them.

    It rewrites the captured program itself, so every target profits.
    """
    module = graph_module(captured)
    before = gflop(module, captured.contract.opt)
    module, fired = rewritten(captured, rewrites)
    rejected = {}
    if fired and disagreement(module, captured) > AGREEMENT:
        module, fired, rejected = one_by_one(captured, rewrites)
    kept = replace(captured, rejected={**captured.rejected, **rejected}) if rejected else captured
    if not fired:
        return Optimised(kept, {}, before, before, rejected)
    return_free_memory()  # temporary float64 weights leave holes as large as the network
    after = gflop(module, captured.contract.opt)
    program = capture(module, captured.contract).program
    kept = replace(kept, program=program, rewrites={**kept.rewrites, **fired})
    return Optimised(kept, fired, before, after, rejected)


def rewritten(captured: Captured, rewrites: Sequence[Rewrite]) -> tuple[GraphModule, dict[str, int]]:
    """The program after some rewrites, and how often each was applied; those that found nothing are left out."""
    module = graph_module(captured)
    note_largest_sizes(module, captured.contract.max)
    fired = {rewrite.name: rewrite.run(module) for rewrite in rewrites}
    drop_unused(module)
    return module, {name: times for name, times in fired.items() if times}


def one_by_one(captured: Captured, rewrites: Sequence[Rewrite]) -> tuple[GraphModule, dict[str, int], dict[str, str]]:
    """The same, but each rewrite is kept only if the outputs stay the same; and why the others are not."""
    kept: list[Rewrite] = []
    rejected = {}
    for rewrite in rewrites:
        module, fired = rewritten(captured, [*kept, rewrite])
        error = disagreement(module, captured) if rewrite.name in fired else 0.0
        if error <= AGREEMENT:
            kept.append(rewrite)
        else:
            rejected[rewrite.name] = differs(error)
    return *rewritten(captured, kept), rejected


def differs(error: float) -> str:
    """What a difference amounts to, for a message."""
    if error == inf:
        return "its outputs are not finite, or not of the same shape"
    return f"it changes outputs by {error:.0e} of their range, {AGREEMENT:.0e} is allowed"


class Sizes(Interpreter):
    """Runs a graph on shapes alone, and notes the shapes on the nodes."""

    def run_node(self, n: Node) -> object:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            n.meta[LARGEST] = tuple(value.shape)
        return value


def note_largest_sizes(module: GraphModule, largest: Shape) -> None:
    """Note on every node the shape of its value at the contract's maximum."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        Sizes(module, graph=module.graph).run(torch.empty(largest, device=device_of(module)))


def gflop(module: GraphModule, shape: Shape) -> float:
    """Billions of operations in convolutions and matrix products, counting multiplications and additions."""
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
        Interpreter(module, graph=module.graph).run(torch.empty(shape, device=device_of(module)))
    return counter.get_total_flops() / 1e9


def disagreement(module: nn.Module, captured: Captured) -> float:
    """How far a rewritten module is from the program on a seeded input, as the worst part of an output's range.

    It is infinite for an output of another shape, and for numbers that are not finite.
    """
    # The example shape may be eight times as large as any shape that must fit into memory, so it may be too large.
    shape = min(captured.contract.example(), captured.contract.opt, key=prod)
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device_of(module))
    with torch.inference_mode():
        expected = captured.program.module(check_guards=False)(image)
        try:
            found = module(image)
        except RuntimeError:  # sizes that do not go together
            return inf
    pairs = zip(*(outputs if isinstance(outputs, tuple) else (outputs,) for outputs in (expected, found)), strict=True)
    return max(distance(a, b) for a, b in pairs)


def distance(expected: Tensor, found: Tensor) -> float:
    """The largest difference of two outputs, as a part of the range of the first."""
    if expected.shape != found.shape or not (expected.isfinite().all() and found.isfinite().all()):
        return inf
    largest = float((expected - found).abs().max())
    return largest / scale(expected) if largest else 0.0


def scale(output: Tensor) -> float:
    """The range of an output, or a tenth of its magnitude if it hardly varies, as in the parity check."""
    return max(float(output.max() - output.min()), float(output.abs().max()) / 10)

"""What the targets of PyTorch's compiler have in common: its needs, its settings, its folder. Imports no torch."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from threading import RLock
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from smp3d_export import hardware
from smp3d_export.arrays import Volume
from smp3d_export.artifact.manifest import Manifest
from smp3d_export.backends.exporter import Support
from smp3d_export.errors import TargetUnavailableError, UsageError
from smp3d_export.precision import Precision
from smp3d_export.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

    from smp3d_export.program.capture import Captured

CACHE = "TORCHINDUCTOR_CACHE_DIR"
COMPILING = RLock()
"""Held while the compiler is at work, or its settings are not those of the process."""

# Flags of instructions that a compiler may choose by itself, of all that Linux and macOS list. The others tell how the
# system protects and measures itself: they differ between kernels and virtual machines of one processor.
INSTRUCTIONS = re.compile(
    r"3dnow|abm$|adx$|aes|amx|apx|avx|bmi|cmov|cmpccxadd|cx16|f16c|fma|gfni|lahf_lm|mmx|mov|pclmulqdq|pni$|popcnt|sha"
    r"|sm[34]|sse|ssse|tbm|vaes|vpclmulqdq|xop"  # x86
    r"|asimd|atomics|bf16|crc32|cssc|ebf16|f8|fcma|feat_|fhm|flagm|fp|frint|i8mm|ilrcpc|jscvt|lrcpc|lut|mops|neon|pmull"
    r"|sme|sve"  # ARM
)

SETTINGS: Mapping[str, Any] = MappingProxyType(
    {
        "freezing": True,  # weights are constants, so that what follows a convolution is computed inside it
        "cpp.dynamic_threads": True,  # else the threads of this machine are written into the code
    }
)


def support(precision: Precision, device: str) -> Support:
    """Whether the compiler can make something here."""
    if precision is Precision.FP16 and device == "cpu":
        return Support.no(
            "it computes convolutions in fp16 on a GPU alone", "give --precision bf16, which processors have, or fp32"
        )
    name = compiler()
    if shutil.which(name) is None:
        return Support.no(f"there is no C++ compiler: {name} is not found", "apt install g++, or name another in CXX")
    return Support.yes()


def compiler() -> str:
    """The C++ compiler that PyTorch looks for."""
    default = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    return os.environ.get("CXX", default)


@contextmanager
def building_in(folder: Path) -> Iterator[Path]:
    """Have the compiler's files in a folder inside `folder` that is gone afterwards, and not in the user's cache."""
    with tempfile.TemporaryDirectory(prefix=".build-", dir=folder.absolute()) as build, caching_in(Path(build)):
        yield Path(build)


@contextmanager
def caching_in(folder: Path) -> Iterator[None]:
    """Have the compiler look for what it has compiled before, and leave what it compiles, in `folder`.

    One thread at a time: the compiler finds the folder in the environment, which all threads share.
    """
    with COMPILING:
        before = os.environ.get(CACHE)
        os.environ[CACHE] = str(folder)
        try:
            yield
        finally:
            if before is None:
                del os.environ[CACHE]
            else:
                os.environ[CACHE] = before


def decide_undecided() -> None:
    """Have the compiler say no if it cannot decide something about sizes, as it means to (PyTorch 2.13).

    Its arithmetic of remainders raises for some strides of networks with squeeze and excitation. This changes the
    compiler once, for as long as the process lives: a change that is taken back would be seen by other threads.
    """
    from torch._inductor.sizevars import SizeVarAllocator

    with COMPILING:
        decide = getattr(SizeVarAllocator, "guard_or_false", None)
        if decide is None or hasattr(decide, "__wrapped__"):  # a version that asks in another way; or done before
            return

        @wraps(decide)
        def decided(self: Any, expression: Any) -> bool:
            try:
                return decide(self, expression)
            except (ValueError, RuntimeError):
                return False

        SizeVarAllocator.guard_or_false = decided  # pyright: ignore[reportAttributeAccessIssue]


def program(
    captured: Captured, settings: Settings, samples: Sequence[Volume] = ()
) -> tuple[ExportedProgram, dict[str, Any]]:
    """What is compiled, the program in its precision and in channels-last-3d; and what the manifest says of it.

    `samples` are volumes on which nothing may overflow, as `lowered` has them.
    """
    from smp3d_export.optimise.fold_batch_norm import FoldBatchNorm
    from smp3d_export.program import probe
    from smp3d_export.program.capture import capture
    from smp3d_export.program.graph import graph_module
    from smp3d_export.program.lowering import lowered
    from smp3d_export.program.memory_format import channels_last

    module = graph_module(captured)
    # The compiler would fold them too, into transposed convolutions wrongly: it scales the inputs (PyTorch 2.13).
    changes = FoldBatchNorm().run(module) + keep_single_voxels(module)
    if changes:
        captured = replace(captured, program=capture(module, captured.contract).program)
    probed = settings.device == "cpu"
    captured = lowered(captured, settings.precision, settings.keep_fp32, samples, probed=probed)
    facts: dict[str, Any] = {"memory_format": "channels_last_3d"}
    facts |= probe.facts(graph_module(captured), captured.contract, settings.precision)
    if captured.kept:
        facts["kept_fp32"] = dict(captured.kept)
    return capture(channels_last(captured), captured.contract).program, facts


def keep_single_voxels(module: GraphModule) -> int:
    """Interpolate with corners on corners to dynamic sizes by `aligned`; returns how many interpolations did.

    The compiler takes it that no axis is of one voxel, and divides by the voxels less one.
    """
    from smp3d_export.program.graph import arguments_of, aten, is_call

    found = [node for node in module.graph.nodes if is_call(node, aten.upsample_trilinear3d.vec)]
    found = [node for node in found if arguments_of(node)[1] is not None and arguments_of(node)[2]]
    for node in found:
        with module.graph.inserting_before(node):
            new = module.graph.call_function(aligned, arguments_of(node)[:2])
        node.replace_all_uses_with(new)
        module.graph.erase_node(node)
    module.recompile()
    return len(found)


def aligned(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Trilinear interpolation with corners on corners, axis after axis; to a single voxel it is the first."""
    import torch

    for axis, size in enumerate(sizes, start=2):
        steps = torch.arange(size, device=x.device)
        # The last step as a value, not as a size: of sizes the compiler would say that they are never 0.
        place = steps * (x.shape[axis] - 1) / steps[-1:].clamp(min=1)
        below = place.floor().long()
        above = (below + 1).clamp(max=x.shape[axis] - 1)
        part = (place - below).reshape(-1, *[1] * (4 - axis))
        start = x.index_select(axis, below)
        x = start + (x.index_select(axis, above) - start) * part
    return x


def this_processor() -> dict[str, Any]:
    """What machine code made here may use: the processor, and everything that the system says it has."""
    return {"machine": platform.machine(), "processor": hardware.processor(), "features": hardware.cpu_flags()}


def compiled_for(manifest: Manifest) -> dict[str, Any]:
    """The processor that an artifact was compiled for.

    Earlier versions recorded no processor with the code, and at most nine features; the manifest has the machine that
    it was made on.
    """
    made_on = manifest.made_on
    machine = made_on.get("system", "").rpartition(" ")[2]
    known = {"machine": machine, "processor": made_on.get("processor"), "features": made_on.get("features", [])}
    return known | dict(manifest.fact("compiled_for", Mapping, {}))


def lacking(compiled_for: Mapping[str, Any]) -> list[str]:
    """What machine code of another processor may use and this one lacks."""
    here = this_processor()
    lacks = [flag for flag in compiled_for["features"] if INSTRUCTIONS.match(flag) and flag not in here["features"]]
    if here["machine"] != compiled_for["machine"]:
        lacks = [f"the instructions of {compiled_for['machine']}"]
    return lacks


def at_home(compiled_for: Mapping[str, Any]) -> bool:
    """Whether this is the model of processor that machine code was made on, with all that it had there."""
    return compiled_for["processor"] == hardware.processor() and not lacking(compiled_for)


def check_processor(compiled_for: Mapping[str, Any]) -> None:
    """Refuse machine code of another processor before it is run, which would end the process.

    Raises:
        TargetUnavailableError: this one is of another kind, or lacks something.
    """
    lacks = lacking(compiled_for)
    if lacks:
        raise TargetUnavailableError(
            f"it was compiled for a processor with {', '.join(lacks)}, which this processor lacks: export it on this "
            "machine"
        )


def check_device(compiled_for: str, device: str) -> None:
    """Refuse another kind of device than the one compiled for.

    Raises:
        UsageError: it is another.
    """
    kind = compiled_for.partition(":")[0]
    if device.partition(":")[0] != kind:
        raise UsageError(f"it was compiled for {kind}, and cannot run on {device}: export it with --device {device}")

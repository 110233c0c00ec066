"""Runs a program by `torch.compile`, which finds in the artifact what it compiled at export.

It compiles anew for a kind of shape that it has not met: a batch of one, or an axis of the network's smallest size,
because PyTorch treats sizes of one block as constants.
"""

from __future__ import annotations

import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch._dynamo.config
import torch._inductor.config
import torch.fx.experimental._config
from torch import Tensor, nn
from torch.export import ExportedProgram

from smp3d_export.backends import inductor, pytorch
from smp3d_export.backends.runner import Artifact
from smp3d_export.contract import ShapeContract
from smp3d_export.errors import TargetUnavailableError, UsageError

# The kinds of shapes: one volume or more, and for each volume axis one block or more.
KINDS = 16


class Runner(pytorch.Runner):
    """A loaded program with what was compiled of it."""

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact)
        support = inductor.support(artifact.manifest.precision, artifact.device)
        if not support.ready:
            raise TargetUnavailableError(f"torch.compile cannot run on this machine: {support}")
        inductor.check_device(artifact.manifest.device, artifact.device)
        program_file, compiled_file = (artifact.folder / name for name in artifact.row.files)
        self.cache = tempfile.TemporaryDirectory(prefix="smp3d-export-")
        try:
            # Elsewhere its instructions might not be there, which would end the process: the compiler starts anew.
            if inductor.at_home(inductor.compiled_for(artifact.manifest)):
                with zipfile.ZipFile(compiled_file) as archive:
                    archive.extractall(self.cache.name)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that weights could not be looked up on a GPU
                program = torch.export.load(program_file)
        except (OSError, RuntimeError, zipfile.BadZipFile) as error:
            raise UsageError(f"PyTorch cannot load the program in {str(artifact.folder)!r}: {error}") from error
        self.program = Compiled(program, self.contract, Path(self.cache.name))

    def forward(self, image: Tensor) -> Any:
        return self.program(image)


class Compiled:
    """A program, compiled when it is first called with a kind of shape; the compiler caches in the folder `cache`.

    Threads may share it. They compile one after another, and run side by side.
    """

    def __init__(self, program: ExportedProgram, contract: ShapeContract, cache: Path) -> None:
        inductor.decide_undecided()
        self.cache = cache
        self.compiled: set[tuple[Any, ...]] = set()
        volume_axes = contract.axes[2:]
        self.blocks = tuple(axis.multiple for axis in volume_axes)
        self.dynamic = [
            place
            for place, axis in zip((0, 2, 4, 6), (contract.axes[0], *volume_axes), strict=True)
            if axis in contract.dynamic
        ]
        self.function = torch.compile(InBlocks(program.module(check_guards=False)))

    def __call__(self, image: Tensor) -> tuple[Tensor, ...]:
        n, _, *sizes = image.shape
        h, w, d = self.blocks
        # What makes the compiler start again: another kind of shape, or another number of threads.
        kind = (n == 1, *(size == k for size, k in zip(sizes, self.blocks, strict=True)), torch.get_num_threads())
        # As a tensor of its own: of a view, the compiler would take the first image's strides as constants.
        blocks = image.contiguous().unflatten(4, (-1, d)).unflatten(3, (-1, w)).unflatten(2, (-1, h)).data
        for axis in self.dynamic:
            torch._dynamo.maybe_mark_dynamic(blocks, axis)
        if kind in self.compiled:
            with torch.no_grad():
                outputs = self.function(blocks)
        else:
            with inductor.caching_in(self.cache), settings():
                outputs = self.function(blocks)
            self.compiled.add(kind)
        return outputs if isinstance(outputs, tuple) else (outputs,)


class InBlocks(nn.Module):
    """A program that takes its image in blocks of the contract's multiples: (N, C, H/h, h, W/w, w, D/d, d).

    So the compiler knows that a size is a multiple, which it cannot be told.
    """

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, blocks: Tensor) -> Any:
        return self.program(blocks.flatten(6, 7).flatten(4, 5).flatten(2, 3))


@contextmanager
def settings() -> Iterator[None]:
    """What holds while the compiler may be at work."""
    with (
        torch.no_grad(),
        torch._inductor.config.patch(dict(inductor.SETTINGS)),
        torch._dynamo.config.patch(recompile_limit=KINDS),
        # Axes that are equal in the first image it sees need not be in the next.
        torch.fx.experimental._config.patch(use_duck_shape=False),  # pyright: ignore[reportAttributeAccessIssue]
    ):
        yield

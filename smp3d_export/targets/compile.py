"""`torch.compile`: the program, and what the compiler made of it, so that the next start need not wait for it.

What it made is machine code of this processor; on another, or under another PyTorch, it is made anew at the first call.
"""

from __future__ import annotations

import time
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from smp3d_export import inductor
from smp3d_export.errors import ExportError
from smp3d_export.targets import Exported, Options, Precision, Support
from smp3d_export.targets.sizes import megabytes

if TYPE_CHECKING:
    from smp3d_export.capture import Captured
    from smp3d_export.contract import Shape, ShapeContract

name = "compile"
suffix = ".cache"
from_onnx = False


def support(precision: Precision, device: str) -> Support:
    return inductor.support(name, precision, device)


def check(options: Options) -> None:
    """It takes every option there is, or has no use for it."""


def export(captured: Captured, options: Options, folder: Path) -> Exported:
    """Write `program.pt2`, whose extra files have what an ONNX file carries as metadata, and `model.cache`.

    Raises:
        ExportError: the compiler has no form for something in the graph, or the C++ compiler failed.
    """
    import torch

    from smp3d_export.runtime.compile import COMPILED, PROGRAM, Compiled

    program, facts = inductor.program(captured, options)
    shapes = kinds(captured.contract)
    try:
        with warnings.catch_warnings(), inductor.building_in(folder) as build:
            warnings.simplefilter("ignore")
            torch.export.save(program, folder / PROGRAM, extra_files=dict(options.metadata))
            # As the runner will have it, for the compiler knows its own again by every detail.
            compiled = Compiled(torch.export.load(folder / PROGRAM), captured.contract)
            started = time.perf_counter()
            for shape in shapes:
                compiled(torch.zeros(shape, device=options.device))
            facts["cold_seconds"] = round(time.perf_counter() - started, 3)
            pack(build, folder / COMPILED)
    except Exception as error:  # the compiler lets whatever a pass of it raises through
        raise ExportError(f"torch.compile cannot compile the graph: {error}") from error
    size = megabytes((folder / COMPILED).stat().st_size)
    return Exported(f"compiled for {len(shapes)} kinds of shapes, {size}", facts)


def kinds(contract: ShapeContract) -> list[Shape]:
    """A shape for each kind that the compiler tells apart, of those that are likely: the optimum's, batches, the least.

    The optimum comes first, for the compiler lays loops out for the sizes that it sees.
    """
    found: dict[tuple[bool, ...], Shape] = {}
    for shape in (contract.opt, contract.example(), contract.min):
        kind = tuple(size == axis.multiple for size, axis in zip(shape, contract.axes, strict=True))
        found.setdefault(kind, shape)
    return list(found.values())


def pack(build: Path, place: Path) -> None:
    """Put the compiler's folder into an archive, without its locks."""
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(build.rglob("*")):
            if path.is_file() and path.suffix != ".lock":
                archive.write(path, path.relative_to(build))

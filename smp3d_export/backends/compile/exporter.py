"""`torch.compile`: the program, and what the compiler made of it, so that the next start need not wait for it.

What it made is machine code of this processor; on another, or under another PyTorch, it is made anew at the first call.
"""

from __future__ import annotations

import time
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from smp3d_export.backends import exporter, inductor
from smp3d_export.backends.exporter import Exported, Support
from smp3d_export.errors import ExportError
from smp3d_export.precision import Precision
from smp3d_export.progress import megabytes
from smp3d_export.settings import Settings

if TYPE_CHECKING:
    from smp3d_export.backends.variant import Variant
    from smp3d_export.contract import Shape, ShapeContract


class Exporter(exporter.Exporter):
    """Writes `program.pt2`, whose extra files have what an ONNX file carries as metadata, and `model.cache`."""

    def support(self, precision: Precision, device: str) -> Support:
        return inductor.support(precision, device)

    def export(self, variant: Variant, settings: Settings, folder: Path) -> Exported:
        import torch

        from smp3d_export.backends.compile.runner import Compiled

        program_file, compiled_file = (folder / name for name in self.row.files)
        program, facts = inductor.program(variant.captured, settings, variant.samples)
        shapes = kinds(variant.contract)
        try:
            with warnings.catch_warnings(), inductor.building_in(folder) as build:
                warnings.simplefilter("ignore")
                torch.export.save(program, program_file, extra_files=dict(settings.metadata))
                # As the runner will load it: the compiler recognises its own work by every detail.
                compiled = Compiled(torch.export.load(program_file), variant.contract, build)
                started = time.perf_counter()
                for shape in shapes:
                    compiled(torch.zeros(shape, device=settings.device))
                facts["cold_seconds"] = round(time.perf_counter() - started, 3)
                pack(build, compiled_file)
        except Exception as error:  # the compiler lets whatever a pass of it raises through
            raise ExportError(f"torch.compile cannot compile the graph: {error}") from error
        facts["compiled_for"] = inductor.this_processor()
        size = megabytes(compiled_file.stat().st_size)
        return Exported(f"compiled for {len(shapes)} kinds of shapes, {size}", facts)


def kinds(contract: ShapeContract) -> list[Shape]:
    """A shape for each likely kind that the compiler tells apart: the optimum, batches, the smallest.

    The optimum comes first, because the compiler lays loops out for the sizes that it sees.
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

"""A package of AOTInductor: the network as machine code of this processor or GPU, which PyTorch loads without Python.

It is compiled from the captured graph in channels-last-3d, in which convolutions are fastest.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smp3d_export.backends import exporter, inductor
from smp3d_export.backends.exporter import Exported, Support
from smp3d_export.errors import ExportError
from smp3d_export.precision import Precision
from smp3d_export.progress import megabytes
from smp3d_export.settings import Settings

if TYPE_CHECKING:
    from smp3d_export.backends.variant import Variant


class Exporter(exporter.Exporter):
    """Writes `model.pt2`; what an ONNX file carries as metadata is in its own."""

    def support(self, precision: Precision, device: str) -> Support:
        return inductor.support(precision, device)

    def export(self, variant: Variant, settings: Settings, folder: Path) -> Exported:
        import torch
        from torch._inductor import aoti_compile_and_package

        file = folder / self.row.files[0]
        program, facts = inductor.program(variant.captured, settings, variant.samples)
        configs: dict[str, Any] = {
            **inductor.SETTINGS,
            "aot_inductor.metadata": dict(settings.metadata),
            "aot_inductor.precompile_headers": False,  # they would stay in the user's cache
        }
        inductor.decide_undecided()
        try:
            # The compiler treats weights as constants only if nothing could be trained.
            with warnings.catch_warnings(), inductor.building_in(folder), torch.no_grad():
                warnings.simplefilter("ignore")
                aoti_compile_and_package(program, package_path=str(file), inductor_configs=configs)
        except Exception as error:  # the compiler lets whatever a pass of it raises through
            raise ExportError(f"AOTInductor cannot compile the graph: {error}") from error
        facts["compiled_for"] = inductor.this_processor()
        return Exported(f"machine code, {megabytes(file.stat().st_size)}", facts)

"""A package of AOTInductor: the network as machine code of this processor or GPU, which PyTorch loads without Python.

It is compiled from the captured graph in channels-last-3d, in which convolutions are fastest.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smp3d_export import inductor
from smp3d_export.errors import ExportError
from smp3d_export.targets import Exported, Options, Precision, Support
from smp3d_export.targets.sizes import megabytes

if TYPE_CHECKING:
    from smp3d_export.capture import Captured

name = "aoti"
suffix = ".pt2"
from_onnx = False

FILE = "model.pt2"


def support(precision: Precision, device: str) -> Support:
    return inductor.support(name, precision, device)


def check(options: Options) -> None:
    """It takes every option there is, or has no use for it."""


def export(captured: Captured, options: Options, folder: Path) -> Exported:
    """Write `model.pt2`; what an ONNX file carries as metadata is in its own.

    Raises:
        ExportError: AOTInductor has no form for something in the graph, or the C++ compiler failed.
    """
    import torch
    from torch._inductor import aoti_compile_and_package

    program, facts = inductor.program(captured, options)
    settings: dict[str, Any] = {
        **inductor.SETTINGS,
        "aot_inductor.metadata": dict(options.metadata),
        "aot_inductor.precompile_headers": False,  # they would stay in the user's cache
    }
    try:
        # Weights are constants for the compiler only where nothing could be trained.
        with warnings.catch_warnings(), inductor.building_in(folder), inductor.undecided_is_no(), torch.no_grad():
            warnings.simplefilter("ignore")
            aoti_compile_and_package(program, package_path=str(folder / FILE), inductor_configs=settings)
    except Exception as error:  # the compiler lets whatever a pass of it raises through
        raise ExportError(f"AOTInductor cannot compile the graph: {error}") from error
    facts["compiled_for"] = inductor.this_processor()
    return Exported(f"machine code, {megabytes((folder / FILE).stat().st_size)}", facts)

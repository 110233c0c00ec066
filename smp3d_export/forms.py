"""Captured program -> the forms of it that artifacts are made of, by name: they compute the same. Imports no torch.

`off` is the program as it was captured; `on` is rewritten by what is no slower anywhere; `cpu` is that rewritten
further by what pays on processors. For `auto` there are all that suit, and each target keeps the fastest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from smp3d_export.errors import UsageError
from smp3d_export.progress import Reporter
from smp3d_export.request import Request
from smp3d_export.runtime.tensorrt import MODULES
from smp3d_export.targets import Precision

if TYPE_CHECKING:
    from smp3d_export.capture import Captured
    from smp3d_export.targets import Exportable

OFF, ON, CPU, AUTO = "off", "on", "cpu", "auto"
# Those of the form for processors. Not int8: with a packed head, what NNCF made for OpenVINO found nothing.
PRECISIONS = (Precision.FP32, Precision.FP16, Precision.BF16)


def check(request: Request) -> None:
    """Refuse a form that does not suit.

    Raises:
        UsageError: it is that for processors, and the export is not for one alone, or is in int8.
    """
    if request.optimise != CPU:
        return
    engine = next((target for target in request.targets if not suits(CPU, target)), None)
    other = engine or (f"--device {request.device}" if request.device != "cpu" else None)
    if other is not None:
        raise UsageError(f"--optimise cpu is for processors, not for {other}: use on, or auto, which chooses by target")
    if not suits_cpu(request):
        raise UsageError(
            f"--optimise cpu is for {', '.join(PRECISIONS)}, not for {request.options.precision}: use --optimise on"
        )


def suits_cpu(request: Request) -> bool:
    return request.device == "cpu" and request.options.precision in PRECISIONS


def of(captured: Captured, request: Request, reporter: Reporter) -> dict[str, Captured]:
    """The forms that were asked for; of several, the one to keep where none can be timed comes first."""
    from smp3d_export.optimise import for_cpu, optimise

    asked = request.optimise
    if asked == OFF:
        return {OFF: captured}
    with reporter.stage("optimise") as stage:
        optimised = optimise(captured)
        stage.detail = str(optimised)
    forms = {ON: optimised.captured}
    on_cpu = suits_cpu(request) and any(suits(CPU, target) for target in request.targets)
    if asked == CPU or (asked == AUTO and on_cpu):
        with reporter.stage("for cpu") as stage:
            further = for_cpu(optimised.captured, request.options.precision)
            stage.detail = str(further)
        forms[CPU] = further.captured
    if asked == AUTO:
        return {**forms, OFF: captured}
    return {asked: forms[asked]}


def suits(form: str, target: str) -> bool:
    """Whether a target is to be made of it: an engine runs on a GPU, and its builder has such forms itself."""
    return form != CPU or target not in MODULES


def for_target(forms: Mapping[str, Exportable], target: str) -> dict[str, Exportable]:
    """Those that a target has the choice of."""
    return {name: form for name, form in forms.items() if suits(name, target)}

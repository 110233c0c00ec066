"""Captured program -> its variants by name, which artifacts are made from. All compute the same.

`off` is the captured program, `on` has the rewrites that are not slower anywhere, and `cpu` also those that are faster
on CPUs only. `auto` makes every suitable variant, and each target keeps the fastest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from smp3d_export import backends
from smp3d_export.backends.variant import Variant
from smp3d_export.errors import UsageError
from smp3d_export.precision import Precision
from smp3d_export.progress import Reporter
from smp3d_export.sources.request import Request

if TYPE_CHECKING:
    from smp3d_export.program.capture import Captured

OFF, ON, CPU, AUTO = "off", "on", "cpu", "auto"
# The CPU variant does not suit int8: with a packed head, NNCF's quantised network for OpenVINO found nothing.
PRECISIONS = (Precision.FP32, Precision.FP16, Precision.BF16)


def check(request: Request) -> None:
    """Refuse `--optimise cpu` for an export that is not for CPUs only, or in int8.

    Raises:
        UsageError: it says what to use instead.
    """
    if request.optimise != CPU:
        return
    engine = next((target for target in request.targets if not suits(CPU, target)), None)
    other = engine or (f"--device {request.device}" if request.device != "cpu" else None)
    if other is not None:
        raise UsageError(f"--optimise cpu is for CPUs, not for {other}: use on, or auto, which chooses by target")
    if not suits_cpu(request):
        raise UsageError(
            f"--optimise cpu is for {', '.join(PRECISIONS)}, not for {request.settings.precision}: use --optimise on"
        )


def suits_cpu(request: Request) -> bool:
    return request.device == "cpu" and request.settings.precision in PRECISIONS


def variants(captured: Captured, request: Request, reporter: Reporter) -> dict[str, Variant]:
    """The requested variants. The first of several is kept if none can be timed."""
    return {name: Variant(name, program) for name, program in programs(captured, request, reporter).items()}


def programs(captured: Captured, request: Request, reporter: Reporter) -> dict[str, Captured]:
    from smp3d_export.optimise import for_cpu, optimise

    asked = request.optimise or ON
    if asked == OFF:
        return {OFF: captured}
    with reporter.stage("optimise") as stage:
        optimised = optimise(captured)
        stage.detail = str(optimised)
    found = {ON: optimised.captured}
    on_cpu = suits_cpu(request) and any(suits(CPU, target) for target in request.targets)
    if asked == CPU or (asked == AUTO and on_cpu):
        with reporter.stage("for cpu") as stage:
            further = for_cpu(optimised.captured, request.settings.precision)
            stage.detail = str(further)
        found[CPU] = further.captured
    if asked == AUTO:
        return {**found, OFF: captured}
    return {asked: found[asked]}


def suits(variant: str, target: str) -> bool:
    """Whether a target can be made from a variant. The CPU variant does not suit engines, which run on a GPU."""
    return variant != CPU or not backends.find(target).gpu


def for_target(found: Mapping[str, Variant], target: str) -> dict[str, Variant]:
    """The variants that a target chooses from."""
    return {name: variant for name, variant in found.items() if suits(name, target)}

"""Captured program -> its variants, which artifacts are made from. All compute the same within the contract.

`off` is the captured program, `on` has the rewrites that are not slower anywhere, and `cpu` also those that are faster
on CPUs only. `auto` makes every suitable variant, and each target keeps the fastest.

`on` and `cpu` come twice if a rewrite is exact only up to the contract's maximum: without it, and with it for targets
whose files refuse larger sizes.
"""

from __future__ import annotations

from collections.abc import Iterable
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


def variants(captured: Captured, request: Request, reporter: Reporter) -> tuple[Variant, ...]:
    """The requested variants. The first of several is kept if none can be timed."""
    from smp3d_export.optimise import for_cpu, optimise, up_to_max

    asked = request.optimise or ON
    if asked == OFF:
        return (Variant(OFF, captured),)
    checking = [backends.find(target).checks_shapes for target in request.targets]
    with reporter.stage("optimise") as stage:
        found = [optimise(captured)]
        if any(checking):
            limited = up_to_max(found[0].captured)
            found += [limited] if limited.fired or limited.rejected else []
        stage.detail = "; ".join(map(str, found))
    if all(checking):
        found = found[-1:]
    made = [Variant(ON, one.captured) for one in found]
    on_cpu = suits_cpu(request) and any(suits(CPU, target) for target in request.targets)
    if asked == CPU or (asked == AUTO and on_cpu):
        with reporter.stage("for cpu") as stage:
            found = [for_cpu(one.captured, request.settings.precision) for one in found]
            stage.detail = "; ".join(map(str, found))
        further = [Variant(CPU, one.captured) for one in found]
        made = further if asked == CPU else [*made, *further]
    return (*made, Variant(OFF, captured)) if asked == AUTO else tuple(made)


def suits(variant: str, target: str) -> bool:
    """Whether a target can be made from a variant. The CPU variant does not suit engines, which run on a GPU."""
    return variant != CPU or not backends.find(target).gpu


def for_target(found: Iterable[Variant], target: str) -> list[Variant]:
    """The variants that a target chooses from, one of each name."""
    checks_shapes = backends.find(target).checks_shapes
    suitable = [one for one in found if suits(one.name, target) and (checks_shapes or not one.up_to_max)]
    return list({one.name: one for one in suitable}.values())  # exact up to the maximum only is the last of its name

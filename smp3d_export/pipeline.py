"""The way of the data, top to bottom: a request -> a network -> a captured program -> artifacts -> verdicts."""

from __future__ import annotations

from math import lcm

import torch

from smp3d_export import artifact, forms, hardware, manifest, targets
from smp3d_export.capture import activation_bytes, capture
from smp3d_export.contract import ShapeContract, coarsened, rounded_up
from smp3d_export.delivery import Delivery
from smp3d_export.errors import ShapeError
from smp3d_export.graph import graph_module
from smp3d_export.network import Network, build
from smp3d_export.optimise import gflop
from smp3d_export.progress import Reporter
from smp3d_export.report import Report
from smp3d_export.request import OnnxSource, Request
from smp3d_export.validate import read_samples, reference_for

LEAST_DEFAULT = 64


def run(request: Request, reporter: Reporter | None = None) -> Report:
    """Export a network, prove every artifact equal to it, and measure it.

    What fails for one target alone stands in its verdict; the others are exported all the same.

    Raises:
        UsageError: something of the request is wrong.
        TargetUnavailableError: none of the targets can be exported to here.
        ExportError: the network cannot be captured.
    """
    reporter, request = reporter or Reporter(), request.placed(torch.cuda.is_available())
    targets.check(request.targets, request.options)
    forms.check(request)
    artifact.check_replaceable(request.folder)
    assert not isinstance(request.network, OnnxSource)
    threads = request.threads or hardware.cores()
    torch.set_num_threads(threads)
    network = build(request.network, request.shape).to(request.device)
    contract = contract_for(network, request)
    samples = read_samples(request.samples, request.normalisation, contract)
    introduce(network, contract, reporter)
    with artifact.staged(request.folder, several=len(request.targets) > 1) as staging:
        with reporter.stage("capture") as stage:
            captured = capture(network.model, contract)
            stage.detail = f"dynamic {', '.join(axis.name for axis in contract.dynamic) or 'nothing'}"
        reference = reference_for(
            network,
            contract,
            samples,
            request,
            activations=activation_bytes(captured),
            label_threshold=network.label_threshold,
        )
        description = manifest.describe(network, captured, request, gflop(graph_module(captured), contract.opt))
        baselines = network.baselines(request.options.precision)
        made_of = forms.of(captured, request, reporter)
        delivery = Delivery(request, made_of, description, reference, baselines, threads, staging, reporter)
        verdicts = tuple(delivery.of(target) for target in request.targets)
    return Report(network=network.name, verdicts=verdicts)


def contract_for(network: Network, request: Request) -> ShapeContract:
    """The contract that a request asks for; what it leaves out is that of the contract saved with the network.

    Without one, it is the default contract around the least volume from 64 voxels an axis up.

    Raises:
        ShapeError: the sizes are not the network's.
    """
    multiple, least, saved = network.model.multiple, network.model.least, network.contract
    bounds = saved if not request.static else None
    coarse = request.multiple or (bounds and tuple(map(lcm, bounds.multiple, multiple)))
    held = coarsened(multiple, coarse, network.name) if coarse else multiple
    volume = (rounded_up(max(LEAST_DEFAULT, size), k) for size, k in zip(least, held, strict=True))
    lower, upper = (bounds.min, bounds.max) if bounds else (None, None)
    if lower and upper and request.multiple:
        lower = (*lower[:2], *(rounded_up(size, k) for size, k in zip(lower[2:], held, strict=True)))
        upper = (*upper[:2], *(size // k * k for size, k in zip(upper[2:], held, strict=True)))
    shape = request.shape or (saved.opt if saved else (1, network.in_channels, *volume))
    if len(shape) > 1 and shape[1] != network.in_channels:
        raise ShapeError(f"C of --shape is {shape[1]}, but the network has {network.in_channels} input channels")
    return ShapeContract.of(
        shape,
        multiple=multiple,
        least=least,
        min=request.min or lower,
        max=request.max or upper,
        coarse=coarse,
        static=request.static,
        network=network.name,
        reason=network.model.least_reason,
    )


def introduce(network: Network, contract: ShapeContract, reporter: Reporter) -> None:
    """Say which network this is, with which weights, and for which shapes."""
    reporter.say(f"{network.name} · {network.parameters / 1e6:.1f} M parameters · {network.weights}")
    for note in network.notes:
        reporter.say(f"  {note}")
    reporter.say(f"{contract}\n")

"""The page to read first: a request -> a network -> its program -> artifacts -> verdicts. Imports no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from smp3d_export import hardware
from smp3d_export.artifact import folder as artifact
from smp3d_export.errors import ExportError, Smp3dExportError
from smp3d_export.making import make
from smp3d_export.progress import Reporter
from smp3d_export.sources.request import Opened, Program, Request
from smp3d_export.validators.cases import read_samples, reference_for
from smp3d_export.validators.proof import Proof
from smp3d_export.validators.verdict import Report, Verdict


def run(request: Request, reporter: Reporter | None = None) -> Report:
    """Export a network, prove every artifact equal to it, and measure it.

    What fails for one target alone stands in its verdict; the others are exported all the same.

    Raises:
        UsageError: something in the request is wrong.
        TargetUnavailableError: none of the targets can be exported to here.
        ExportError: the network cannot be captured.
    """
    reporter = reporter or Reporter()
    request = request.source.complete(request)
    request.check_volumes()
    artifact.check_replaceable(request.folder)
    opened = request.source.open(request)
    samples = read_samples(request.samples, request.normalisation, opened.contract)
    if request.calibration is not None:
        with reporter.working("reading the calibration volumes"):
            request.calibration.check(opened.contract)
    introduce(opened, reporter)
    with artifact.staged(request.folder, several=request.several) as staging:
        program = opened.program(request, reporter).observing(samples.values())
        reference = reference_for(opened, program, samples, request)
        baselines = opened.baselines(request.settings.precision)
        threads = request.threads or hardware.cores()
        proof = Proof(request, reference, baselines, threads, reporter)
        verdicts = tuple(deliver(target, program, proof, staging) for target in request.targets)
    return Report(network=opened.name, verdicts=verdicts)


def introduce(opened: Opened, reporter: Reporter) -> None:
    """Say which network this is, and for which shapes."""
    for line in opened.introduction():
        reporter.say(line)
    reporter.say(f"{opened.contract}\n")


def deliver(target: str, program: Program, proof: Proof, staging: artifact.Staging) -> Verdict:
    """Make and prove one target's artifact. If it fails, its verdict says so, and what it made is dropped.

    What misses parity is set aside for study.
    """
    request = proof.request
    try:
        folder = staging.folder(target)
        made = make(target, program, request, folder, proof.threads, proof.reporter)
        verdict = proof.of(folder, made.exported, made.manifest, made.seconds)
    except Exception as error:  # noqa: BLE001  whatever a library raises must not lose the other targets' artifacts
        staging.discard(target)
        if not isinstance(error, Smp3dExportError):
            failure = ExportError(f"{type(error).__name__}: {error}")
            failure.__cause__ = error
            error = failure
        return Verdict(target=target, precision=request.settings.precision, folder=None, error=error)
    place = request.folder
    if verdict.parity is not None and not verdict.parity.passed:
        staging.set_aside(target)
        place = artifact.failed_place(request.folder)
    return replace(verdict, folder=place / target if request.several else Path(place))

"""The page to read first: a request -> a network -> its program -> artifacts -> verdicts. Imports no torch."""

from __future__ import annotations

from dataclasses import replace

from smp3d_export import backends, hardware
from smp3d_export.artifact.staging import Staging, staged
from smp3d_export.errors import ExportError, Smp3dExportError, UsageError, release_frames, summary
from smp3d_export.making import make
from smp3d_export.progress import Reporter
from smp3d_export.sources.request import Opened, Program, Request
from smp3d_export.validators.cases import read_samples, reference_for
from smp3d_export.validators.proof import Proof
from smp3d_export.validators.verdict import Report, Verdict


def run(request: Request, reporter: Reporter | None = None) -> Report:
    """Export a network, prove every artifact equal to it, and measure it.

    If one target fails, its verdict says so, and the others are still exported. An artifact is published as soon as it
    is finished, and stays if an error or Ctrl-C ends the export later. Nothing unfinished is left behind.

    Raises:
        UsageError: something in the request is wrong.
        TargetUnavailableError: none of the targets can be exported on this machine.
        ExportError: the network cannot be captured.
    """
    reporter = reporter or Reporter()
    request = request.source.complete(request)
    request.check_volumes()
    with staged(request.folder, {name: backends.find(name).files for name in request.targets}) as staging:
        opened = request.source.open(request, reporter)
        samples = read_samples(request.samples, request.normalisation, opened.contract)
        if request.calibration is not None:
            with reporter.working("reading the calibration volumes"):
                request.calibration.check(opened.contract)
        introduce(opened, request, staging, reporter)
        program = opened.program(request, reporter).observing(samples.values())
        reference = reference_for(opened, program, samples, request)
        baselines = opened.baselines(request.settings.precision)
        threads = request.threads or hardware.cores()
        proof = Proof(request, reference, baselines, threads, reporter)
        try:
            verdicts = tuple(deliver(target, program, proof, staging) for target in request.targets)
        except BaseException:
            if staging.published:
                reporter.say(f"finished, and kept: {', '.join(map(str, staging.published))}")
            raise
    return Report(network=opened.name, verdicts=verdicts)


def introduce(opened: Opened, request: Request, staging: Staging, reporter: Reporter) -> None:
    """Print which network this is, for which shapes, and what it replaces.

    Raises:
        UsageError: another network's artifact is there.
    """
    precision, targets = request.settings.precision, request.targets
    check = staging.place.check_network
    remarks = [*check(opened.model, opened.contract, precision, targets, force=request.force)]
    for line in opened.introduction():
        reporter.say(line)
    for line in remarks:
        reporter.say(line, style="yellow")
    reporter.say(f"{opened.contract}\n")


def deliver(target: str, program: Program, proof: Proof, staging: Staging) -> Verdict:
    """Make and prove one target's artifact, and publish it.

    If it fails, its verdict says so, and its files are dropped. An artifact that misses parity is set aside for study.
    """
    request = proof.request
    try:
        folder = staging.folder(target)
        made = make(target, program, request, folder, proof.threads, proof.reporter)
        verdict = proof.of(folder, made.exported, made.manifest, made.seconds)
    except Exception as error:  # noqa: BLE001  whatever a library raises must not lose the other targets' artifacts
        staging.discard(target)
        release_frames(error)
        if not isinstance(error, Smp3dExportError):
            failure = ExportError(summary(error))
            failure.__cause__ = error
            error = failure
        return Verdict(target=target, precision=request.settings.precision, folder=None, error=error)
    passed = verdict.parity is None or verdict.parity.passed
    try:
        return replace(verdict, folder=staging.publish(target) if passed else staging.set_aside(target))
    except UsageError as error:
        return replace(verdict, folder=None, error=error if passed else verdict.error)

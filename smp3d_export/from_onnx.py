"""The way of the data from an ONNX file: a request -> its graph -> artifacts -> verdicts. Imports no torch.

The file in ONNX Runtime is what the artifacts are compared with and timed against: it was proved equal to the network
when it was exported.
"""

from __future__ import annotations

from smp3d_export import artifact, hardware, manifest, onnx_file, targets
from smp3d_export.delivery import Delivery
from smp3d_export.errors import UsageError
from smp3d_export.onnx_file import OnnxFile
from smp3d_export.onnx_graph import activation_bytes
from smp3d_export.progress import Reporter
from smp3d_export.report import Report
from smp3d_export.request import OnnxSource, Request
from smp3d_export.runtime.stand_in import StandIn
from smp3d_export.runtime.volumes import Volume
from smp3d_export.validate import read_samples, reference_for

NAME = "ONNX Runtime"


class Timed(StandIn):
    """The file in ONNX Runtime, to be compared with and timed against."""

    def seconds(self, image: Volume) -> None:
        self(image)


def run(request: Request, source: OnnxSource, reporter: Reporter | None = None) -> Report:
    """Make artifacts of an ONNX file, prove each equal to it, and measure it.

    Raises:
        UsageError: the file is none of ours, or a target starts from the network and not from ONNX.
        TargetUnavailableError: none of the targets can be exported to here.
    """
    reporter = reporter or Reporter()
    for name in request.targets:
        if not targets.find(name).from_onnx:
            possible = ", ".join(name for name in targets.TARGETS if targets.find(name).from_onnx)
            raise UsageError(f"{name} is not made from an ONNX file, but from the network: from a file go {possible}")
    shapes = (request.shape, request.min, request.max, request.multiple)
    if any(given is not None for given in shapes) or request.static:
        options = "--shape, --min, --max, --multiple and --static"
        raise UsageError(f"an ONNX file has its shapes from its export: leave out {options}")
    file = onnx_file.read(source.path)
    request = request.with_precision(file.precision).placed(cuda=False)  # ONNX Runtime is what is compared with
    targets.check(request.targets, request.options, file)
    artifact.check_replaceable(request.folder)
    threads = request.threads or hardware.cores()
    samples = read_samples(request.samples, request.normalisation, file.contract)
    introduce(file, reporter)
    original = Timed(file.model, threads)
    reference = reference_for(
        original,
        file.contract,
        samples,
        request,
        activations=activation_bytes(file.model, file.contract.opt),
        label_threshold=file.description.get("label_threshold", 0.0),
    )
    with artifact.staged(request.folder, several=len(request.targets) > 1) as staging:
        description = manifest.describe_file(file, request)
        delivery = Delivery(
            request, {"file": file}, description, reference, {NAME: original}, threads, staging, reporter
        )
        verdicts = tuple(delivery.of(target) for target in request.targets)
    return Report(network=source.path.name, verdicts=verdicts)


def introduce(file: OnnxFile, reporter: Reporter) -> None:
    model = file.description["model"]
    name = f"{model['architecture'].lower()}/{model['encoder']}"
    weights = model["weights"]["source"]
    reporter.say(f"{file.path.name} · {name} · {model['parameters'] / 1e6:.1f} M parameters · {weights}")
    reporter.say(f"{file.contract}\n")

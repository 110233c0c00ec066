"""The page on the Python API, run from top to bottom; and that the API has whatever the command line has."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import smp3d_export as smp
from smp3d_export.cli import main
from smp3d_export.errors import ParityError, UsageError
from smp3d_export.validators.verdict import Report, Verdict

untyped: Any = smp  # for arguments of a wrong type
PAGE = Path(__file__).parents[1] / "docs/python.md"

# Options of the command line -> arguments of the API, if they are not the same word.
RENAMED = {
    "smallest": "min",
    "largest": "max",
    "sample": "samples",
    "gpu": "gpus",
    "no_bench": "bench",
    "factory_arg": "arguments",
}
# What the command line has for a terminal, or gathers in `arguments`.
OWN = {"source", "arch", "as_json", "debug", "report", "arg", "encoder_weights"}


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.+?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(blocks) > 5
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), namespace)
    assert (tmp_path / "net/onnx/model.onnx").exists()


@pytest.mark.parametrize(
    ("jobs", "function"),
    [(("export", "export_from"), smp.export), (("verify",), smp.verify), (("bench",), smp.bench)],
    ids=["export", "verify", "bench"],
)
def test_the_api_takes_what_the_command_line_takes(jobs: tuple[str, ...], function) -> None:
    taken = set(inspect.signature(function).parameters)
    constructor = set(inspect.signature(smp.Unet).parameters) | {"no_decoder_batchnorm", "decoder_attention"}
    for job in jobs:
        options = set(inspect.signature(getattr(main, job)).parameters) - OWN - (constructor - {"encoder"})
        names = {RENAMED.get(name, name) for name in options}
        assert {name for name in names if name not in taken and f"{name}s" not in taken} == set()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: smp.export("unet", "resnet18", to="onx"), "there is no target 'onx'"),
        (lambda: smp.export("unet", "resnet18", precision="fp8"), "there is no precision 'fp8'"),
        (lambda: smp.export("unet", "resnet18", device="gpu"), "'gpu'; it is cpu, cuda or cuda:N, or auto"),
        (lambda: smp.export("unet", "resnet18", normalize=(0, 0)), "standard deviation a number above 0"),
        (lambda: untyped.export("unet", "resnet18", normalize=(1,)), "it takes (mean, standard deviation)"),
        (lambda: smp.export("unet", "resnet18", revision="main"), "revision does not go with a network by name"),
        (lambda: smp.export("best", checkpoint="best.pth"), "checkpoint does not go with a folder or a file"),
        (lambda: smp.export("model.onnx", revision="main"), "revision does not go with an ONNX file"),
        (lambda: untyped.export(3), "model is a int; give a torch.nn.Module"),
        (lambda: smp.verify("none"), "there is no folder 'none'"),
        (lambda: smp.bench("none"), "there is no folder 'none'"),
    ],
)
def test_wrong_arguments_are_usage_errors(call, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as error:
        call()
    assert says in str(error.value)


def test_a_failure_is_raised_on_demand() -> None:
    verdict = Verdict(target="onnx", precision="fp32", folder=None, error=ParityError("it differs"))
    report = Report(network="unet/resnet18", verdicts=(verdict,))
    assert report.exit_code == 5
    with pytest.raises(ParityError, match="it differs"):
        report.raise_for_failure()
    Report(network="unet/resnet18", verdicts=()).raise_for_failure()

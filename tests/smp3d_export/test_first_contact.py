"""What a newcomer types first: nothing, help, half a word and Tab, a mistyped job, the other spelling."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from small import SMALL

JOBS = ("from", "verify", "bench", "list", "doctor")


def complete(shell: str, line: str) -> list[str]:
    """What a shell offers at the end of a line, by the protocol of the script that --install-completion installs."""
    words = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(shlex.split(line)) - (not line.endswith(" ")))},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
    }[shell]
    script = "import sys; sys.argv[0] = 'smp3d-export'; from smp3d_export.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        env={**os.environ, "_SMP3D_EXPORT_COMPLETE": f"complete_{shell}", **words},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    if shell == "bash":
        return done.stdout.split()
    return [line.split('"')[1].replace('""', '"') for line in done.stdout.splitlines() if '"' in line]


# The end of a line, and what is offered there.
OFFERS: list[tuple[str, set[str]]] = [
    ("smp3d-export un", {"unet", "unetplusplus"}),
    ("smp3d-export ver", {"verify"}),
    ("smp3d-export ", {"unet", "pspnet", *JOBS}),
    ("smp3d-export unet resnet1", {"resnet18", "resnet101", "resnet152"}),
    ("smp3d-export --chec", {"--checkpoint"}),
    ("smp3d-export --vers", {"--version"}),
    ("smp3d-export unet resnet18 --calib", {"--calibration"}),
    ("smp3d-export unet resnet18 --to open", {"openvino"}),
    ("smp3d-export unet resnet18 --to onnx,open", {"onnx,openvino"}),
    ("smp3d-export unet resnet18 --optimise a", {"auto"}),
    ("smp3d-export list enc", {"encoders"}),
    ("smp3d-export list encoders --family dense", {"densenet"}),
]


@pytest.mark.parametrize(
    ("shell", "line", "offered"),
    [
        *(("bash", *offer) for offer in OFFERS),
        # Each in a process; the shells differ in how a line is passed and offers are returned.
        *(
            pytest.param("zsh", *offer, marks=[] if n in (0, 2, 4, 8) else pytest.mark.slow)
            for n, offer in enumerate(OFFERS)
        ),
    ],
)
def test_completion(shell: str, line: str, offered: set[str]) -> None:
    found = complete(shell, line)
    assert len(found) == len(set(found))
    if line.endswith(" "):
        assert offered <= set(found)
        assert "export" not in found
    else:
        assert set(found) == offered


def test_the_bare_command_is_a_short_overview(cli) -> None:
    result = cli()
    assert result.exit_code == 0
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert len(lines) < 40
    assert max(map(len, lines)) <= 80
    for text in (*JOBS, "smp3d-export unet resnet34 --shape 1,1,128,128,64", "--checkpoint", "--help"):
        assert text in result.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"], ["unet", "--help"], ["export", "-h"]])
def test_help_has_everything(cli, arguments: list[str]) -> None:
    result = cli(*arguments)
    assert result.exit_code == 0
    assert result.stderr == ""
    for text in ("--shape", "--checkpoint", "--arg", "Examples", "--version", "--install-completion", *JOBS):
        assert text in result.stdout


@pytest.mark.parametrize(
    ("arguments", "option"),
    [(["verify", "-h"], "--threads"), (["help", "list"], "--family"), (["from", "--help"], "--revision")],
)
def test_every_job_has_its_help(cli, arguments: list[str], option: str) -> None:
    result = cli(*arguments)
    assert result.exit_code == 0
    assert option in result.stdout


def test_help_has_plain_words_for_values(cli) -> None:
    for job in ((), *((job,) for job in JOBS)):
        text = cli(*job, "--help").stdout
        assert not [word for word in ("<", "x>=", "range]", "{", "[dim]", "TARGETS") if word in text], job
        assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["verfy"], "there is no architecture or job 'verfy'. Nearest job: verify."),
        (["verfy", "unet-resnet34"], "Nearest job: verify."),
        (["help", "verfy"], "Nearest job: verify."),
        (["form", "best"], "Nearest job: from."),
        (["Doctor"], "Nearest job: doctor."),
        (["unett", "resnet18"], "there is no architecture or job 'unett'. Nearest architecture: Unet"),
        (["train"], "there is no architecture or job 'train'. Jobs: from, verify"),
        (["train", "net", "--device", "cpu"], "All architectures: smp3d-export list architectures"),
        (["--no-bench", "verfy", "resnet18"], "Nearest job: verify."),
        (["--no-bench", "verify", "net"], "verify is a job; it comes first: smp3d-export verify"),
        (["."], "'.' is a file or a folder: use smp3d-export from ."),
        (["unet"], "ENCODER is missing: smp3d-export ARCH ENCODER"),
        (["verify"], "DIR is missing: smp3d-export verify DIR"),
        (["unet", "resnet18", "resnet34"], "unexpected"),
        ([*SMALL, "--shpe", "1"], "there is no option '--shpe'. Nearest: --shape"),
        ([*SMALL, "--threads"], "requires an argument"),
        ([*SMALL, "--threads", "0"], "--threads is 0; it takes a whole number from 1 up"),
        ([*SMALL, "--seed", "-1"], "--seed is -1; it takes a whole number from 0 up"),
        ([*SMALL, "--threads", "two"], "--threads is two; it takes a whole number from 1 up"),
        ([*SMALL, "--classes", "two"], "--classes is two; it takes a whole number"),
        ([*SMALL, "--min-speedup", "nan"], "--min-speedup is nan; it takes a number from 0 up"),
        (["bench", "net", "--seconds", "soon"], "--seconds is soon; it takes a number from 0 up"),
        (["doctor", "--threads", "2"], "there is no option '--threads'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_word_is_one_line(cli, arguments: list[str], says: str) -> None:
    result = cli(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert says in line
    if arguments[-1] != "--threads":
        result = cli(*arguments, "--json")
        assert result.exit_code == 2
        assert says in json.loads(result.stdout)["error"]


@pytest.mark.parametrize("job", ["export_saved", "export"])
def test_both_spellings_are_taken(cli, job: str) -> None:
    british, american = "--optimise", "--optimize"
    for option, other in ((british, american), ("--normalize", "--normalise")):
        for arguments in ([other, "maybe"], [f"{other}=maybe"]):
            result = cli("from", "none", *arguments) if job == "export_saved" else cli(*SMALL, *arguments)
            assert result.exit_code == 2
            assert f"{option} is 'maybe'" in result.stderr
    assert british in cli("--help").stdout
    assert american not in cli("--help").stdout


STAGE = re.compile(r"  [✓✗] (capture|optimise|for cpu|parity|speed|onnx|openvino|torchscript|trt-rtx) .* \d+\.\d s$")
INTRODUCTION = re.compile(r"(unet/resnet18 · .* parameters · .*|N 1–2 · C 1 · H .* by \d+)$")


def test_no_library_speaks_in_between(tmp_path: Path) -> None:
    """In a process of its own, since what libraries print at their import and from C++ is not caught otherwise."""
    targets = ["onnx", "openvino", "torchscript"] + ["trt-rtx"] * (find_spec("tensorrt_rtx") is not None)
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-m",
            "smp3d_export",
            *SMALL,
            "--to",
            ",".join(targets),
            "--precision",
            "fp16",
            "--no-bench",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    lines = [line for line in done.stderr.splitlines() if line]
    assert [line for line in lines if not STAGE.match(line) and not INTRODUCTION.match(line)] == []
    assert "\x1b" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("hf_hub_download", [*SMALL, "--encoder-weights", "imagenet"]),
        ("snapshot_download", ["from", "clinic/best"]),
    ],
)
def test_the_hub_does_not_speak_in_between(cli, name: str, arguments: list[str], monkeypatch, caplog) -> None:
    """Without a network the hub's client logs every retry for half a minute; here at once, by its own logger."""

    def unreachable(*_: object, **__: object) -> None:
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        raise OSError("Name or service not known")

    monkeypatch.setattr(f"huggingface_hub.{name}", unreachable)
    result = cli(*arguments)
    assert result.exit_code == 2
    assert "could not be fetched" in result.stderr
    assert "Name or service not known" in result.stderr
    assert caplog.records == []

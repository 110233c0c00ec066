"""Each target of an export fails alone, and nothing that is finished is lost. From a small ONNX file, without torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from earlier import EARLIER

from smp3d_export.arrays import Outputs, Volume
from smp3d_export.onnxgraph.emulation import Emulation
from smp3d_export.validators import parity, proof

openvino_runner = pytest.importorskip("smp3d_export.backends.openvino.runner", reason="OpenVINO is not installed")
pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

ONNX = EARLIER / "onnx" / "model.onnx"
BOTH = ("from", ONNX, "--to", "openvino,trt-rtx", "-o", "net")
ONE = ("from", ONNX, "--to", "openvino", "--no-bench", "-o", "net")
MEMORY = "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"


def failing(error: BaseException, calls: int = 0) -> Callable[..., Any]:
    """A run of OpenVINO that raises after a number of calls."""
    run, left = openvino_runner.Runner._run, [calls]

    def fail(self: Any, image: Volume) -> Outputs:
        left[0] -= 1
        if left[0] < 0:
            raise error
        return run(self, image)

    return fail


@pytest.fixture
def breaks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    return lambda error, calls=0: monkeypatch.setattr(openvino_runner.Runner, "_run", failing(error, calls))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "the openvino artifact failed at the shape 1,1,16,12,8: MemoryError"),
        (RuntimeError("[ONNXRuntimeError] : 6\nframe #0"), "1,1,16,12,8: RuntimeError: [ONNXRuntimeError] : 6"),
        (RuntimeError(MEMORY), "at the shape 1,1,16,12,8: RuntimeError: [enforce fail"),
    ],
)
def test_an_exception_of_a_runtime_fails_its_target_alone(cli, breaks, error: Exception, says: str) -> None:
    breaks(error)
    result = cli(*BOTH, "--no-bench", "--json")
    assert result.exit_code == 4, result.output
    failed, good = json.loads(result.stdout)["verdicts"]
    assert says in failed["error"]
    assert "frame" not in failed["error"]
    assert (good["error"], good["artifact"]) == (None, "net/trt-rtx")
    assert [path.name for path in Path("net").iterdir()] == ["trt-rtx"]
    assert [path.name for path in Path().iterdir()] == ["net"]
    assert "Traceback" not in result.output


def test_debug_shows_where_a_target_failed(cli, breaks) -> None:
    breaks(ZeroDivisionError("inside"))
    result = cli(*BOTH, "--no-bench", "--debug")
    assert result.exit_code == 4
    assert "in fail\n" in result.stderr
    assert "ZeroDivisionError: inside" in result.stderr


def test_the_memory_of_what_failed_is_let_go(cli, breaks, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback would keep the volumes of its frames as long as the report exists."""
    error = MemoryError()
    breaks(error)
    cli(*BOTH, "--no-bench")
    frames = []
    traceback = error.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    assert any(frame.f_code.co_name == "fail" for frame in frames)
    assert not any("image" in frame.f_locals for frame in frames if frame.f_code.co_name in ("fail", "_admitted"))


def test_an_interrupt_keeps_what_is_finished_and_nothing_else(cli, monkeypatch: pytest.MonkeyPatch, breaks) -> None:
    breaks(KeyboardInterrupt())
    result = cli("from", ONNX, "--to", "trt-rtx,openvino", "--no-bench", "-o", "net")
    assert result.exit_code == 130
    assert "finished, and kept: net/trt-rtx" in result.stderr
    assert "no unfinished artifact is left behind" in result.stderr
    assert [path.name for path in Path("net").iterdir()] == ["trt-rtx"]
    assert cli("verify", "net").exit_code in (0, 3)


def test_a_shape_that_the_network_itself_has_no_memory_for_is_not_run(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Emulation.__call__

    def eager(self: Emulation, image: Volume) -> Outputs:
        if image.shape == (2, 1, 32, 24, 16):
            raise RuntimeError(MEMORY)
        return run(self, image)

    monkeypatch.setattr(Emulation, "__call__", eager)
    result = cli(*ONE, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["verdicts"][0]["parity"]
    assert [entry["case"] for entry in found["not_run"]] == ["maximum"]
    assert "not enough memory: the network itself failed at the shape 2,1,32,24,16" in found["not_run"][0]["reason"]
    assert {case["case"] for case in found["cases"]} == {"optimum", "minimum", "anisotropic"}


def test_a_network_that_fails_by_itself_is_not_called_the_artifacts_fault(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Emulation, "__call__", lambda self, image: np.zeros(3)[image.shape[2]])
    result = cli(*ONE)
    assert result.exit_code == 4
    assert "the network itself failed at the shape 1,1,4,4,4: IndexError" in " ".join(result.stdout.split())


def test_an_artifact_that_agrees_is_kept_without_the_memory_to_measure_it(cli, breaks) -> None:
    breaks(MemoryError(), calls=4)  # parity is measured at four shapes
    result = cli(*ONE[:4], "-o", "net")
    assert result.exit_code == 0, result.output
    assert "speed was not measured: the openvino artifact failed" in " ".join(result.stderr.split())
    assert Path("net/model.xml").exists()
    breaks(MemoryError(), calls=4)
    assert cli(*ONE[:4], "-o", "net", "--min-speedup", "1").exit_code == 4


def test_a_wrong_artifact_does_not_take_a_good_one_with_it(cli, monkeypatch: pytest.MonkeyPatch, breaks) -> None:
    """Nor does what stands where it was to go."""
    compare = parity.compare

    def wrong(run: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(run, openvino_runner.Runner):
            Path("net.failed").mkdir()
            Path("net.failed/openvino").write_text("mine")
            return compare(lambda image: {name: -value for name, value in run(image).items()}, *args, **kwargs)
        return compare(run, *args, **kwargs)

    monkeypatch.setattr(proof, "compare", wrong)
    result = cli(*BOTH, "--no-bench", "--json")
    assert result.exit_code == 5
    failed, good = json.loads(result.stdout)["verdicts"]
    assert (failed["artifact"], good["artifact"]) == (None, "net/trt-rtx")
    assert Path("net.failed/openvino").read_text() == "mine"
    assert Path("net/trt-rtx/model.engine").exists()


def test_the_way_is_free_or_no_work_is_done(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smp3d_export.pipeline.make", lambda *args: pytest.fail("worked"))
    Path("net.failed").mkdir()
    Path("net.failed/thesis.tex").write_text("years")
    result = cli(*BOTH)
    assert result.exit_code == 2
    assert "'net.failed' is a folder with other things in it" in result.stderr
    assert [path.name for path in Path().iterdir()] == ["net.failed"]


def test_notes_beside_an_artifact_survive_and_another_network_needs_force(cli) -> None:
    assert cli(*ONE).exit_code == 0
    Path("net/notes.txt").write_text("mine")
    assert cli(*ONE).exit_code == 0
    manifest = Path("net/manifest.json")
    content = json.loads(manifest.read_text())
    content["model"]["arguments"]["classes"] = 5
    manifest.write_text(json.dumps(content))
    result = cli(*ONE)
    assert result.exit_code == 2
    assert "an artifact of unet/vgg11_bn with classes 5, and this is unet/vgg11_bn with classes 3" in result.stderr
    assert json.loads(manifest.read_text()) == content
    result = cli(*ONE, "--force")
    assert result.exit_code == 0
    assert "net is replaced" in result.stderr
    assert json.loads(manifest.read_text())["model"]["arguments"]["classes"] == 3
    assert Path("net/notes.txt").read_text() == "mine"

"""OpenVINO in each precision: the weights on disk, the arithmetic that it really has, and what that costs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from kernels import arithmetic_of
from small import SMALL
from typer.testing import CliRunner

from smp3d_export import backends, runtime
from smp3d_export.arrays import volume
from smp3d_export.backends.openvino import exporter as target
from smp3d_export.backends.openvino import runner as runner_module
from smp3d_export.cli.main import app
from smp3d_export.errors import TargetUnavailableError
from smp3d_export.onnxgraph import graph as onnx_graph
from smp3d_export.precision import Precision

CAN = runner_module.capabilities()
needs_bf16 = pytest.mark.skipif("BF16" not in CAN, reason="the processor has no bfloat16 instructions")

# Precision -> weights on disk, arithmetic on this machine, and between what the largest error lies, as a part of the
# range. The lower bounds say that it is not a higher precision under another name.
ROWS = {
    "fp32": ("f32", "f32", 0.0, 1e-5),
    "fp16": ("f16", "f16" if "FP16" in CAN else "f32", 3e-5, 5e-3),
    "bf16": ("f16", "bf16", 1e-3, 3e-2),
}
PRECISIONS = [pytest.param(name, marks=needs_bf16 if name == "bf16" else ()) for name in ROWS]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Exports the small network at one shape in a precision, once, by the command line."""
    folder = tmp_path_factory.mktemp("openvino")

    def make(precision: str) -> Path:
        place = folder / precision
        if not place.exists():
            arguments = [*SMALL, "--classes", "2", "--static", "--to", "openvino", "--no-bench"]
            result = CliRunner().invoke(app, [*arguments, "--precision", precision, "-o", str(place)])
            assert result.exit_code == 0, result.output
        return place

    return make


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_compiled_network_has_the_precision(artifact: Callable[[str], Path], precision: str) -> None:
    run: Any = runtime.load(artifact(precision))
    weights, arithmetic, _, _ = ROWS[precision]
    manifest = manifest_of(artifact(precision))
    assert arithmetic_of(run.model, manifest) == {arithmetic}
    assert run.arithmetic == arithmetic
    assert (manifest["weights"], manifest["arithmetic"]) == (weights, arithmetic)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_error_is_that_of_the_precision(artifact: Callable[[str], Path], precision: str) -> None:
    _, _, low, high = ROWS[precision]
    assert low <= manifest_of(artifact(precision))["parity"]["relative"] <= high


@needs_bf16
def test_a_fp32_artifact_in_another_arithmetic_would_not_pass_for_one(
    artifact: Callable[[str], Path], tmp_path: Path
) -> None:
    """What `ROWS` bounds for fp32 is missed by far when OpenVINO is told bf16, as it may choose by itself."""
    folder = shutil.copytree(artifact("fp32"), tmp_path / "told")
    image = volume((1, 1, 32, 24, 16), 0)
    exact = runtime.load(folder)(image)["masks"]
    manifest = manifest_of(folder) | {"arithmetic": "bf16"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    told = runtime.load(folder)(image)["masks"]
    assert np.abs(told - exact).max() > 100 * ROWS["fp32"][3] * np.ptp(exact)


def test_half_precision_takes_half_the_room(artifact: Callable[[str], Path]) -> None:
    full, half = ((artifact(name) / "model.bin").stat().st_size for name in ("fp32", "fp16"))
    assert half < 0.55 * full


@pytest.fixture
def older_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """One without instructions for low precisions."""
    monkeypatch.setattr(runner_module, "capabilities", lambda: ["FP32", "INT8"])


@needs_bf16
def test_bf16_is_not_run_where_it_would_be_emulated(
    artifact: Callable[[str], Path], cli, request: pytest.FixtureRequest
) -> None:
    folder = artifact("bf16")
    request.getfixturevalue("older_processor")
    with pytest.raises(TargetUnavailableError, match="no bfloat16 instructions"):
        runtime.load(folder)
    result = cli(*SMALL, "--to", "openvino", "--precision", "bf16", "-o", "net")
    assert result.exit_code == 3
    assert "openvino in bf16 cannot be exported on this machine: this processor has no bfloat16" in flat(result.output)


def test_half_precision_is_computed_in_fp32_where_the_processor_has_none(
    artifact: Callable[[str], Path], request: pytest.FixtureRequest
) -> None:
    folder = artifact("fp16")
    request.getfixturevalue("older_processor")
    run: Any = runtime.load(folder)
    assert run.arithmetic == "f32"


def test_a_proof_in_fp32_holds_on_a_processor_that_has_half_precision() -> None:
    """An artifact in fp16 keeps the arithmetic that it was proved in."""
    assert runner_module.arithmetic("fp16", "f32") == "f32"


def test_an_arithmetic_that_openvino_does_not_keep_to_is_an_error(
    artifact: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO takes f32 where f16 or bf16 is asked for and the processor has none, without a word."""
    monkeypatch.setattr(runner_module, "arithmetic", lambda precision, preferred: "f16")
    if "FP16" in CAN:
        pytest.skip("the processor has half precision")
    with pytest.raises(TargetUnavailableError, match="although f16 was requested"):
        runtime.load(artifact("fp32"))


def test_one_arithmetic_for_all_is_said_of_keep_fp32(cli) -> None:
    result = cli(*SMALL, "--to", "openvino", "--precision", "fp16", "--keep-fp32", "decoder", "-o", "net")
    assert result.exit_code == 2
    assert "--keep-fp32 decoder does not go with openvino" in flat(result.output)


@pytest.mark.parametrize("precision", ["fp16", pytest.param("bf16", marks=needs_bf16)])
def test_from_an_onnx_graph_of_the_same_precision_or_of_fp32(cli, precision: str) -> None:
    for given in ("fp32", precision):
        result = cli(*SMALL, "--static", "--to", "onnx", "--precision", given, "--no-bench", "-o", given)
        assert result.exit_code == 0, result.output
        arguments = ("from", f"{given}/model.onnx", "--to", "openvino", "--no-bench", "-o", f"ov-{given}")
        result = cli(*arguments, "--precision", precision)
        assert result.exit_code == 0, result.output
        manifest = manifest_of(Path(f"ov-{given}"))
        assert (manifest["precision"], manifest["arithmetic"]) == (precision, ROWS[precision][1])


def test_a_graph_over_the_limit_of_a_message_is_read_by_way_of_files(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnx import load

    graph = load(exported / "model.onnx")
    before = {tensor.name: tensor.raw_data for tensor in graph.graph.initializer}
    image = volume((1, 1, 32, 24, 16), 0)
    expected = openvino.Core().compile_model(target.read(graph), "CPU", {runner_module.HINT: "f32"})([image])[0]
    monkeypatch.setattr(onnx_graph, "MESSAGE_LIMIT", 1000)
    found = openvino.Core().compile_model(target.read(graph), "CPU", {runner_module.HINT: "f32"})([image])[0]
    assert np.array_equal(expected, found)
    # The next target needs it whole.
    assert {tensor.name: tensor.raw_data for tensor in graph.graph.initializer} == before
    assert not any(tensor.external_data for tensor in graph.graph.initializer)


def test_every_precision_is_there_or_has_a_reason() -> None:
    for precision in Precision:
        support = backends.find("openvino").support(precision)
        assert support.ready or support.reason


def flat(text: str) -> str:
    return " ".join(text.split())

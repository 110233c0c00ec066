"""TensorRT-RTX engines, built for real; TensorRT by the same code, run where there is a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from making import export
from small import SMALL

from smp3d_export import backends, hardware
from smp3d_export.arrays import volume
from smp3d_export.backends.tensorrt import exporter as tensorrt
from smp3d_export.backends.variant import Variant
from smp3d_export.contract import ShapeContract
from smp3d_export.errors import ExportError
from smp3d_export.onnxgraph import file as onnx_file
from smp3d_export.onnxgraph import graph as onnx_graph
from smp3d_export.onnxgraph.emulation import rounding
from smp3d_export.onnxgraph.session import outputs_of, session
from smp3d_export.precision import Precision
from smp3d_export.runtime.calibration import Calibration
from smp3d_export.settings import Settings

trt_rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
GPUS = hardware.gpus()
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not GPUS, reason="this machine has no NVIDIA GPU")]
without_gpu = pytest.mark.skipif(bool(GPUS), reason="this machine has a GPU, so the engine runs")

# Precision -> the largest error of the graph, as a part of the range, lies between these.
ERRORS = {"fp32": (0, 1e-5), "fp16": (1e-5, 1e-2), "bf16": (1e-4, 3e-2)}


def manifest_of(folder: str | Path) -> dict[str, Any]:
    return json.loads((Path(folder) / "manifest.json").read_text())


def flat(text: str) -> str:
    return " ".join(text.split())


@without_gpu
@pytest.mark.parametrize("precision", ERRORS)
def test_an_engine_is_built_read_back_and_not_run(cli, tiny: tuple[str, ...], precision: str) -> None:
    # In bfloat16 the tiny network, whose values are close to each other, has other labels.
    network = SMALL if precision == "bf16" else tiny
    result = cli(*network, "--to", "trt-rtx", "--precision", precision, "--aux-params", "classes=2", "-o", "net")
    assert result.exit_code == 0, result.output
    assert "trt-rtx: not run: this machine has no NVIDIA GPU" in flat(result.output)
    assert sorted(path.name for path in Path("net").iterdir()) == ["golden.npz", "manifest.json", "model.engine"]
    manifest = manifest_of("net")
    assert manifest["run"].startswith("not run: this machine has no NVIDIA GPU")
    assert (manifest["throughput"], manifest["parity"]["of"]) == ("not run", "graph")
    low, high = ERRORS[precision]
    assert low <= manifest["parity"]["relative"] <= high
    engine = manifest["engine"]
    assert engine["bindings"] == [
        {"name": "image", "type": "FLOAT", "shape": [-1, 1, -1, -1, -1]},
        {"name": "masks", "type": "FLOAT", "shape": [-1, 1, -1, -1, -1]},
        {"name": "labels", "type": "FLOAT", "shape": [-1, 2]},
    ]
    contract = ShapeContract.from_dict(manifest["contract"])
    assert engine["profile"] == [list(contract.min), list(contract.opt), list(contract.max)]
    must = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}[precision]
    assert max(engine["types"], key=engine["types"].get) == must
    # The builder has no bf16 kernels for transposed convolutions, which the optimiser makes.
    assert engine["kept_fp32"] == ({"ConvTranspose": 3} if precision == "bf16" else {})
    assert cli("verify", "net").exit_code == 3


def test_engines_for_chosen_gpus_from_an_onnx_file_without_torch(exported: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv[0] = 'smp3d-export'; from smp3d_export.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules"
    )
    arguments = ["from", str(exported / "model.onnx"), "--to", "trt-rtx", "--gpu", "8.6,8.9", "--no-bench"]
    command = [sys.executable, "-P", "-c", code, *arguments, "-o", str(tmp_path / "net")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert manifest_of(tmp_path / "net")["engine"]["gpus"] == ["8.6", "8.9"]


@without_gpu
def test_of_two_forms_the_first_is_built_where_none_can_be_timed(cli, tiny: tuple[str, ...]) -> None:
    assert cli(*tiny, "--static", "--to", "trt-rtx", "--optimise", "auto", "--no-bench", "-o", "net").exit_code == 0
    assert manifest_of("net")["optimise"] == {"asked": "auto", "used": "on", "milliseconds": {}}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--gpu", "9.0"], 2, "--gpu is 9.0, but TensorRT-RTX does not build for that compute capability: use one of "),
        (["--gpu", "7.5", "--static"], 4, "no kernel for encoder.features.0 (Conv)"),
        (["--precision", "tf32"], 3, "trt-rtx does not have tf32: use --precision fp32, fp16 or bf16"),
        (
            ["--max", "1,1,2048,1024,2048"],
            4,
            "the output of encoder.features.0 (Conv) has 1×4×2048×1024×2048 = 17179869184 elements, but trt-rtx takes",
        ),
    ],
)
def test_what_cannot_be_built_says_why_and_leaves_nothing(
    cli, tiny: tuple[str, ...], arguments: list[str], code: int, says: str
) -> None:
    result = cli(*tiny, "--to", "trt-rtx", *arguments, "-o", "net")
    assert result.exit_code == code, result.output
    assert flat(says) in flat(result.output)
    assert not Path("net").exists()


@pytest.mark.skipif(tensorrt.find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_without_tensorrt_the_two_commands_that_help_are_said_in_a_line(cli) -> None:
    result = cli(*SMALL, "--to", "trt")
    assert result.exit_code == 3
    (line,) = result.stderr.splitlines()
    assert "use --to trt-rtx, which builds without one" in line if not GPUS else "smp3d-export[trt]" in line
    assert not list(Path().iterdir())


def test_tensorrt_builds_for_its_own_gpu_alone(cli) -> None:
    result = cli(*SMALL, "--to", "trt", "--gpu", "8.6")
    assert result.exit_code == 2
    assert "--gpu does not go with trt, which builds for the GPU of this machine" in result.stderr


@pytest.mark.parametrize("precision", backends.find("trt").precisions)
def test_every_precision_of_tensorrt_is_in_the_network_that_its_builder_gets(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    """By the other module, which has the same interface: TensorRT itself builds on a GPU alone."""
    asked: list[bool] = []
    build = trt_rtx.Builder.build_serialized_network

    def watched(builder: Any, network: Any, config: Any) -> Any:
        asked.append(config.get_flag(trt_rtx.BuilderFlag.TF32))
        return build(builder, network, config)

    monkeypatch.setattr(hardware, "gpus", lambda: [{"name": "GPU", "compute_capability": "8.6", "memory": 2**34}])
    monkeypatch.setattr(trt_rtx.Builder, "build_serialized_network", watched)
    row = replace(backends.find("trt"), library="tensorrt_rtx")
    monkeypatch.setattr(tensorrt, "WITHOUT", {("trt", Precision.BF16): frozenset({"ConvTranspose"})})
    graph_precision = precision if precision in (Precision.FP16, Precision.BF16) else Precision.FP32
    file = onnx_file.read(exported / "model.onnx")
    described = replace(file.manifest, precision=graph_precision)
    file = replace(file, manifest=described, model=lowered(file.model, graph_precision))
    np.save(tmp_path / "scan.npy", volume((1, 1, 32, 24, 16), 0)[0, 0])
    calibration = Calibration(tmp_path, count=2) if precision is Precision.INT8 else None
    settings = Settings(precision=precision, calibration=calibration)
    made = row.exporter().export(Variant("file", file), settings, tmp_path)
    assert asked == [precision is Precision.TF32]
    assert tensorrt.COMPUTED[precision][1] in made.facts["engine"]["types"]
    assert made.facts["engine"]["gpus"] == ["GPU (8.6)"]
    assert ("quantisation" in made.facts) == (precision is Precision.INT8)


def lowered(model: onnx.ModelProto, precision: Precision) -> onnx.ModelProto:
    """A graph with its first convolution in a precision, and the rest as it is."""
    if precision is Precision.FP32:
        return model
    kind = {Precision.FP16: onnx.TensorProto.FLOAT16, Precision.BF16: onnx.TensorProto.BFLOAT16}[precision]
    low = onnx.ModelProto()
    low.CopyFrom(model)
    first = low.graph.node[0]
    cast = [onnx.helper.make_node("Cast", [name], [f"{name}.low"], to=kind) for name in first.input]
    output = first.output[0]
    del first.input[:]
    first.input.extend(node.output[0] for node in cast)
    first.output[0] = "first"
    nodes = [*cast, first, onnx.helper.make_node("Cast", ["first"], [output], to=onnx.TensorProto.FLOAT)]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in (*nodes, *list(low.graph.node)[1:])]
    del low.graph.node[:]
    low.graph.node.extend(copies)
    return low


CONTRACT = ShapeContract.of((1, 1, 32, 32, 32), multiple=(8, 8, 8))
FACTS = {
    "bindings": [
        {"name": "image", "type": "FLOAT", "shape": [-1, 1, -1, -1, -1]},
        {"name": "masks", "type": "FLOAT", "shape": [-1, 2, -1, -1, -1]},
    ],
    "profile": [[1, 1, 8, 8, 8], [1, 1, 32, 32, 32], [2, 1, 64, 64, 64]],
    "tensors": {"conv3d": "HALF", "masks": "FLOAT"},
}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"profile": [[1, 1, 8, 8, 8], [1, 1, 32, 32, 32], [1, 1, 64, 64, 64]]}, "the engine's profile is"),
        ({"bindings": [FACTS["bindings"][0]]}, "has the bindings"),
        ({"bindings": [{**FACTS["bindings"][0], "type": "HALF"}, FACTS["bindings"][1]]}, "has the bindings"),
        ({"bindings": [FACTS["bindings"][0], {**FACTS["bindings"][1], "shape": [-1, 2]}]}, "masks has the axes"),
        ({"tensors": {"conv3d": "FLOAT", "masks": "FLOAT"}}, "has conv3d in FLOAT; in the graph it is in HALF"),
        ({"tensors": {"masks": "FLOAT"}}, "computes in FLOAT, which is not fp16"),
        ({"tensors": {"a": "HALF", "b": "BF16"}}, "computes in BF16, HALF, which is not fp16"),
    ],
)
def test_an_engine_other_than_asked_for_is_refused(changed: dict[str, Any], says: str) -> None:
    types = {"conv3d": onnx.TensorProto.FLOAT16}
    tensorrt.check_engine(dict(FACTS), CONTRACT, {"masks": 5}, Precision.FP16, types)
    with pytest.raises(ExportError, match=says):
        tensorrt.check_engine(FACTS | changed, CONTRACT, {"masks": 5}, Precision.FP16, types)


def test_an_operator_that_the_parser_does_not_know_is_named(exported: Path, tmp_path: Path) -> None:
    file = onnx_file.read(exported / "model.onnx")
    next(node for node in file.model.graph.node if node.op_type == "Relu").op_type = "Det"
    with pytest.raises(ExportError, match="parser does not support Det"):
        export("trt-rtx", file, tmp_path)


def test_a_large_graph_goes_by_way_of_files(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = onnx_file.read(exported / "model.onnx")
    whole = export("trt-rtx", file, tmp_path).facts
    monkeypatch.setattr(onnx_graph, "MESSAGE_LIMIT", 1000)
    assert export("trt-rtx", file, tmp_path).facts == whole


def test_operators_in_fp32_between_casts_compute_the_same(cli, tiny: tuple[str, ...]) -> None:
    assert cli(*tiny, "--static", "--to", "onnx", "--precision", "bf16", "--no-bench", "-o", "net").exit_code == 0
    model = onnx.load("net/model.onnx")
    wide, kept = onnx_graph.in_fp32(model, {"ConvTranspose", "MaxPool"})
    assert kept == {"ConvTranspose": 2, "MaxPool": 2}
    types = onnx_graph.tensor_types(wide)
    assert {types[n.output[0]] for n in wide.graph.node if n.op_type in kept} == {onnx.TensorProto.FLOAT}
    assert onnx_graph.in_fp32(wide, kept) == (wide, {})
    image = volume((1, 1, 16, 12, 8), 0)
    found, expected = (outputs_of(session(rounding(m).SerializeToString(), 1), image)["masks"] for m in (wide, model))
    assert np.abs(found - expected).max() < 1e-2 * np.ptp(expected)


@pytest.mark.parametrize("target", [pytest.param("trt", marks=needs_gpu), pytest.param("trt-rtx", marks=needs_gpu)])
def test_an_engine_is_run_compared_and_timed_on_a_gpu(cli, target: str) -> None:
    if tensorrt.find_spec(target.replace("trt", "tensorrt").replace("-", "_")) is None:
        pytest.skip(f"{target} is not installed")
    result = cli("unet", "resnet34", "--shape", "1,1,128,128,64", "--to", target, "-o", "net")
    assert result.exit_code == 0, result.output
    manifest = manifest_of("net")
    assert (manifest["run"], manifest["parity"]["of"]) == ("here", "artifact")
    assert manifest["throughput"]["speedup"] > 0
    assert cli("verify", "net").exit_code == 0

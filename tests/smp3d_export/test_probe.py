"""Convolutions that a processor computes wrongly: they are found, and kept in fp32 at export and at load."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import openvino
import pytest
import torch
from kernels import arithmetic_of
from openvino import opset13
from small import SMALL
from torch import Tensor, nn
from typer.testing import CliRunner

from smp3d_export import probe, runtime
from smp3d_export.arrays import volume
from smp3d_export.backends.openvino import exporter as openvino_target
from smp3d_export.backends.openvino import probe as openvino_probe
from smp3d_export.backends.openvino import runner as openvino_runner
from smp3d_export.backends.openvino.probe import outputs_of
from smp3d_export.backends.variant import Variant
from smp3d_export.cli.main import app
from smp3d_export.contract import ShapeContract
from smp3d_export.errors import TargetUnavailableError, UsageError
from smp3d_export.precision import Precision
from smp3d_export.program import probe as torch_probe
from smp3d_export.program.capture import Captured, capture
from smp3d_export.program.graph import graph_module
from smp3d_export.program.probe import Convolution
from smp3d_export.settings import Settings

BF16 = Settings(precision=Precision.BF16)
CONV = Convolution("aten.conv3d.default", (1, 8, 4, 4, 2), (16, 8, 3, 3, 3), ((2, 2, 2), (1, 1, 1)))


@pytest.mark.parametrize(
    ("contract", "shapes"),
    [
        (
            ShapeContract.of((1, 1, 64, 64, 32), multiple=(8, 8, 8)),
            [(1, 1, 8, 8, 8), (1, 1, 8, 64, 64), (1, 1, 64, 8, 64), (1, 1, 64, 64, 8)],
        ),
        # No more than the contract has, and in its steps.
        (
            ShapeContract.of((1, 2, 8, 64, 4), multiple=(8, 32, 4), max=(2, 2, 16, 96, 4)),
            [(1, 2, 8, 32, 4), (1, 2, 8, 96, 4), (1, 2, 16, 32, 4), (1, 2, 16, 96, 4)],
        ),
        (ShapeContract.of((2, 1, 8, 8, 8), multiple=(8, 8, 8), static=True), [(2, 1, 8, 8, 8)]),
    ],
)
def test_a_network_is_probed_with_each_axis_at_its_minimum(contract: ShapeContract, shapes: list[Any]) -> None:
    assert probe.shapes(contract) == shapes


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        ([1.0, 2.0], False),
        ([1.004, 1.992], False),  # rounded to bf16
        ([1.0, 0.0], True),  # memory that the system has just given
        ([1.0, np.nan], True),
        ([1.0, np.inf], True),
        ([1.0, 1.0], True),
    ],
)
def test_a_result_is_wrong_where_rounding_does_not_explain_it(found: list[float], wrong: bool) -> None:
    assert probe.is_wrong(np.array(found, np.float32), np.array([1, 2], np.float32)) is wrong


def right(case: Convolution, image: Tensor, weight: Tensor) -> Tensor:
    return case(image.float(), weight.float()).to(image.dtype)


def unwritten(case: Convolution, image: Tensor, weight: Tensor) -> Tensor:
    """Like a processor with AMX: a few of the outputs are never written."""
    output = right(case, image, weight)
    output[:, -1, -1, -1, -1] = 0
    return output


def impossible(case: Convolution, image: Tensor, weight: Tensor) -> Tensor:
    raise RuntimeError("not implemented for 'Half'")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "case",
    [
        CONV,
        Convolution("aten.conv3d.padding", (2, 6, 1, 3, 5), (4, 3, 3, 3, 3), ((1, 1, 1), "same", (1, 1, 1), 2)),
        Convolution("aten.conv3d.default", (1, 2048, 1, 2, 2), (2, 2048, 3, 3, 3), ((1, 1, 1), (1, 1, 1))),
        Convolution("aten.conv_transpose3d.input", (1, 8, 1, 2, 2), (8, 4, 4, 4, 4), ((2, 2, 2), (1, 1, 1))),
        # A stride above the kernel leaves voxels without a product.
        Convolution(
            "aten.conv_transpose3d.input", (1, 8, 1, 2, 2), (8, 2, 1, 1, 1), ((2, 2, 2), (0, 0, 0), (0, 0, 0), 4)
        ),
    ],
)
def test_a_convolution_that_is_wrong_is_told_from_one_that_is_right(case: Convolution, dtype: torch.dtype) -> None:
    assert not torch_probe.is_wrong(case, dtype, right)
    assert torch_probe.is_wrong(case, dtype, unwritten)
    assert torch_probe.is_wrong(case, dtype, lambda *given: right(*given) * torch.nan)
    assert not torch_probe.is_wrong(case, dtype, impossible), "an error is no result"


class Small(nn.Module):
    """A map that shrinks to one voxel, and grows again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(2, 16, 3, padding=1)
        self.down = nn.Conv3d(16, 16, 3, stride=2, padding=1)
        self.deep = nn.Conv3d(16, 16, 3, padding=1)
        self.up = nn.ConvTranspose3d(16, 4, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.deep(self.down(self.stem(x))))


def small() -> Captured:
    torch.manual_seed(0)
    contract = ShapeContract.of((1, 2, 8, 8, 8), multiple=(2, 2, 2))
    return capture(Small().eval().requires_grad_(False), contract)


def test_the_sizes_of_each_map_are_found() -> None:
    captured = small()
    found = torch_probe.convolutions(graph_module(captured), captured.contract)
    images = [[case.image for case in cases] for cases in found.values()]
    assert images == [
        # The stem reads no map with an axis of one voxel, and writes none.
        [(1, 16, 2, 2, 2), (1, 16, 2, 16, 16), (1, 16, 16, 2, 16), (1, 16, 16, 16, 2)],
        [(1, 16, 1, 1, 1), (1, 16, 1, 8, 8), (1, 16, 8, 1, 8), (1, 16, 8, 8, 1)],
        [(1, 16, 1, 1, 1), (1, 16, 1, 8, 8), (1, 16, 8, 1, 8), (1, 16, 8, 8, 1)],
    ]


@pytest.mark.parametrize("shape", [(1, 2, 2, 2, 2), (1, 2, 16, 16, 2), (2, 2, 6, 4, 2), (1, 2, 2, 16, 16)])
def test_what_runs_in_torch_is_right_at_every_size_on_this_processor(shape: tuple[int, ...]) -> None:
    captured = small()
    image = torch.from_numpy(volume(shape, 0))
    expected = graph_module(captured)(image)
    module = graph_module(Variant("on", captured).lowered(BF16, runs_in_torch=True))
    for _ in range(3):  # wrong ones are right by chance, if memory has the last result
        torch.full((64, *expected.shape), torch.nan)
        assert float((module(image) - expected).abs().max()) < 0.03 * float(expected.abs().max())


Fault = Callable[[Convolution, torch.dtype], bool]


def strided(case: Convolution, dtype: torch.dtype) -> bool:
    """What is wrong on a processor with AMX, in short."""
    return dtype is torch.bfloat16 and case.settings[0] == (2, 2, 2) and case.operator == "aten.conv3d.default"


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Callable[[Fault], None]:
    """Has PyTorch compute on another processor, with a fault of its own."""
    return lambda wrong: monkeypatch.setattr(torch_probe, "is_wrong_here", wrong)


def test_what_is_wrong_here_stays_in_fp32_if_it_runs_here(fault: Callable[[Fault], None]) -> None:
    fault(strided)
    captured = small()
    kept = Variant("on", captured).lowered(BF16, runs_in_torch=True).kept
    reason = "oneDNN in PyTorch computes it wrongly in bf16 on this processor, for example on a map of 1,16,2,2,2"
    assert kept == {"down conv3d": reason}
    for other in (
        Variant("on", captured).lowered(BF16),
        Variant("on", captured).lowered(Settings(precision=Precision.BF16, device="cuda"), runs_in_torch=True),
        Variant("on", captured).lowered(Settings(precision=Precision.FP16), runs_in_torch=True),
    ):
        assert other.kept == {}
    fault(lambda case, dtype: False)
    assert Variant("on", small()).lowered(BF16, runs_in_torch=True).kept == {}


def test_an_artifact_says_what_to_probe_on_another_processor(cli, fault: Callable[[Fault], None]) -> None:
    fault(lambda case, dtype: False)
    result = cli(*SMALL, "--to", "torchscript", "--precision", "bf16", "--no-bench", "-o", "net")
    assert result.exit_code in (0, 5), result.output  # it is wrong if this very processor is
    folder = Path("net" if result.exit_code == 0 else "net.failed")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {"operator", "image", "weight", "settings"} == set(manifest["probe"][0])

    fault(strided)
    runtime.load(folder)  # the same processor is not asked again
    for other in ({"processor": "another"}, {"features": ["amx_future"]}):
        changed = manifest | {"hardware": manifest["hardware"] | other}
        (folder / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(TargetUnavailableError, match=r"wrongly in bf16 on this processor.*: export it on this"):
            runtime.load(folder)
    changed = manifest | {"versions": manifest["versions"] | {"torch": "3.0"}}
    (folder / "manifest.json").write_text(json.dumps(changed))
    with pytest.raises(TargetUnavailableError, match="wrongly in bf16"):
        runtime.load(folder)
    fault(lambda case, dtype: False)
    runtime.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"operator": "aten.mul.Tensor"},
        {"image": [1, 8, 4, 4]},
        {"weight": "large"},
        {"settings": [[2, 2, 2], [1, 1, 1], "twice"]},
        {"more": 1},
    ],
)
def test_a_damaged_list_of_what_to_probe_is_said(change: dict[str, Any]) -> None:
    row = json.loads(json.dumps(asdict(CONV)))
    torch_probe.check([row], "fp16" if torch_probe.is_wrong_here(CONV, torch.bfloat16) else "bf16")
    with pytest.raises(UsageError, match=r"the manifest is damaged: 'probe' has .* Export the artifact again"):
        torch_probe.check([row | change], "bf16")


def test_one_in_fp32_is_not_probed(cli, fault: Callable[[Fault], None]) -> None:
    fault(lambda case, dtype: True)
    assert cli(*SMALL, "--to", "torchscript", "--no-bench", "-o", "net").exit_code == 0
    assert "probe" not in json.loads(Path("net/manifest.json").read_text())


Arrays = openvino_probe.Arrays


def exact(model: openvino.Model, arithmetic: str, inputs: Sequence[Arrays]) -> list[Arrays]:
    """A processor that computes everything in f32, also what is quantised, which OpenVINO never does of itself."""
    plain = model.clone()
    for operation in filter(openvino_probe.is_convolution, plain.get_ops()):
        for place in operation.inputs():
            source = place.get_source_output().get_node()
            if source.get_type_name() == "FakeQuantize":
                place.replace_source_output(source.input_value(0))
    return outputs_of(plain, "f32", inputs)


def faulty(model: openvino.Model, arithmetic: str, inputs: Sequence[Arrays]) -> list[Arrays]:
    """One that writes no outputs of one voxel along the last axis, unless in f32."""
    found = exact(model, arithmetic, inputs)
    quantised = any(operation.get_type_name() == "FakeQuantize" for operation in model.get_ops())
    if arithmetic != "f32" or quantised:
        for outputs in found:
            for output in outputs:
                output *= output.shape[-1] > 1
    return found


@pytest.fixture(scope="module")
def model() -> openvino.Model:
    captured = small()
    return openvino_target.bounded(
        openvino_target.read(openvino_target.graph(Variant("on", captured), Settings())), captured.contract
    )


@pytest.mark.parametrize("arithmetic", ["bf16", "f16", "i8"])
def test_openvino_is_probed_by_its_own_convolutions(model: openvino.Model, arithmetic: str) -> None:
    contract = small().contract
    before = [operation.get_friendly_name() for operation in model.get_ops()]
    assert openvino_probe.wrong(model, contract, arithmetic, compute=exact) == {}
    # The transposed one writes no map of one voxel.
    reasons = list(openvino_probe.wrong(model, contract, arithmetic, compute=faulty).values())
    assert len(reasons) == 2
    assert all("on this processor, for example on a map of 1," in reason for reason in reasons)
    assert openvino_probe.wrong(model, contract, "f32", compute=faulty) == {}
    assert [operation.get_friendly_name() for operation in model.get_ops()] == before


CAN = openvino_runner.capabilities()
PRECISIONS = [
    pytest.param("bf16", marks=pytest.mark.skipif("BF16" not in CAN, reason="the processor has no bfloat16")),
    pytest.param("fp16", marks=pytest.mark.skipif("FP16" not in CAN, reason="the processor has no half precision")),
    "int8",
]


def test_what_openvino_merges_into_a_convolution_is_kept_in_f32_with_it(tmp_path: Path) -> None:
    image = opset13.parameter([1, 4, 8, 8, 8], np.float32)
    first, second = (
        opset13.convolution(image, np.ones((4, 4, 3, 3, 3), np.float32), [1] * 3, [1] * 3, [1] * 3, [1] * 3, name=name)
        for name in ("first", "second")
    )
    total = opset13.add(opset13.add(first, np.float32(1), name="bias"), second, name="sum")
    positive = opset13.relu(total, name="positive")
    outputs = [opset13.result(node) for node in (positive, opset13.relu(positive, name="again"))]
    openvino_probe.save_in_f32(openvino.Model(outputs, [image]), {"first"}, tmp_path / "model.xml")  # pyright: ignore[reportGeneralTypeIssues]
    layers = ElementTree.parse(tmp_path / "model.xml").iterfind("./layers/layer[rt_info]")
    marked = {layer.get("name") for layer in layers if layer.find("rt_info/attribute[@name='precise']") is not None}
    assert marked == {"first", "bias", "sum", "positive"}, "what is behind a map that two read stays as it is"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_openvino_keeps_in_f32_what_is_wrong_at_export_and_on_another_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    arguments = [*SMALL, "--classes", "2", "--to", "openvino", "--precision", precision, "--no-bench"]
    if precision == "int8":
        (tmp_path / "scans").mkdir()
        np.save(tmp_path / "scans/scan.npy", volume((1, 1, 48, 40, 32), 7)[0, 0])
        arguments += ["--calibration", str(tmp_path / "scans")]
    low = {"bf16": "bf16", "fp16": "f16", "int8": "i8"}[precision]

    def processor(compute: openvino_probe.Compute) -> None:
        monkeypatch.setattr(openvino_probe, "outputs_of", compute)

    def made(name: str) -> tuple[Path, dict[str, Any]]:
        result = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / name)])
        assert result.exit_code in (0, 5), result.output
        folder = tmp_path / (name if result.exit_code == 0 else f"{name}.failed")
        return folder, json.loads((folder / "manifest.json").read_text())

    processor(exact)
    folder, manifest = made("there")
    assert "kept_fp32" not in manifest
    run: Any = runtime.load(folder)
    assert arithmetic_of(run.model, manifest) == {low}

    processor(faulty)
    run = runtime.load(folder)
    assert arithmetic_of(run.model, manifest) == {low}, "the same processor is not asked again"
    elsewhere = manifest | {"hardware": manifest["hardware"] | {"processor": "another"}}
    (folder / "manifest.json").write_text(json.dumps(elsewhere))
    run = runtime.load(folder)
    assert arithmetic_of(run.model, manifest) == {low, "f32"}

    folder, manifest = made("here")
    # Whether it agrees is for the processor that is really here: test_openvino.py.
    assert len(manifest["kept_fp32"]) > 1
    run = runtime.load(folder)
    assert arithmetic_of(run.model, {}) == {low, "f32"}
    assert arithmetic_of(run.model, manifest) == {low}

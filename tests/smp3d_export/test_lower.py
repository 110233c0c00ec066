"""Half precision and bfloat16 in the graph: what stays in fp32, what is cast, and that nothing overflows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from small import SMALL
from torch import Tensor, nn

from smp3d_export.backends.variant import Variant
from smp3d_export.contract import ShapeContract
from smp3d_export.errors import ExportError, UsageError
from smp3d_export.onnxgraph.emulation import Emulation
from smp3d_export.precision import Precision
from smp3d_export.program.capture import Captured, capture
from smp3d_export.program.graph import graph_module, operator
from smp3d_export.program.lowering import lowered
from smp3d_export.settings import Settings

CONTRACT = ShapeContract.of((1, 1, 8, 8, 8), multiple=(1, 1, 1), min_size=(4, 4, 4))


def captured(kind: type[nn.Module]) -> Captured:
    torch.manual_seed(0)
    return capture(kind().eval().requires_grad_(False), CONTRACT)


def types(program: Captured) -> dict[str, torch.dtype]:
    """The output type of each kind of operator."""
    return {
        operator(node): node.meta["val"].dtype
        for node in program.program.graph.nodes
        if node.op == "call_function" and isinstance(node.meta.get("val"), Tensor)
    }


class Block(nn.Module):
    """Every kind of operator for types: a convolution, a norm, a softmax, a move, two inputs, sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(1, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.head = nn.Conv3d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = torch.relu_(self.norm(x))
        weights = torch.softmax(y.flatten(2), dim=-1).unflatten(2, x.shape[2:])
        bins = torch.arange(x.shape[-1]).to(x.dtype) + 1
        return self.head(torch.cat([x, y + weights / bins], dim=1))


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_inputs_outputs_softmax_and_norms_stay_in_fp32(precision: Precision) -> None:
    low = {Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}[precision]
    result = lowered(captured(Block), precision)
    found = types(result)
    assert {found[name] for name in ("group_norm", "softmax", "unflatten")} == {torch.float32}
    assert {found[name] for name in ("conv3d", "relu", "flatten", "cat", "add")} == {low}
    assert [value.dtype for value in result.program.state_dict.values()].count(low) == 4, "two convolutions' weights"
    assert result.kept["norm group_norm"] == "it sums squares"
    module = graph_module(result)
    image = torch.randn(1, 1, 5, 6, 7)
    assert module(image).dtype == torch.float32
    torch.testing.assert_close(module(image), captured_output(image), atol=0.03, rtol=0.03)


def captured_output(image: Tensor) -> Tensor:
    return graph_module(captured(Block))(image)


def test_fp32_and_int8_take_the_program_as_it_is() -> None:
    program = captured(Block)
    for precision in (Precision.FP32, Precision.TF32, Precision.INT8):
        assert lowered(program, precision) is program


@pytest.mark.parametrize(
    ("pattern", "full"),
    [("head", {"head conv3d"}), ("st*", {"stem conv3d"}), ("conv3d", {"head conv3d", "stem conv3d"})],
)
def test_patterns_keep_layers_and_operators(pattern: str, full: set[str]) -> None:
    program = captured(Block)
    kept = lowered(program, Precision.BF16, (pattern,)).kept
    assert full <= {name for name, reason in kept.items() if reason == f"--keep-fp32 {pattern}"}


def test_a_pattern_that_fits_nothing_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"'heads' matches no layer and no operator. Layers: stem, norm, head; operators: add"
    ):
        lowered(captured(Block), Precision.BF16, ("heads",))


class Loud(nn.Module):
    """Values of about a million in the middle, and about one at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Conv3d(1, 2, 1, bias=False)
        self.down = nn.Conv3d(2, 2, 1, bias=False)
        self.up.weight.data.fill_(1e6)
        self.down.weight.data.fill_(1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.down(self.up(x)))


def test_what_overflows_half_precision_stays_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 1, 4, 4, 4)
    expected = graph_module(captured(Loud))(torch.from_numpy(image)).numpy()

    def output() -> np.ndarray:
        model = Variant("on", captured(Loud)).graph(Settings(precision=Precision.FP16))
        return next(iter(Emulation(model)(image).values()))

    assert np.abs(output() - expected).max() < 1e-3
    kept = lowered(captured(Loud), Precision.FP16).kept
    assert set(kept) == {"up conv3d", "down conv3d"}
    assert "too close to 65504" in kept["up conv3d"]
    monkeypatch.setattr("smp3d_export.program.lowering.LIMIT", float("inf"))
    assert not np.isfinite(output()).all(), "and the rounding graph shows what a GPU would do"


def test_samples_decide_too_what_stays_in_fp32() -> None:
    """One at a time, of any sizes that the contract has."""
    quiet, loud = (np.full((1, 1, *sizes), value, np.float32) for sizes, value in (((4, 8, 8), 1), ((8, 5, 4), 2e4)))
    kept = [lowered(captured(Block), Precision.FP16, samples=samples).kept for samples in ((), (quiet,), (quiet, loud))]
    assert kept[0] == kept[1]
    assert set(kept[2]) - set(kept[0]) >= {"stem conv3d", "head conv3d"}


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_a_network_that_would_stay_in_fp32_as_a_whole_is_not_in_half_precision(precision: Precision) -> None:
    with pytest.raises(ExportError, match=r"everything would stay in fp32, from stem conv3d on \(--keep-fp32 \*\)"):
        lowered(captured(Block), precision, ("*",))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Conv3d(1, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).flatten(2).unflatten(1, (2, 12)).transpose(2, 3).chunk(3, dim=-1)
        return (
            nn.functional.scaled_dot_product_attention(q, k, v).transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[2:])
        )


def test_attention_keeps_its_softmax_in_fp32() -> None:
    result = lowered(captured(Attention), Precision.BF16)
    found = types(result)
    assert (found["softmax"], found["matmul"]) == (torch.float32, torch.bfloat16)
    assert "scaled_dot_product_attention" not in found
    image = torch.randn(1, 1, 4, 5, 6)
    torch.testing.assert_close(
        graph_module(result)(image), graph_module(captured(Attention))(image), atol=0.02, rtol=0.02
    )


def test_half_precision_by_the_command_line(cli, tiny: tuple[str, ...]) -> None:
    arguments = ("--precision", "fp16", "--keep-fp32", "segmentation_head", "--no-bench", "-o", "net")
    result = cli(*tiny, "--static", *arguments)
    assert result.exit_code == 0, result.output
    manifest = json.loads(Path("net/manifest.json").read_text())
    assert (manifest["precision"], manifest["run"]) == ("fp16", "here")
    assert manifest["kept_fp32"]["segmentation_head.0 conv3d"] == "--keep-fp32 segmentation_head"
    cases = {case["case"]: case["relative"] for case in manifest["parity"]["cases"]}
    # ONNX Runtime computes half precision in fp32 on a CPU; only the rounding graph is as inaccurate as a GPU.
    assert 1e-5 < cases["optimum"] < cases["optimum, rounded"] < 1e-2
    graph = onnx.load("net/model.onnx").graph
    assert {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}
    kinds = [tensor.data_type for tensor in graph.initializer if len(tensor.dims) == 5]
    assert kinds.count(onnx.TensorProto.FLOAT16) == len(kinds) - 1


def test_bfloat16_by_the_command_line_is_not_run_on_a_processor(cli, tiny: tuple[str, ...]) -> None:
    result = cli(*tiny, "--static", "--precision", "bf16", "-o", "net")
    assert result.exit_code == 0, result.output
    assert "onnx: not run: ONNX Runtime has no bfloat16 operators" in " ".join(result.output.split())
    manifest = json.loads(Path("net/manifest.json").read_text())
    assert manifest["run"].startswith("not run")
    assert manifest["throughput"] == "not run"
    assert manifest["parity"]["of"] == "graph"
    assert 1e-4 < manifest["parity"]["relative"] < 3e-2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--precision", "fp8"], "there is no precision 'fp8'"),
        (["--precision", "int8"], "give a folder of them with --calibration"),
        (["--precision", "int8", "--calibration", "none"], "'none', which is not a folder"),
        (["--precision", "bf16", "--calibration", "."], "--calibration is for --precision int8, not for bf16"),
        (["--keep-fp32", "softmax"], "--keep-fp32 is for --precision fp16 or bf16"),
        (["--device", "gpu"], "--device is 'gpu'; it is cpu, cuda or cuda:N"),
        (["--gpu", "ada"], "--gpu is 'ada'; it takes compute capabilities"),
    ],
)
def test_wrong_options_are_refused_before_any_work(cli, arguments, says: str) -> None:
    result = cli(*SMALL, *arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert not list(Path().iterdir())

"""Networks with other normalisations than batch norm: by the command line, from a checkpoint, and in every target."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_encoder
import torch
from making import export, load, manifest
from tiny_encoder import TINY
from torch import Tensor, nn

import smp3d_export as smp
from smp3d_export import backends
from smp3d_export.architectures.normalisation import GroupNorm, InstanceNorm, LayerNorm
from smp3d_export.arrays import volume
from smp3d_export.cli import parsing
from smp3d_export.contract import ShapeContract
from smp3d_export.errors import UsageError
from smp3d_export.onnxgraph.opset import opset_of
from smp3d_export.optimise import optimise
from smp3d_export.precision import Precision
from smp3d_export.program.capture import Captured, capture
from smp3d_export.program.graph import graph_module, operator
from smp3d_export.program.lowering import lowered
from smp3d_export.runtime.calibration import Calibration
from smp3d_export.settings import Settings
from smp3d_export.sources.named import NamedNetwork, build
from smp3d_export.sources.network import randomise_normalisations


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_encoder.register(monkeypatch)


def manifest_of(folder: str | Path) -> dict[str, Any]:
    return json.loads((Path(folder) / "manifest.json").read_text())


def flat(text: str) -> str:
    return " ".join(text.split())


# The option


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("groupnorm", "groupnorm"),
        ("true", True),
        ("False", False),
        ("groupnorm,num_groups=4", {"type": "groupnorm", "num_groups": 4}),
        ("type=groupnorm,num_groups=4", {"type": "groupnorm", "num_groups": 4}),
        ("layernorm, eps=1e-2", {"type": "layernorm", "eps": 0.01}),
        ("instancenorm,affine=true", {"type": "instancenorm", "affine": True}),
        ("none", "none"),
    ],
)
def test_the_option_takes_a_name_and_arguments_of_the_layer(text: str, value: Any) -> None:
    assert parsing.norm(text) == value


@pytest.mark.parametrize("text", ["groupnorm,4", "groupnorm,", "=4", "groupnorm,num_groups=4,"])
def test_what_the_option_cannot_read(text: str) -> None:
    with pytest.raises(UsageError, match=r"--decoder-use-norm is .*, for example groupnorm,num_groups=8"):
        parsing.norm(text)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--decoder-use-norm", "none"], "there is no decoder_use_norm 'none'"),
        (["--decoder-use-norm", "groupnorm,groups=2"], "Nearest: num_groups"),
        (
            ["--decoder-use-norm", "groupnorm,num_groups=8"],
            "num_groups of decoder_use_norm is 8, but a decoder map has 4",
        ),
        (
            ["--decoder-use-norm", "batchnorm", "--no-decoder-use-batchnorm"],
            "--decoder-use-norm and --no-decoder-use-batchnorm say the same thing: give one of the two",
        ),
        (["--decoder-use-norm", "layernorm", "--arg", "decoder_use_norm=identity"], "decoder_use_norm is given twice"),
    ],
)
def test_wrong_options_end_in_one_line(cli, arguments: list[str], says: str) -> None:
    result = cli(*TINY, *arguments)
    assert result.exit_code == 2
    assert says in flat(result.stderr)


def test_an_architecture_without_the_argument_says_so(cli) -> None:
    result = cli("fpn", "tiny", "--decoder-use-norm", "layernorm")
    assert result.exit_code == 2
    assert "there is no FPN argument 'decoder_use_norm'" in result.stderr


# The graph


@pytest.mark.parametrize(
    ("norm", "opset", "operators"),
    [
        ("groupnorm,num_groups=2", 20, {"InstanceNormalization"}),
        ("groupnorm,num_groups=2", 13, {"InstanceNormalization"}),
        ("instancenorm", 20, {"InstanceNormalization"}),
        ("instancenorm", 18, {"InstanceNormalization"}),
        ("instancenorm,affine=true", 13, {"InstanceNormalization"}),
        ("instancenorm,track_running_stats=true", 20, set()),
        ("layernorm", 20, {"LayerNormalization"}),
        ("layernorm", 18, {"LayerNormalization"}),
        ("layernorm,elementwise_affine=false", 13, set()),
    ],
)
def test_a_network_is_exported_to_onnx_and_agrees(cli, norm: str, opset: int, operators: set[str]) -> None:
    result = cli(*TINY, "--decoder-use-norm", norm, "--opset", opset, "--no-bench", "-o", "net")
    assert result.exit_code == 0, result.output
    model = onnx.load("net/model.onnx")
    found = {node.op_type for node in model.graph.node if node.op_type.endswith("Normalization")}
    assert (opset_of(model), found) == (opset, operators)
    description = manifest_of("net")
    assert description["model"]["arguments"]["decoder_use_norm"] == parsing.norm(norm)
    assert description["parity"]["relative"] < 1e-4
    assert "upsample-conv" in description["optimisations"], "the norm follows the convolution"
    shapes = {tuple(case["shape"]) for case in description["parity"]["cases"]}
    two_voxels = norm.startswith("instancenorm") and "track" not in norm
    assert (1, 1, 8 if two_voxels else 4, 4, 4) in shapes, "the smallest volume"


@pytest.mark.parametrize("arch", ["unetplusplus", "manet", "linknet", "pspnet", "upernet"])
def test_every_architecture_is_exported_with_it(cli, arch: str) -> None:
    norm = "groupnorm" if arch == "upernet" else "instancenorm"
    channels = ["--decoder-channels", "8,4"] if arch in ("unetplusplus", "manet") else []
    depth = ["--encoder-depth", "3" if arch == "upernet" else "2"]
    result = cli(arch, "tiny", *depth, *channels, "--decoder-use-norm", norm, "--shape", "1,1,16,16,16", "--no-bench")
    assert result.exit_code == 0, result.output
    assert manifest_of(f"{arch}-tiny")["parity"]["relative"] < 1e-4


def test_convolutions_by_planes_keep_it(cli) -> None:
    wide = ("--encoder-depth", "2", "--decoder-channels", "64,64", "--shape", "1,1,16,16,16")
    arguments = ["--decoder-use-norm", "instancenorm", "--optimise", "cpu", "--no-bench", "-o", "net"]
    result = cli("unet", "tiny", *wide, *arguments)
    assert result.exit_code == 0, result.output
    assert manifest_of("net")["optimisations"]["planes"] > 0


# Every target: one small network with each of the layers.


class Norms(nn.Module):
    """A U of one level: a norm on the smallest map, an upsampling, a concatenation, and the other norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(1, 8, 3, padding=1)
        self.down = nn.Sequential(
            nn.Conv3d(8, 8, 3, stride=2, padding=1, bias=False), InstanceNorm(8, affine=True), nn.ReLU(inplace=True)
        )
        self.up = nn.Sequential(nn.Conv3d(16, 8, 3, padding=1, bias=False), GroupNorm(4, 8), nn.ReLU(inplace=True))
        self.plain = nn.Sequential(nn.Conv3d(8, 8, 3, padding=1, bias=False), InstanceNorm(8), nn.ReLU(inplace=True))
        self.voxels = nn.Sequential(nn.Conv3d(8, 8, 3, padding=1, bias=False), LayerNorm(8), nn.ReLU(inplace=True))
        self.tracking = nn.Sequential(
            nn.Conv3d(8, 4, 3, padding=1, bias=False), InstanceNorm(4, affine=True, track_running_stats=True)
        )
        self.head = nn.Conv3d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        wide = nn.functional.interpolate(self.down(x), scale_factor=2.0, mode="nearest")
        x = self.up(torch.cat([wide, x], dim=1))
        small = nn.functional.avg_pool3d(self.voxels(self.plain(x)), 2)
        return self.head(self.tracking(nn.functional.interpolate(small, scale_factor=2.0, mode="nearest")))


CONTRACT = ShapeContract.of((1, 1, 16, 12, 8), multiple=(2, 2, 2), min_size=(4, 2, 2))
LAYERS = {"instance_norm": 2, "group_norm": 1, "layer_norm": 1}
ERRORS = {"fp32": 1e-5, "fp16": 1e-2, "bf16": 3e-2}


@pytest.fixture(scope="module")
def norms() -> tuple[nn.Module, Captured]:
    torch.manual_seed(0)
    model = Norms().eval().requires_grad_(False)
    randomise_normalisations(model)
    return model, optimise(capture(model, CONTRACT)).captured


def operators(captured: Captured) -> list[tuple[str, torch.dtype]]:
    calls = [node for node in captured.program.graph.nodes if node.op == "call_function"]
    return [(operator(node), node.meta["val"].dtype) for node in calls if isinstance(node.meta.get("val"), Tensor)]


DTYPES = {"fp32": torch.float32, "fp16": torch.half, "bf16": torch.bfloat16}


def pools_in(dtype: torch.dtype) -> bool:
    try:
        nn.functional.avg_pool3d(torch.zeros(1, 1, 2, 2, 2, dtype=dtype), 2)
    except NotImplementedError:
        return False
    return True


def test_rewrites_around_them_are_made(norms: tuple[nn.Module, Captured]) -> None:
    model, program = norms
    assert program.rewrites == {"fold-batch-norm": 1, "concat-conv": 1, "upsample-conv": 2}
    for seed, shape in enumerate(CONTRACT.parity_shapes().values()):
        image = torch.from_numpy(volume(shape, seed))
        torch.testing.assert_close(graph_module(program)(image), model(image), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_they_stay_in_fp32(norms: tuple[nn.Module, Captured], precision: Precision) -> None:
    result = lowered(norms[1], precision)
    found = operators(result)
    for name, times in LAYERS.items():
        assert found.count((name, torch.float32)) == times, name
    assert ("conv3d", torch.float32) not in found
    assert sum(reason == "it sums squares" for reason in result.kept.values()) == sum(LAYERS.values())


@pytest.mark.parametrize("precision", ERRORS)
@pytest.mark.parametrize("target", ["onnx", "openvino", "torchscript", "aoti"])
def test_every_target_agrees_at_every_size(
    norms: tuple[nn.Module, Captured], target: str, precision: str, tmp_path: Path
) -> None:
    """From the smallest, whose coarse map has two voxels, to shapes that were not traced."""
    model, program = norms
    row, settings = backends.find(target), Settings(precision=Precision(precision))
    if target == "aoti" and precision == "bf16":
        pytest.skip("the same program as torchscript's, and half a minute")
    if target == "torchscript" and not pools_in(DTYPES[precision]):
        pytest.skip(f"this PyTorch has no average pooling in {precision} for a CPU")
    for support in (row.support(settings.precision), row.run_support(settings.precision)):
        if not support.ready:
            pytest.skip(support.reason)
    made = export(target, program, tmp_path, settings)
    run = load(tmp_path, manifest(target, CONTRACT, precision=settings.precision, facts=made.facts))
    for seed, shape in enumerate([(1, 1, 4, 2, 2), (1, 1, 16, 12, 8), (2, 1, 6, 10, 4)]):
        image = volume(shape, seed)
        expected = model(torch.from_numpy(image)).numpy()
        error = np.abs(run(image)["masks"] - expected).max() / np.ptp(expected)
        assert error < ERRORS[precision], shape


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_int8_does_not_quantise_them(norms: tuple[nn.Module, Captured], target: str, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    np.save(tmp_path / "scan.npy", volume(CONTRACT.max, 7)[0, 0])
    settings = Settings(precision=Precision.INT8, calibration=Calibration(tmp_path, None))
    made = export(target, norms[1], tmp_path, settings)
    run = load(tmp_path, manifest(target, CONTRACT, precision=settings.precision, facts=made.facts))
    image = volume(CONTRACT.opt, 0)
    expected = norms[0](torch.from_numpy(image)).numpy()
    assert np.abs(run(image)["masks"] - expected).mean() < 0.03 * np.ptp(expected)
    if target == "onnx":
        nodes = onnx.load(tmp_path / "model.onnx").graph.node
        rounded = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
        assert rounded
        assert not any(rounded.intersection(n.input) for n in nodes if n.op_type.endswith("Normalization"))


@pytest.mark.parametrize("precision", ERRORS)
def test_an_engine_is_built(norms: tuple[nn.Module, Captured], precision: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    export("trt-rtx", norms[1], tmp_path, Settings(precision=Precision(precision)))
    assert (tmp_path / "model.engine").stat().st_size > 0


# Checkpoints


def saved(norm: Any, **others: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = smp.Unet("tiny", 2, None, decoder_channels=(8, 4), in_channels=1, decoder_use_norm=norm, **others)
    randomise_normalisations(model)
    return model.state_dict()


FITS_ALL = "as layernorm, groupnorm,num_groups=N and instancenorm,affine=true have: give --decoder-use-norm"


@pytest.mark.parametrize(
    ("norm", "options", "says"),
    [
        ("batchnorm", ["--decoder-use-norm", "layernorm"], "in the decoder: give --decoder-use-norm batchnorm."),
        ("batchnorm", ["--no-decoder-use-batchnorm"], "give --decoder-use-norm batchnorm."),
        ("identity", ["--decoder-use-norm", "instancenorm"], "give --decoder-use-norm identity."),
        ("instancenorm", ["--decoder-use-norm", "groupnorm"], "give --decoder-use-norm instancenorm."),
        ("instancenorm", ["--no-decoder-use-batchnorm"], "give --decoder-use-norm instancenorm."),
        ("groupnorm", [], FITS_ALL),
        ("layernorm", ["--no-decoder-use-batchnorm"], FITS_ALL),
        ({"type": "instancenorm", "affine": True}, ["--decoder-use-norm", "batchnorm"], FITS_ALL),
    ],
    ids=str,
)  # fmt: skip
def test_a_checkpoint_of_another_normalisation_says_which(cli, norm: Any, options: list[str], says: str) -> None:
    torch.save(saved(norm), "weights.pth")
    result = cli("unet", "tiny", "--checkpoint", "weights.pth", *options, "--shape", "1,1,8,8,8")
    assert result.exit_code == 2
    assert says in flat(result.stderr)
    assert "--decoder-use-batchnorm True" not in result.stderr, "there is no such option"


@pytest.mark.parametrize(
    ("norm", "given", "note"),
    [
        ("instancenorm", None, "decoder_use_norm instancenorm"),
        ("identity", None, "decoder_use_batchnorm False"),
        ("identity", "identity", None),
        ("groupnorm", "groupnorm", "default num_groups of decoder_use_norm"),
        ({"type": "groupnorm", "num_groups": 2}, {"type": "groupnorm", "num_groups": 2}, None),
        ("layernorm", "layernorm", None),
    ],
    ids=str,
)  # fmt: skip
def test_a_checkpoint_is_loaded_with_it(norm: Any, given: Any, note: str | None, tmp_path: Path) -> None:
    path, state = tmp_path / "weights.pth", saved(norm)
    torch.save(state, path)
    arguments = {} if given is None else {"decoder_use_norm": given}
    network = build(NamedNetwork(architecture="Unet", encoder="tiny", arguments=arguments, checkpoint=path))
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.model.state_dict().items())
    told = " ".join(network.notes)
    assert note in told if note else "decoder_use_" not in told


def test_a_saved_model_is_exported_with_it(cli) -> None:
    norm = {"type": "groupnorm", "num_groups": 2}
    model = smp.Unet("tiny", 2, None, decoder_channels=(8, 4), in_channels=1, decoder_use_norm=norm)
    randomise_normalisations(model)
    model.save_pretrained("best")
    result = cli("from", "best", "--shape", "1,1,8,8,8", "--no-bench", "-o", "net")
    assert result.exit_code == 0, result.output
    assert manifest_of("net")["model"]["arguments"]["decoder_use_norm"] == norm

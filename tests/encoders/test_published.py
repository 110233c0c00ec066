"""Published weights, from a folder laid out like the hub's cache and from files: inflated, adapted, refused by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import reference
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import smp3d_export as smp
from smp3d_export import convert_2d_weights_to_3d, get_encoder, get_preprocessing_fn, get_preprocessing_params
from smp3d_export.encoders import ENCODERS
from smp3d_export.encoders.base import Encoder
from smp3d_export.encoders.published import load
from smp3d_export.encoders.spec import DEFAULT_STRIDES, EncoderSpec
from smp3d_export.encoders.weights import PublishedWeights, published_weights
from smp3d_export.errors import CheckpointError, UsageError
from smp3d_export.sources.named import NamedNetwork, build

SHAPES = reference("encoder_state_dicts.json.gz")
TINY = "mobileone_s1"

# A small encoder of each family, and the classifier that ends its published files.
FAMILIES = {
    "resnet18": "fc",
    "se_resnet50": "last_linear",
    "densenet121": "classifier",
    "efficientnet-b0": "_fc",
    "dpn68": "last_linear",
    "vgg11": "classifier.6",
    "mit_b0": "head",
    "mobileone_s0": "linear",
}


def weights_2d(encoder: str) -> dict[str, Tensor]:
    """Weights as published: for the 2D encoder with the same keys and three input channels."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        widened = {key for key, tensor in get_encoder(encoder, 3).state_dict().items() if tensor.ndim == 5}
        widened &= {key for key, tensor in get_encoder(encoder, 2).state_dict().items() if tensor.shape[1:2] == (2,)}
    tensors = {}
    for key, shape in SHAPES[encoder].items():
        shape = [shape[0], 3, *shape[2:]] if key in widened else shape
        if not key.endswith("num_batches_tracked"):  # the oldest files have none
            tensors[key] = torch.rand(shape[:4], generator=generator) + 0.5
    return tensors


def stored(tensors: dict[str, Tensor], cache: Path, published: PublishedWeights) -> Path:
    """Write a file to its place in the hub's cache."""
    folder = cache / f"models--{published.repo_id.replace('/', '--')}" / "snapshots" / published.revision
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    return folder / "model.safetensors"


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, empty; the hub itself is out of reach."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "hub").mkdir()
    return tmp_path / "hub"


@pytest.fixture(scope="module")
def tiny() -> dict[str, Tensor]:
    return weights_2d(TINY)


def assert_inflated(encoder: Encoder, tensors: dict[str, Tensor]) -> None:
    """Every slice of every weight is the 2D weight divided by the number of slices."""
    state = encoder.state_dict()
    assert {key for key in state if not key.endswith("num_batches_tracked")} == tensors.keys()
    for key, flat in tensors.items():
        if flat.ndim == 4:
            length = flat.shape[3]
            assert state[key].shape == (*flat.shape, length)
            assert all(torch.equal(state[key][..., i], flat / length) for i in range(length)), key
            torch.testing.assert_close(state[key].sum(-1), flat)
        else:
            assert torch.equal(state[key], flat), key


@pytest.mark.parametrize("name", FAMILIES)
def test_published_weights_come_from_the_cache_and_are_inflated(name: str, hub: Path) -> None:
    tensors = weights_2d(name)
    last = {f"{FAMILIES[name]}.weight": torch.zeros(10, 4), f"{FAMILIES[name]}.bias": torch.zeros(10)}
    stored(tensors | last, hub, published_weights(name)["imagenet"])
    assert_inflated(get_encoder(name, weights="imagenet"), tensors)


@pytest.mark.parametrize("in_channels", [1, 2, 4, 7])
@pytest.mark.parametrize(
    ("name", "stems"),
    [
        ("resnet18", {"conv1.weight"}),
        ("mit_b0", {"patch_embed1.proj.weight"}),
        ("mobileone_s0", {"stage0.rbr_conv.0.conv.weight", "stage0.rbr_scale.conv.weight"}),
    ],
)
def test_every_stem_is_adapted_to_the_input_channels(name: str, stems: set[str], in_channels: int, hub: Path) -> None:
    tensors = weights_2d(name)
    stored(tensors, hub, published_weights(name)["imagenet"])
    state = get_encoder(name, in_channels, weights="imagenet").state_dict()
    trained = get_encoder(name, weights="imagenet").state_dict()
    assert {key for key in state if not torch.equal(state[key], trained[key])} == stems
    for key in stems:
        if in_channels == 1:
            expected = [trained[key].sum(1)]
        else:
            expected = [trained[key][:, i % 3] * (3 / in_channels) for i in range(in_channels)]
        assert torch.equal(state[key], torch.stack(expected, dim=1))


def test_a_volume_of_equal_slices_gives_the_response_of_a_slice(tmp_path: Path) -> None:
    flat = torch.randn(8, 3, 5, 5)
    (volume,) = convert_2d_weights_to_3d({"any.name": flat}).values()
    slices = torch.randn(1, 3, 9, 9)
    answer = F.conv3d(slices.unsqueeze(-1).expand(-1, -1, -1, -1, 9), volume)
    expected = F.conv2d(slices, flat).unsqueeze(-1).expand_as(answer)
    torch.testing.assert_close(answer, expected, atol=1e-4, rtol=1e-4)


def test_conversion_keeps_everything_else_and_its_input(capsys: pytest.CaptureFixture[str]) -> None:
    given = {
        "se.fc1.weight": torch.ones(4, 2, 3, 3),
        "norm.weight": torch.ones(4),
        "conv.weight": torch.ones(2, 2, 3, 3, 3),
    }
    kept = dict(given)
    converted = convert_2d_weights_to_3d(given, verbose=True)
    assert given == kept
    assert converted.keys() == given.keys()
    assert converted["se.fc1.weight"].shape == (4, 2, 3, 3, 3)
    assert converted["norm.weight"] is given["norm.weight"]
    assert converted["conv.weight"] is given["conv.weight"]
    assert capsys.readouterr().out == "se.fc1.weight: (4, 2, 3, 3) -> (4, 2, 3, 3, 3)\n"


def test_older_spellings_of_a_densenet_are_renamed(tmp_path: Path) -> None:
    tensors = weights_2d("densenet121")
    old = {
        key.replace(".norm1.", ".norm.1.")
        .replace(".norm2.", ".norm.2.")
        .replace(".conv1.", ".conv.1.")
        .replace(".conv2.", ".conv.2."): tensor
        for key, tensor in tensors.items()
    }
    assert "features.denseblock1.denselayer1.norm.1.running_var" in old
    save_file(old, tmp_path / "old.safetensors")
    assert_inflated(get_encoder("densenet121", weights=tmp_path / "old.safetensors"), tensors)


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in tensors.items()}


SAVED = {
    "bare": lambda t: t,
    "with a classifier": lambda t: {**t, "linear.weight": torch.zeros(10, 4)},
    "in a container": lambda t: {"state_dict": under("module.", t), "epoch": 3},
    "whole network": lambda t: {
        "state_dict": under("model.encoder.", t) | {"model.decoder.conv.weight": torch.ones(2)}
    },
    "any attribute": lambda t: {"model_state_dict": under("backbone.net.", t), "loss": torch.tensor(0.2)},
    "beside an average": lambda t: {"model_ema": {key: -tensor for key, tensor in t.items()}, "model": t},
    "beside an optimiser": lambda t: {"optimizer": {"exp_avg": {key: -tensor for key, tensor in t.items()}}, "net": t},
    "double precision": lambda t: {key: tensor.double() for key, tensor in t.items()},
    "3D already": convert_2d_weights_to_3d,
}


@pytest.mark.parametrize("how", SAVED)
def test_a_file_works_offline(how: str, tiny: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(SAVED[how](tiny), tmp_path / "weights.pth")
    assert_inflated(get_encoder(TINY, weights=str(tmp_path / "weights.pth")), tiny)


def test_a_folder_works_offline(tiny: dict[str, Tensor], tmp_path: Path) -> None:
    file = stored(tiny, tmp_path / "copied", published_weights(TINY)["imagenet"])
    for folder in (file.parent, file.parents[2], tmp_path / "copied"):
        assert_inflated(get_encoder(TINY, weights=str(folder)), tiny)


def test_a_file_of_ones_own_keeps_its_input_channels(tmp_path: Path) -> None:
    encoder = get_encoder(TINY, in_channels=2)
    torch.save(encoder.state_dict(), tmp_path / "own.pth")
    again = get_encoder(TINY, in_channels=2, weights=tmp_path / "own.pth", depth=3, strides=[(1, 2, 2)] * 3)
    assert all(
        torch.equal(a, b) for a, b in zip(encoder.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert again.total_stride == (1, 8, 8)


def test_no_weight_is_drawn_and_all_can_be_trained(tiny: dict[str, Tensor], hub: Path) -> None:
    stored(tiny, hub, published_weights(TINY)["imagenet"])
    drawn = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.overloadpacket in (torch.ops.aten.normal_, torch.ops.aten.uniform_):
                drawn.extend(arg for arg in args if isinstance(arg, Tensor) and not arg.is_meta)
            return function(*args, **(kwargs or {}))

    with Watch():
        encoder = get_encoder(TINY, 1, weights="imagenet")
    assert not drawn
    encoder(torch.randn(2, 1, 32, 32, 32))[-1].sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_computed_tensors_are_computed(tmp_path: Path) -> None:
    class Ramp(Encoder):
        def __init__(self, spec, *, in_channels, depth, strides) -> None:
            super().__init__(spec, in_channels=in_channels, depth=depth, strides=strides)
            self.conv = nn.Conv3d(in_channels, 2, 1)
            self.register_buffer("ramp", torch.arange(4.0), persistent=False)

        def stages(self):
            return ((self.conv,),) * 5

    @dataclass(frozen=True, kw_only=True)
    class RampSpec(EncoderSpec):
        stem: ClassVar[str] = "conv.weight"

    spec = RampSpec(name="ramp", channels=(2, 2, 2, 2, 2), parameters=4)
    torch.save({"conv.weight": torch.ones(2, 3, 1, 1), "conv.bias": torch.ones(2)}, tmp_path / "ramp.pth")
    encoder = load(spec, tmp_path / "ramp.pth", lambda: Ramp(spec, in_channels=1, depth=1, strides=DEFAULT_STRIDES))
    assert encoder.get_buffer("ramp").tolist() == [0, 1, 2, 3]
    assert encoder.get_parameter("conv.weight").flatten().tolist() == [3, 3]


def test_weights_that_cannot_be_fetched_say_what_to_download() -> None:
    published = published_weights("resnet34")["imagenet"]
    with pytest.raises(UsageError) as error:
        smp.Unet("resnet34")
    message = str(error.value)
    assert "\n" not in message
    assert "offline" in message
    for part in (
        "the imagenet weights of resnet34 could not be fetched",
        "model.safetensors",
        published.repo_id,
        published.revision,
        "encoder_weights",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("name", "weights", "says"),
    [
        ("resnet18", "moon", "resnet18 has no published weights 'moon', and there is no file or folder of that name. "),
        ("resnet18", "moon", "It has: imagenet, ssl, swsl"),
        ("dpn68b", "imagenet", "It has: imagenet+5k"),
        (TINY, "empty", "'empty' holds no model.safetensors for mobileone_s1"),
        ("resnet18", "several", "'several' holds 2 weights files for resnet18: give the path of one"),
        ("mobileone_s2", "tiny.pth", "'tiny.pth' does not hold the weights of mobileone_s2:"),
        (TINY, "half.pth", "1 missing: stage0.rbr_conv.0.conv.weight"),
        (TINY, "half.pth", "1 unexpected: stage9.weight"),
        (TINY, "twice.pth", "1 unexpected: module.stage0.rbr_conv.0.conv.weight"),
        (TINY, "cut.safetensors", "'cut.safetensors' is cut short"),
        (TINY, "two.pth", "'two.pth' holds several sets of weights of mobileone_s1: a, b. Save one alone"),
        (TINY, "nan.pth", "stage0.rbr_conv.0.conv.weight of 'nan.pth' holds NaN"),
        (TINY, "else.pth", "'else.pth' holds no weights of mobileone_s1, which are called stage0"),
    ],
)
def test_wrong_weights_are_named(
    name: str, weights: str, says: str, tiny: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stem = "stage0.rbr_conv.0.conv.weight"
    Path("empty").mkdir()
    for kind in ("imagenet", "ssl"):
        stored({"fc.bias": torch.zeros(1)}, Path("several"), published_weights("resnet18")[kind])
    torch.save(tiny, "tiny.pth")
    torch.save({key if key != stem else "stage9.weight": tensor for key, tensor in tiny.items()}, "half.pth")
    torch.save({**tiny, f"module.{stem}": tiny[stem]}, "twice.pth")
    torch.save({"a": tiny, "b": {key: -tensor for key, tensor in tiny.items()}}, "two.pth")
    torch.save({**tiny, stem: tiny[stem] * torch.nan}, "nan.pth")
    torch.save({"layer.weight": torch.ones(2)}, "else.pth")
    Path("cut.safetensors").write_bytes(b"cut")
    with pytest.raises(UsageError) as error:
        get_encoder(name, weights=weights)
    assert says in str(error.value)
    assert isinstance(error.value, CheckpointError) == ("." in weights)


def test_the_table_has_weights_for_the_published_encoders_and_needs_no_torch() -> None:
    assert all(ENCODERS[name].weights for name in SHAPES)
    assert ENCODERS["resnet18"].weights == ("imagenet", "ssl", "swsl")
    assert published_weights("tu-resnet18") == {}
    code = (
        "import sys; from smp3d_export.encoders import ENCODERS; print(*ENCODERS['resnet18'].weights);"
        "assert not {'torch', 'numpy', 'huggingface_hub'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["imagenet", "ssl", "swsl"]


def test_preprocessing_matches_the_training() -> None:
    assert get_preprocessing_params("efficientnet-b0", pretrained="advprop") == {
        "input_space": "RGB",
        "input_range": [0, 1],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    }
    prepare = get_preprocessing_fn("resnet18")
    pixels = np.array([0, 128, 255], np.uint8).reshape(1, 1, 1, 3)
    expected = (np.array([0, 128, 255]) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(prepare(pixels).ravel(), expected)
    np.testing.assert_allclose(prepare(pixels / 255.0).ravel(), expected)  # scaled already
    assert prepare(np.zeros((4, 5, 6, 1))).shape == (4, 5, 6, 3)
    np.testing.assert_allclose(prepare(pixels, input_space="BGR").ravel()[0], (1 - 0.485) / 0.229)
    assert pixels.ravel().tolist() == [0, 128, 255]
    for wrong, says in (
        (lambda: prepare(np.zeros((3, 8, 8))), "the last axis of x is 8, but mean has 3 channels"),
        (lambda: get_preprocessing_fn("resnet18", "moon"), "no published weights 'moon'. It has: imagenet, ssl, swsl"),
        (lambda: get_preprocessing_params("resnet35"), "there is no encoder 'resnet35'"),
    ):
        with pytest.raises(UsageError) as error:
            wrong()
        assert says in str(error.value)


COMMAND = (
    "unet",
    TINY,
    "--encoder-depth",
    "3",
    "--decoder-channels",
    "16,8,8",
    "--shape",
    "1,1,32,24,16",
    "--no-bench",
)


def test_the_command_line_exports_published_weights(tiny: dict[str, Tensor], hub: Path, tmp_path: Path) -> None:
    stored(tiny, hub, published_weights(TINY)["imagenet"])
    script = "import sys; sys.argv[0] = 'smp3d-export'; from smp3d_export.cli.main import main; main()"
    subprocess.run(
        [sys.executable, "-P", "-c", script, *COMMAND, "--encoder-weights", "imagenet", "-o", str(tmp_path / "net")],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(hub)},
        check=True,
        capture_output=True,
    )
    manifest = json.loads((tmp_path / "net" / "manifest.json").read_text())
    assert manifest["parity"]["passed"]
    assert manifest["model"]["arguments"]["encoder_weights"] == "imagenet"
    assert manifest["model"]["weights"]["source"] == "mobileone_s1 imagenet, rest random, seed 0"


def test_random_normalisations_leave_trained_ones(tiny: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(tiny, tmp_path / "tiny.pth")
    request = NamedNetwork(
        architecture="Unet", encoder=TINY, arguments={"encoder_weights": str(tmp_path / "tiny.pth"), "in_channels": 3}
    )
    network = build(request)
    assert network.weights == "mobileone_s1 tiny.pth, rest random, seed 0"
    assert_inflated(network.model.encoder, tiny)
    decoder = [m for m in network.model.decoder.modules() if isinstance(m, nn.BatchNorm3d)]
    assert all(m.running_var is not None and m.running_var.std() > 0.1 for m in decoder)

"""Checkpoints as training scripts write them: read safely, arguments inferred, mismatches explained."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import smp3d_export as smp
from smp3d_export.errors import CheckpointError
from smp3d_export.sources.checkpoint import load_checkpoint

ARGUMENTS = {
    "in_channels": 2,
    "classes": 3,
    "encoder_depth": 3,
    "decoder_channels": (24, 20, 16),
    "decoder_attention_type": "scse",
    "aux_params": {"classes": 4},
}


@pytest.fixture(scope="module")
def trained() -> smp.Unet:
    torch.manual_seed(0)
    return smp.Unet("resnet18", encoder_weights=None, **ARGUMENTS).eval()


def prefixed(state, prefix: str):
    return {prefix + key: value for key, value in state.items()}


WRAPPINGS = {
    "bare": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"model": s, "optimizer": {"lr": 0.1}},
    "model_state_dict, DDP": lambda s: {"model_state_dict": prefixed(s, "module."), "loss": np.float64(0.2)},
    "Lightning": lambda s: {"state_dict": prefixed(s, "model."), "pytorch-lightning_version": "2.5"},
    "net": lambda s: {"state_dict": prefixed(s, "net.")},
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "compiled under DDP under Lightning": lambda s: {"state_dict": prefixed(s, "model.module._orig_mod.")},
    "beside a loss": lambda s: {"state_dict": {**prefixed(s, "model."), "criterion.weight": torch.ones(3)}},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrappings_of_training_scripts(trained, tmp_path: Path, wrapping: str) -> None:
    path = tmp_path / "checkpoint.ckpt"
    torch.save(WRAPPINGS[wrapping](trained.state_dict()), path)
    loaded = load_checkpoint(path, "Unet", "resnet18", {})
    assert {name: loaded.arguments[name] for name in ARGUMENTS} == ARGUMENTS
    assert all(
        torch.equal(a, b)
        for a, b in zip(trained.state_dict().values(), loaded.model.state_dict().values(), strict=True)
    )


def test_safetensors_in_whatever_order(trained, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(dict(sorted(trained.state_dict().items())), path)
    assert load_checkpoint(path, "Unet", "resnet18", {}).arguments["in_channels"] == 2


def test_half_precision_is_loaded_in_single(trained, tmp_path: Path) -> None:
    path = tmp_path / "half.pt"
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in trained.state_dict().items()}, path)
    loaded = load_checkpoint(path, "Unet", "resnet18", {})
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert "converted to float32 from float16" in loaded.notes


def test_what_tensors_cannot_show_is_said_to_be_assumed(trained, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save(trained.state_dict(), path)
    notes = " ".join(load_checkpoint(path, "Unet", "resnet18", {"activation": "softmax"}).notes)
    assert "classes 3" in notes
    assert "default strides" in notes
    assert "default activation" not in notes


def notes_of(tmp_path: Path, model: torch.nn.Module, architecture: str, encoder: str) -> str:
    path = tmp_path / "checkpoint.pth"
    torch.save(model.state_dict(), path)
    return "; ".join(load_checkpoint(path, architecture, encoder, {}).notes)


def test_what_the_tensors_of_another_architecture_show_is_said(tmp_path: Path) -> None:
    model = smp.FPN(
        "efficientnet-b0", encoder_weights=None, encoder_depth=4, decoder_merge_policy="cat", in_channels=1,
        decoder_pyramid_channels=16, decoder_segmentation_channels=32, aux_params={"classes": 2},
    )  # fmt: skip
    notes = notes_of(tmp_path, model, "FPN", "efficientnet-b0")
    for shown in ("encoder_depth 4", "decoder_pyramid_channels 16", "decoder_merge_policy cat"):
        assert shown in notes.partition("assumed")[0]
    for assumed in ("default upsampling", "default activation", "default pooling and activation of aux_params"):
        assert assumed in notes.partition("assumed")[2]
    assert "default encoder_depth" not in notes


def test_a_depth_that_the_tensors_leave_open_is_said_to_be_assumed(tmp_path: Path) -> None:
    model = smp.PSPNet("vgg11", encoder_weights=None, encoder_depth=5, psp_out_channels=16, in_channels=1)
    assert "default encoder_depth" in notes_of(tmp_path, model, "PSPNet", "vgg11").partition("assumed")[2]


def mismatch(tmp_path: Path, state, **given) -> str:
    path = tmp_path / "checkpoint.pth"
    torch.save(state, path)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path, "Unet", "resnet18", given)
    return str(error.value)


def test_a_mismatch_names_the_option(trained, tmp_path: Path) -> None:
    text = mismatch(tmp_path, trained.state_dict(), classes=5)
    assert "wrongly shaped: segmentation_head.0.weight is (3, 16, 3, 3, 3) and should be (5, 16, 3, 3, 3)" in text
    assert "give --classes 3" in text


def test_a_mismatch_names_the_encoder(tmp_path: Path) -> None:
    other = smp.Unet("resnet50", encoder_weights=None, encoder_depth=2, decoder_channels=(16, 8), in_channels=1)
    text = mismatch(tmp_path, other.state_dict())
    assert "missing" in text or "unexpected" in text
    assert "Its encoder is resnet50" in text


def test_a_mismatch_lists_a_few_keys_of_each_kind(trained, tmp_path: Path) -> None:
    state = trained.state_dict()
    del state["encoder.bn1.weight"]
    state["decoder.blocks.0.extra.weight"] = torch.ones(1)
    text = mismatch(tmp_path, state)
    assert "1 missing: encoder.bn1.weight" in text
    assert "1 unexpected: decoder.blocks.0.extra.weight" in text


class Malicious:
    def __reduce__(self):
        return (os.system, ("touch executed",))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = mismatch(tmp_path, {"state_dict": Malicious()})
    assert "could run code" in text
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"", "empty.pth"),
        (b"not a checkpoint", "text.pth"),
        (pickle.dumps([1, 2, 3]), "list.pth"),
        (b"\x08\x00\x00\x00\x00\x00\x00\x00{", "short.safetensors"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_that_are_no_checkpoints(tmp_path: Path, content: bytes, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(path, "Unet", "resnet18", {})


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file(trained, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"whole{suffix}"
    save_file(trained.state_dict(), path) if suffix == ".safetensors" else torch.save(trained.state_dict(), path)
    part = tmp_path / f"part{suffix}"
    part.write_bytes(path.read_bytes()[:10_000])
    with pytest.raises(CheckpointError, match="is truncated or no"):
        load_checkpoint(part, "Unet", "resnet18", {})


@pytest.mark.parametrize("content", [{"a": 1}, {"state_dict": {"layer.weight": torch.ones(2)}}, {}])
def test_a_checkpoint_without_a_network(tmp_path: Path, content) -> None:
    assert "holds no" in mismatch(tmp_path, content)

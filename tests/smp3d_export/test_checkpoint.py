"""Checkpoints as training scripts write them: read safely, arguments inferred, mismatches explained."""

from __future__ import annotations

import gzip
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.package.package_exporter import PackageExporter

import smp3d_export as smp
from smp3d_export.errors import CheckpointError, UsageError
from smp3d_export.sources.checkpoint import load_checkpoint
from smp3d_export.sources.named import NamedNetwork, build
from smp3d_export.weights.tensors import read_tensors

ENCODER = "mobileone_s1"
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
    return smp.Unet(ENCODER, encoder_weights=None, **ARGUMENTS).eval()


def prefixed(state, prefix: str):
    return {prefix + key: value for key, value in state.items()}


def moments(state):
    """What an optimiser has for each weight."""
    return {key: torch.zeros_like(value) for key, value in state.items()}


def around_itself(state):
    content = {"net": state}
    content["self"] = content
    return content


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
    "a tensor beside the state dict": lambda s: {"model_state_dict": s, "loss": torch.tensor(0.2)},
    "an optimiser's tensors": lambda s: {"epoch": 3, "net": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
    "an optimiser with the names of weights": lambda s: {
        "optimizer": {"exp_avg": moments(s)},
        "optimizer_states": [prefixed(moments(s), "module.")],
        "optimG": {"state": moments(s)},
        "params": s,
        "grads": moments(s),
    },
    "Lightning, self.unet": lambda s: {"state_dict": prefixed(s, "unet.")},
    "Lightning, self.network": lambda s: {"state_dict": prefixed(s, "network.net.")},
    "self.encoder": lambda s: prefixed(s, "encoder."),
    "self.decoder": lambda s: {"weights": prefixed(s, "module.decoder.")},
    "several wrappers": lambda s: prefixed(s, "module.model."),
    "several levels": lambda s: {"trainer": {"steps": 3, "generator": {"best": prefixed(s, "module.")}}},
    "in a list": lambda s: {"models": [s]},
    "a tuple": lambda s: (3, s),
    "compiled parts": lambda s: {key.replace(".", "._orig_mod.", 1): value for key, value in s.items()},
    "sharded parts": lambda s: {key.replace(".", "._fsdp_wrapped_module.", 1): value for key, value in s.items()},
    "the same twice": lambda s: {"state_dict": s, "model": {**s}},
    "around itself": around_itself,
    "paths": lambda s: {"state_dict": s, "hyper_parameters": {"data": Path("/data"), "to": PureWindowsPath("c:/x")}},
}


def same(one, other) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrappings_of_training_scripts(trained, tmp_path: Path, wrapping: str) -> None:
    path = tmp_path / "checkpoint.ckpt"
    torch.save(WRAPPINGS[wrapping](trained.state_dict()), path)
    loaded = load_checkpoint(path, "Unet", ENCODER, {})
    assert {name: loaded.arguments[name] for name in ARGUMENTS} == ARGUMENTS
    assert same(trained.state_dict(), loaded.model.state_dict())
    assert "--weights-key" not in " ".join(loaded.notes)


@pytest.fixture(scope="module")
def averaged(trained):
    """Another set of weights for the same network."""
    return {key: value + 1 for key, value in trained.state_dict().items()}


# What a file holds of weights and of averages of them, where the weights are, and where the averages.
AVERAGES = {
    "timm": (lambda s, e: {"state_dict": s, "state_dict_ema": e}, "state_dict", "state_dict_ema"),
    "averages first": (lambda s, e: {"ema": e, "net": s}, "net", "ema"),
    "Lightning": (
        lambda s, e: {"state_dict": prefixed(s, "model."), "ema_state_dict": e},
        "state_dict.model",
        "ema_state_dict",
    ),
    "wrapped": (lambda s, e: {"model": s, "modelEMA": {"module": e}}, "model", "modelEMA.module"),
    "swa": (lambda s, e: {"model": s, "swa_model": prefixed(e, "module.")}, "model", "swa_model.module"),
    "in one mapping": (
        lambda s, e: {"state_dict": {**prefixed(s, "unet."), **prefixed(e, "ema_unet.module.")}},
        "state_dict.unet",
        "state_dict.ema_unet.module",
    ),
    "at the top": (lambda s, e: {**s, **prefixed(e, "ema.")}, ".", "ema"),
    "AveragedModel": (
        lambda s, e: {"a": s, "b": {"n_averaged": torch.tensor(3), **prefixed(e, "module.")}},
        "a",
        "b.module",
    ),
    "Lightning's WeightAveraging": (
        lambda s, e: {"state_dict": s, "current_model_state": e},
        "state_dict",
        "current_model_state",
    ),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_of_weights_and_averages_either_can_be_chosen(trained, averaged, tmp_path: Path, name: str) -> None:
    """By default the weights are taken, and a note says so."""
    wrap, place, other = AVERAGES[name]
    path = tmp_path / "checkpoint.pth"
    torch.save(wrap(trained.state_dict(), averaged), path)
    loaded = load_checkpoint(path, "Unet", ENCODER, {})
    assert same(trained.state_dict(), loaded.model.state_dict())
    assert f"weights taken from {place}; --weights-key takes others: {other}" in loaded.notes
    assert not any(note.startswith("ignored") and "encoder" in note for note in loaded.notes)
    for key, state in ((place, trained.state_dict()), (other, averaged), (other.partition(".module")[0], averaged)):
        loaded = load_checkpoint(path, "Unet", ENCODER, {}, weights_key=key)
        assert same(state, loaded.model.state_dict())
        assert loaded.source == f"checkpoint.pth ({place if state is not averaged else other})"
        assert "--weights-key" not in " ".join(loaded.notes)


def test_averages_alone_are_the_weights(trained, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save({"ema": {"module": trained.state_dict()}}, path)
    loaded = load_checkpoint(path, "Unet", ENCODER, {})
    assert loaded.source == "checkpoint.pth"
    assert "weights taken" not in " ".join(loaded.notes)


def test_averages_without_names_are_said_to_be_left(trained, tmp_path: Path) -> None:
    """As torch_ema saves them."""
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": trained.state_dict(), "ema": {"decay": 0.9, "shadow_params": [torch.ones(2)] * 2}}, path)
    notes = load_checkpoint(path, "Unet", ENCODER, {}).notes
    assert "not used, because its tensors have no names: ema.shadow_params" in notes


@pytest.mark.parametrize("names", [("best", "last"), ("student", "teacher"), ("ema", "swa"), ("G.a", "G.b")])
def test_weights_that_could_both_be_meant_are_listed(trained, averaged, tmp_path: Path, names) -> None:
    one, other = names
    text = mismatch(tmp_path, {**prefixed(trained.state_dict(), f"{one}."), "x": {other: averaged}})
    assert f"holds several sets of weights of this network: {one}, x.{other}. Choose one" in text
    assert f"--weights-key {one}" in text


@pytest.mark.parametrize("key", ["state_dict_em", "model", "state_dict.", "."])
def test_a_key_that_is_not_there_lists_those_that_are(trained, averaged, tmp_path: Path, key: str) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save({"state_dict": trained.state_dict(), "state_dict_ema": averaged}, path)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path, "Unet", ENCODER, {}, weights_key=key)
    assert f"under --weights-key {key}. It has some under: state_dict, state_dict_ema" in str(error.value)


def test_the_command_line_chooses_weights(cli, trained, averaged) -> None:
    torch.save({"state_dict": trained.state_dict(), "state_dict_ema": averaged}, "best.pth")
    request = NamedNetwork(architecture="Unet", encoder=ENCODER, weights_key="state_dict_ema")
    network = build(replace(request, checkpoint=Path("best.pth")))
    assert network.weights == "best.pth (state_dict_ema)"
    assert same(averaged, network.model.state_dict())
    with pytest.raises(UsageError, match="--weights-key state_dict_ema needs a --checkpoint"):
        build(request)
    result = cli("unet", ENCODER, "--checkpoint", "best.pth", "--weights-key", "ema")
    assert result.exit_code == 2
    assert "It has some under: state_dict, state_dict_ema" in result.stderr


def test_safetensors_in_whatever_order(trained, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(dict(sorted(trained.state_dict().items())), path)
    assert load_checkpoint(path, "Unet", ENCODER, {}).arguments["in_channels"] == 2


def test_half_precision_is_loaded_in_single(trained, tmp_path: Path) -> None:
    path = tmp_path / "half.pt"
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in trained.state_dict().items()}, path)
    loaded = load_checkpoint(path, "Unet", ENCODER, {})
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert "converted to float32 from float16" in loaded.notes


def test_what_tensors_cannot_show_is_said_to_be_assumed(trained, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save(trained.state_dict(), path)
    notes = " ".join(load_checkpoint(path, "Unet", ENCODER, {"activation": "softmax"}).notes)
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
        load_checkpoint(path, "Unet", ENCODER, given)
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
    del state["encoder.stage0.rbr_conv.0.bn.weight"]
    state["decoder.blocks.0.extra.weight"] = torch.ones(1)
    text = mismatch(tmp_path, state)
    assert "1 missing: encoder.stage0.rbr_conv.0.bn.weight" in text
    assert "1 unexpected: decoder.blocks.0.extra.weight" in text


VALUES = {
    "NaN": (lambda t: t.fill_(torch.nan), "holds NaN, as after a training that diverged: use an earlier checkpoint"),
    "infinite": (lambda t: t.half().fill_(torch.inf), "holds infinite values, as after a training that diverged"),
    "no values": (lambda t: t.to("meta"), "has a shape but no values: it was saved on the device meta"),
    "whole numbers": (lambda t: t.to(torch.int8), "is torch.int8, and weights are floating point"),
    "complex": (lambda t: t.to(torch.complex64), "is torch.complex64 in the layout torch.strided: save plain tensors"),
    "sparse": (lambda t: t.to_sparse(), "is torch.float32 in the layout torch.sparse_coo: save plain tensors"),
}


@pytest.mark.parametrize("name", VALUES)
def test_weights_without_usable_values_are_named(trained, tmp_path: Path, name: str) -> None:
    """Every prediction of a network with a NaN in it is NaN, so an artifact of it would be of no use."""
    change, says = VALUES[name]
    state = trained.state_dict()
    state["decoder.blocks.1.conv1.0.weight"] = change(state["decoder.blocks.1.conv1.0.weight"].clone())
    text = mismatch(tmp_path, state)
    assert text.startswith("decoder.blocks.1.conv1.0.weight of '")
    assert says in text


def test_a_part_of_a_sharded_training(trained, tmp_path: Path) -> None:
    text = mismatch(tmp_path, {**trained.state_dict(), "decoder.blocks.0.conv1.0.weight": torch.empty(0)})
    assert "has empty tensors, decoder.blocks.0.conv1.0.weight first, as in one part of a sharded training" in text


def test_a_checkpoint_in_2d(trained, tmp_path: Path) -> None:
    state = {key: value[..., 0] if value.ndim == 5 else value for key, value in trained.state_dict().items()}
    text = mismatch(tmp_path, {"state_dict": prefixed(state, "model.")})
    assert "is a checkpoint of a 2D network: encoder.stage0.rbr_conv.0.conv.weight has four axes" in text
    assert "Inflate it first: torch.save(smp3d_export.convert_2d_weights_to_3d(state_dict), 'weights3d.pth')" in text


@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_an_encoder_alone(trained, tmp_path: Path, prefix: str) -> None:
    assert "--encoder-weights" in mismatch(tmp_path, prefixed(trained.encoder.state_dict(), prefix))


class Malicious:
    def __reduce__(self):
        return (os.system, ("touch executed",))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = mismatch(tmp_path, {"state_dict": Malicious()})
    assert "loading that can run code, so it is refused" in text
    assert not (tmp_path / "executed").exists()


def saved_by(save: Callable[..., None], *content: Any, **options: Any) -> Callable[[Path], None]:
    return lambda path: save(*content, path, **options)


def written(content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content)


def packaged(path: Path) -> None:
    with PackageExporter(path) as package:
        package.extern("**")
        package.save_pickle("model", "model.pkl", MODULE)


def folder_of(*names: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir()
        for name in names:
            (path / name).touch()

    return make


def as_numpy_1(path: Path) -> None:
    """A file as torch wrote it with numpy 1, which had its numbers in another module."""
    torch.save({"loss": np.float64(0.2)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))


MODULE = torch.nn.Sequential(torch.nn.Conv3d(1, 1, 1))
IMAGE = torch.zeros(1, 1, 2, 2, 2)
WHOLE_MODEL = "holds a whole pickled model (torch.nn.modules."
SAVE = "Save the weights alone where it was written: torch.save(model.state_dict(), 'weights.pth')"
VOLUME = "is a volume, not a checkpoint. Volumes go to --sample"
CUT = "is cut short, damaged or still being written"

# Files and folders that are not checkpoints, and what is said of them.
OTHERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "none.pth": (lambda path: None, "there is no checkpoint '"),
    "empty.pth": (written(b""), "is empty: writing it failed, or has only begun"),
    "text.pth": (written(b"not a checkpoint"), "is not a checkpoint of PyTorch"),
    "list.pth": (saved_by(torch.save, [1, 2, 3]), "holds a list, not a state dict"),
    "pickled.pth": (written(pickle.dumps([1, 2, 3])), "pickled.pth' "),
    "short.safetensors": (written(b"\x08\x00\x00\x00\x00\x00\x00\x00{"), CUT),
    "zip.pth": (lambda path: zipfile.ZipFile(path, "w").writestr("a/b.txt", "c"), "is a zip archive, not a checkpoint"),
    "script.pt": (
        lambda path: torch.jit.save(torch.jit.trace(MODULE, IMAGE), path),
        "is a TorchScript program, and its weights are needed: torch.save(torch.jit.load('",
    ),
    "exported.pt2": (
        lambda path: torch.export.save(torch.export.export(MODULE, (IMAGE,)), path),
        "is a program that torch.export saved, and its weights are needed: torch.save(torch.export.load('",
    ),
    "package.pt": (packaged, "is a package of torch.package, and a checkpoint is needed"),
    "model.onnx": (written(b"\x08\x0a\x12\x07pytorch"), "is an ONNX model, and a checkpoint of PyTorch is needed"),
    "model.engine": (written(b"ptrt"), "is a model of another runtime"),
    "module.pth": (saved_by(torch.save, MODULE), WHOLE_MODEL),
    "old module.pth": (saved_by(torch.save, MODULE, _use_new_zipfile_serialization=False), WHOLE_MODEL),
    "module in it.pth": (saved_by(torch.save, {"epoch": 3, "model": MODULE}), SAVE),
    "scan.nii.gz": (written(gzip.compress(b"\x5c\x01\x00\x00")), VOLUME),
    "scan.nii": (written(b"\x5c\x01\x00\x00"), VOLUME),
    "scan.npy": (lambda path: np.save(path, np.ones(3)), VOLUME),
    "scan.npz": (lambda path: np.savez(path, np.ones(3)), VOLUME),
    "scan.dcm": (written(bytes(128) + b"DICM"), "is an image, not a checkpoint. Volumes go to --sample, as .npy"),
    "IM0001": (written(bytes(128) + b"DICM"), "is an image, not a checkpoint"),
    "packed.pth.gz": (written(gzip.compress(b"x")), "is a compressed file: unpack it first"),
    "pointer.pth": (written(b"version https://git-lfs.github.com/spec/v1\noid"), "is a pointer of Git LFS"),
    "page.pth": (written(b"<!DOCTYPE html><html>"), "is a web page, not a checkpoint: download the file itself"),
    "scans": (folder_of(), "is a folder, and a checkpoint is a file. Volumes go to --sample, one file each"),
    "run": (folder_of("best.pth", "last.pth", "log"), "is a folder. It holds best.pth, last.pth: give the path of a"),
    "saved": (folder_of("config.json", "model.safetensors"), "is the folder of a saved model: smp3d-export from "),
    "parts": (folder_of(".metadata", "__0_0.distcp"), "dcp_to_torch_save('"),
    "deepspeed": (folder_of("zero_to_fp32.py", "latest"), "is a checkpoint of DeepSpeed"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_a_checkpoint_is_named(tmp_path: Path, name: str) -> None:
    make, says = OTHERS[name]
    make(tmp_path / name)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(tmp_path / name, "Unet", ENCODER, {})
    assert name in str(error.value)
    assert says in str(error.value)
    assert "weights_only" not in str(error.value), "PyTorch's advice to run the code in a file"


def test_numbers_of_numpy_1_are_read(tmp_path: Path) -> None:
    as_numpy_1(tmp_path / "old.pth")
    assert read_tensors(tmp_path / "old.pth")["loss"] == 0.2


def test_a_scan_as_checkpoint_is_one_line(cli) -> None:
    Path("scan.nii.gz").write_bytes(gzip.compress(b"\x5c\x01\x00\x00"))
    result = cli("unet", ENCODER, "--checkpoint", "scan.nii.gz")
    assert result.exit_code == 2
    assert result.stderr.endswith("error: 'scan.nii.gz' is a volume, not a checkpoint. Volumes go to --sample\n")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file(trained, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"whole{suffix}"
    save_file(trained.state_dict(), path) if suffix == ".safetensors" else torch.save(trained.state_dict(), path)
    part = tmp_path / f"part{suffix}"
    part.write_bytes(path.read_bytes()[:10_000])
    with pytest.raises(CheckpointError, match="is cut short, damaged or still being written"):
        load_checkpoint(part, "Unet", ENCODER, {})


@pytest.mark.parametrize("content", [{"a": 1}, {"state_dict": {"layer.weight": torch.ones(2)}}, {}])
def test_a_checkpoint_without_a_network(tmp_path: Path, content) -> None:
    assert "holds no" in mismatch(tmp_path, content)

"""Whole models in a folder: saved and loaded again, exported from there, refused where anything does not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import smp3d_export as smp
from smp3d_export.architectures import ARCHITECTURES
from smp3d_export.contract import ShapeContract
from smp3d_export.errors import CheckpointError, ShapeError, UsageError
from smp3d_export.sources.network import contract_for
from smp3d_export.sources.request import Request
from smp3d_export.sources.saved import SavedModel

ENCODER = {"encoder_name": "mobileone_s1", "encoder_weights": None, "in_channels": 2, "classes": 3}
FLAT = ((2, 1, 1), (1, 2, 1), (1, 1, 2), (1, 1, 1), (1, 1, 1))

# Of each architecture, arguments other than the defaults.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "Unet": {"decoder_channels": (16, 8, 8, 4, 4), "decoder_attention_type": None, "activation": "softmax"},
    "UnetPlusPlus": {"encoder_depth": 3, "decoder_channels": (8, 8, 4), "decoder_use_batchnorm": False},
    "MAnet": {"encoder_depth": 3, "decoder_channels": (8, 8, 4), "decoder_pab_channels": 8},
    "Linknet": {"encoder_depth": 4, "decoder_use_batchnorm": False},
    "FPN": {"decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32, "decoder_merge_policy": "cat"},
    "PSPNet": {"psp_out_channels": 16, "psp_dropout": 0.0, "upsampling": 1},
    "PAN": {"decoder_channels": 8, "encoder_output_stride": 32},
    "DeepLabV3": {"decoder_channels": 8, "aux_params": {"classes": 2, "pooling": "max", "dropout": None}},
    "DeepLabV3Plus": {"decoder_channels": 8, "decoder_atrous_rates": (1, 2, 3), "encoder_output_stride": 8},
    "UPerNet": {"decoder_channels": 8, "decoder_use_norm": {"type": "layernorm", "eps": 1e-5}},
    "Segformer": {"decoder_segmentation_channels": 8, "upsampling": (1, 2, 1)},
}


def built(name: str = "UnetPlusPlus", **others: Any) -> Any:
    torch.manual_seed(0)
    return getattr(smp, name)(**{**ENCODER, "strides": FLAT, **ARGUMENTS[name], **others}).eval()


def contract_of(model: Any, *shape: int) -> ShapeContract:
    return ShapeContract.of(shape, multiple=model.multiple, min_size=model.min_size)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A saved Unet++ of half a megabyte, for 2×8×8×8 voxels."""
    model = built(encoder_depth=1, decoder_channels=(8,))
    model.save_pretrained(tmp_path / "best", contract_of(model, 1, 2, 8, 8, 8))
    return tmp_path / "best"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    model = built(name)
    model.save_pretrained(tmp_path / "best")
    before = torch.get_rng_state()
    again = smp.from_pretrained(tmp_path / "best")
    assert torch.equal(torch.get_rng_state(), before), "weights were drawn"
    assert type(again) is type(model)
    assert again.arguments == model.arguments
    assert not again.training
    assert all(parameter.requires_grad for parameter in again.parameters())
    image = torch.rand(2, 2, 16, 16, 16)
    with torch.inference_mode():
        expected, found = model(image), again(image)
    torch.testing.assert_close(found, expected)
    assert type(model).from_pretrained(str(tmp_path / "best")).arguments == model.arguments


def test_the_files_are_two_and_plain(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]
    config = json.loads((saved / "config.json").read_text())
    assert (config["format"], config["class"]) == ("smp3d-export-model/1", "UnetPlusPlus")
    assert config["arguments"]["strides"] == [list(stride) for stride in FLAT]
    assert config["contract"] == contract_of(smp.from_pretrained(saved), 1, 2, 8, 8, 8).to_dict()
    modes = {path.stat().st_mode for path in saved.iterdir()}
    assert len(modes) == 1, "who may read one may read the other"


def test_the_weights_that_an_encoder_began_with_are_not_fetched_again(tmp_path: Path) -> None:
    """The path of them on the training machine is not told, either."""
    weights = tmp_path / "mine.safetensors"
    save_file(built().encoder.state_dict(), weights)
    built(encoder_weights=weights).save_pretrained(tmp_path / "best")
    assert json.loads((tmp_path / "best/config.json").read_text())["arguments"]["encoder_weights"] is None
    weights.unlink()
    smp.from_pretrained(tmp_path / "best")


def test_half_precision_is_kept_and_loaded_in_single(tmp_path: Path) -> None:
    built().half().save_pretrained(tmp_path / "half")
    assert load_file(tmp_path / "half/model.safetensors")["encoder.stage0.rbr_conv.0.conv.weight"].dtype == torch.half
    assert {p.dtype for p in smp.from_pretrained(tmp_path / "half").parameters()} == {torch.float32}


def test_a_model_does_not_change_with_its_file(saved: Path) -> None:
    model = smp.from_pretrained(saved)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = saved / "model.safetensors"
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_saving_again_replaces_and_a_save_that_fails_does_not(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = smp.from_pretrained(saved)
    (saved / "README.md").write_text("mine")
    with torch.no_grad():
        model.segmentation_head[0].bias.fill_(7)  # pyright: ignore[reportIndexIssue, reportCallIssue]
    model.save_pretrained(saved)
    kept = {path: path.read_bytes() for path in saved.iterdir()}
    assert smp.from_pretrained(saved).state_dict()["segmentation_head.0.bias"].eq(7).all()
    assert (saved / "README.md").exists()

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(UsageError, match="No space left"):
        model.save_pretrained(saved)
    assert {path: path.read_bytes() for path in saved.iterdir()} == kept


class Mine(smp.Unet):
    """A user's own, with the signature of Unet."""


class Deeper(smp.Unet):
    """A user's own, with another signature."""

    def __init__(self, width: int, **others: Any) -> None:
        super().__init__(encoder_depth=1, decoder_channels=(width,), **others)


@pytest.mark.parametrize(
    ("cls", "arguments"),
    [(Mine, {**ENCODER, "encoder_depth": 1, "decoder_channels": (4,)}), (Deeper, {**ENCODER, "width": 6})],
)
def test_a_class_of_ones_own_is_loaded_by_itself(cls: Any, arguments: dict[str, Any], tmp_path: Path) -> None:
    cls(**arguments).save_pretrained(tmp_path / "mine")
    again = cls.from_pretrained(tmp_path / "mine")
    assert type(again) is cls
    assert again.arguments["in_channels"] == 2
    with pytest.raises(CheckpointError, match=f"mine is a {cls.__name__}, which is no architecture of smp3d-export"):
        smp.from_pretrained(tmp_path / "mine")
    with pytest.raises(CheckpointError, match=f"mine is a {cls.__name__}, not a Unet: use {cls.__name__}.from_pre"):
        smp.Unet.from_pretrained(tmp_path / "mine")


def with_another_head(model: Any) -> Any:
    model.segmentation_head[0] = torch.nn.Conv3d(8, 5, 3)
    return model


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: built(activation=torch.nn.Sigmoid), "activation of this UnetPlusPlus is <class 'torch.nn.modules.act"),
        (lambda: built(aux_params={"classes": 2, "activation": torch.nn.Tanh}), "aux_params of this UnetPlusPlus is"),
        (lambda: with_another_head(built()), "2 wrongly shaped: segmentation_head.0.weight is (5, 8, 3, 3, 3)"),
    ],
)
def test_what_would_not_load_is_not_saved(model: Callable[[], Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        model().save_pretrained(tmp_path / "best")
    assert says in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("contract", "says"),
    [
        (ShapeContract.of((1, 1, 8, 8, 8), multiple=(2, 2, 2)), "C 1, but the network has 2 input channels"),
        (ShapeContract.of((1, 2, 7, 8, 8), multiple=(1, 1, 1)), "H is 7, but the network needs a multiple of 2"),
        (ShapeContract.of((1, 2, 8, 8, 8), multiple=(1, 1, 1)), "H of --min is 1"),
    ],
)
def test_a_contract_of_another_network_is_not_saved(contract: ShapeContract, says: str, tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match=says):
        built().save_pretrained(tmp_path / "best", contract)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file/best' cannot be written"):
        built().save_pretrained(tmp_path / "file/best")


def edited(**changes: Any) -> Callable[[Path], None]:
    """Write other values into a config; into its arguments, those that are arguments."""

    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        arguments = {key: changes.pop(key) for key in list(changes) if key not in config}
        config = {**config, **changes, "arguments": changes.get("arguments", config["arguments"] | arguments)}
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def written(name: str, text: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(text)


def cut(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])


DAMAGES: list[tuple[Callable[[Path], Any], str]] = [
    (shutil.rmtree, "there is no folder '{}', nor can that be a repository of the hub"),
    (lambda folder: (folder / "config.json").unlink(), "'{}' is no saved model: it has no config.json"),
    (lambda folder: (folder / "model.safetensors").unlink(), "there is no checkpoint '{}/model.safetensors'"),
    (cut, "'{}/model.safetensors' is truncated or no safetensors file"),
    (written("config.json", b"{"), "'{}/config.json' is not valid JSON"),
    (written("config.json", b"[]"), "'{}/config.json' is not of the format 'smp3d-export-model/1'"),
    (edited(format="smp3d-export-model/9"), "'{}/config.json' is not of the format 'smp3d-export-model/1'"),
    (edited(**{"class": "Unett"}), "best is a Unett, which is no architecture of smp3d-export (Unet, UnetPlusPlus,"),
    (edited(arguments=3), "'{}/config.json' is damaged"),
    (edited(contract=[{"size": 3}]), "'{}/config.json' is damaged"),
    (edited(clases=3), "config.json of best asks for what cannot be: there is no UnetPlusPlus argument 'clases'"),
    (edited(classes="many"), "config.json of best asks for what cannot be: classes of UnetPlusPlus is 'many'"),
    (edited(encoder_name="resnet35"), "config.json of best asks for what cannot be: there is no encoder 'resnet35'"),
    (edited(classes=5), "'{}/model.safetensors' does not fit the config.json beside it:\n  2 wrongly shaped: segm"),
]


@pytest.mark.parametrize(("damage", "says"), DAMAGES, ids=[says for _, says in DAMAGES])
def test_what_does_not_fit_is_refused(damage: Callable[[Path], Any], says: str, saved: Path) -> None:
    damage(saved)
    with pytest.raises(CheckpointError) as error:
        smp.from_pretrained(saved)
    assert says.format(saved) in str(error.value)


def test_a_file_is_no_folder_and_a_folder_has_no_revision(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="is a file; a saved model is a folder with"):
        smp.from_pretrained(saved / "config.json")
    with pytest.raises(UsageError, match="is a folder here, and only a repository of the hub has a revision"):
        smp.from_pretrained(saved, revision="main")


class TestHub:
    """A cache laid out as the hub's, and no way to the hub."""

    @pytest.fixture(autouse=True)
    def hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        return tmp_path / "hub"

    @pytest.fixture
    def cached(self, hub: Path, saved: Path) -> str:
        commit, folder = "0123456789" * 4, hub / "models--clinic--best"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs/main").write_text(commit)
        shutil.copytree(saved, folder / "snapshots" / commit)
        return commit

    def test_what_was_fetched_is_loaded_from_the_cache(self, cached: str) -> None:
        for revision in (None, "main", cached):
            assert smp.from_pretrained("clinic/best", revision=revision).arguments["in_channels"] == 2
        assert type(smp.UnetPlusPlus.from_pretrained("clinic/best")) is smp.UnetPlusPlus

    @pytest.mark.parametrize(("name", "revision"), [("clinic/other", None), ("clinic/best", "v2")])
    def test_what_was_not_says_what_to_put_where(self, cached: str, name: str, revision: str | None) -> None:
        with pytest.raises(CheckpointError) as error:
            smp.from_pretrained(name, revision=revision)
        address = f"https://huggingface.co/{name}/resolve/{revision or 'main'}"
        assert f"there is no folder '{name}', and it could not be fetched from the hub (" in str(error.value)
        assert f"Download {address}/config.json and {address}/model.safetensors into a folder, and" in str(error.value)

    def test_a_repository_is_a_source_of_an_export(self, cached: str) -> None:
        network = SavedModel(source="clinic/best", revision="main").build()
        assert (network.name, network.weights) == ("unetplusplus/mobileone_s1", "clinic/best@main")
        assert Request(source=SavedModel(source="clinic/best")).folder == Path("best-export")


def test_a_model_that_the_2d_library_saved_is_inflated(tmp_path: Path) -> None:
    """Its config is flat and names the class; its convolutions have four axes."""
    model = built("Segformer", strides=((2, 2, 2),) * 5, upsampling=4)
    flat = {k: t[..., 0].contiguous() if t.ndim == 5 else t for k, t in model.state_dict().items()}
    folder = tmp_path / "flat"
    folder.mkdir()
    save_file(flat, folder / "model.safetensors")
    config = {key: value for key, value in model.arguments.items() if key != "strides"}
    (folder / "config.json").write_text(json.dumps({"_model_class": "Segformer", **config, "encoder_weights": "x"}))
    state = smp.from_pretrained(folder).state_dict()
    for key, tensor in flat.items():
        torch.testing.assert_close(state[key].sum(-1) if tensor.ndim == 4 else state[key], tensor)


def test_exported_from_its_folder_with_its_contract(cli, saved: Path) -> None:
    result = cli("from", "best", "--no-bench")
    assert result.exit_code == 0, result.output
    assert "unetplusplus/mobileone_s1" in result.stderr
    assert "best-export/: golden.npz" in result.stdout
    manifest = json.loads(Path("best-export/manifest.json").read_text())
    model = manifest["model"]
    assert (model["architecture"], model["encoder"], model["weights"]["source"]) == (
        "UnetPlusPlus",
        "mobileone_s1",
        "best",
    )
    assert model["arguments"] == smp.from_pretrained(saved).arguments
    assert manifest["contract"] == json.loads((saved / "config.json").read_text())["contract"]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, [(1, 1, 2), (2, 2, 2), (2, 8, 16), (1, 8, 16), (1, 8, 16)]),
        ({"shape": (2, 2, 16, 8, 8)}, [(1, 2, 2), (2, 2, 2), (2, 16, 16), (1, 8, 16), (1, 8, 16)]),
        ({"min": (1, 2, 4, 4, 4)}, [(1, 1, 2), (2, 2, 2), (4, 8, 16), (4, 8, 16), (4, 8, 16)]),
        ({"max": (4, 2, 8, 8, 8)}, [(1, 1, 4), (2, 2, 2), (2, 8, 8), (1, 8, 8), (1, 8, 8)]),
        ({"multiple": (8, 4, 4)}, [(1, 1, 2), (2, 2, 2), (8, 8, 16), (4, 8, 16), (4, 8, 16)]),
        ({"static": True}, [(1, 1, 1), (2, 2, 2), (8, 8, 8), (8, 8, 8), (8, 8, 8)]),
    ],
    ids=str,
)
def test_options_win_over_the_contract(saved: Path, asked: dict[str, Any], expected: list[Any]) -> None:
    source = SavedModel(source=str(saved))
    contract = contract_for(source.build(), Request(source=source, **asked))
    assert [(axis.min, axis.opt, axis.max) for axis in contract.axes] == expected


def test_multiples_are_saved_with_the_contract(tmp_path: Path) -> None:
    model = built()
    contract = ShapeContract.of((1, 2, 8, 8, 8), multiple=model.multiple, requested_multiple=(4, 4, 8))
    model.save_pretrained(tmp_path / "best", contract)
    source = SavedModel(source=str(tmp_path / "best"))
    assert contract_for(source.build(), Request(source=source)) == contract


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["from", "none"], "there is no folder 'none', nor can that be a repository of the hub, OWNER/NAME"),
        (["from", "best/config.json"], "is a file; a saved model is a folder"),
        (["from", "best", "--shape", "1,2,32,8,8"], "H has minimum 2, optimum 32 and maximum 16"),
        (["from", "best", "--shape", "1,1,8,8,8"], "C of --shape is 1, but the network has 2 input channels"),
        (["from", "best", "-o", "best"], "is not overwritten"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input_is_one_line(cli, saved: Path, arguments: list[str], says: str) -> None:
    before = sorted(map(str, Path().rglob("*")))
    result = cli(*arguments)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert "Traceback" not in result.output
    assert sorted(map(str, Path().rglob("*"))) == before

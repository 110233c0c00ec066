"""Whole models in a folder: saved and loaded again, exported from there, refused where anything does not fit."""

from __future__ import annotations

import copy
import functools
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from families import FAMILIES
from safetensors.torch import load_file, save_file
from torch.nn.utils import parametrizations

import smp3d_export as smp
from smp3d_export.architectures import ARCHITECTURES
from smp3d_export.architectures.deviation import deviation
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


class Equipped(smp.Unet):
    """A user's own, which does itself what would be refused if it was done to an instance."""

    def __init__(self, factor: float = 2, **others: Any) -> None:
        super().__init__(**others)
        self.scale: Callable[[Any], Any] = lambda x: x * factor
        self.clip = functools.partial(torch.clamp, min=0)
        self.unregistered = [torch.nn.Conv3d(1, 1, 1)]
        self.least_value, self.spacing, self.itself = float("nan"), np.ones(3), [self]
        cast("torch.nn.Sequential", self.segmentation_head).append(torch.nn.Softmax(dim=1))
        self.register_forward_pre_hook(lambda module, inputs: (inputs[0] * factor,))
        self.register_forward_hook(self.clipped)

    def clipped(self, module: Any, inputs: Any, masks: Any) -> Any:
        return torch.clamp(masks, min=0)


class Deeper(smp.Unet):
    """A user's own, with another signature."""

    def __init__(self, width: int, **others: Any) -> None:
        super().__init__(encoder_depth=1, decoder_channels=(width,), **others)


@pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        (Mine, {**ENCODER, "encoder_depth": 1, "decoder_channels": (4,)}),
        (Equipped, {**ENCODER, "encoder_depth": 1, "decoder_channels": (4,), "factor": 3}),
        (Deeper, {**ENCODER, "width": 6}),
    ],
)
def test_a_class_of_ones_own_is_loaded_by_itself(cls: Any, arguments: dict[str, Any], tmp_path: Path) -> None:
    cls(**arguments).save_pretrained(tmp_path / "mine")
    again = cls.from_pretrained(tmp_path / "mine")
    assert type(again) is cls
    assert again.arguments["in_channels"] == 2
    with pytest.raises(
        CheckpointError, match=f"mine is a {cls.__name__}, which is not an architecture of smp3d-export"
    ):
        smp.from_pretrained(tmp_path / "mine")
    with pytest.raises(CheckpointError, match=f"mine is a {cls.__name__}, not a Unet: use {cls.__name__}.from_pre"):
        smp.Unet.from_pretrained(tmp_path / "mine")
    edited(breadth=3)(tmp_path / "mine")
    with pytest.raises(CheckpointError, match=r"mine describes a model that cannot be built: .* argument 'breadth'"):
        cls.from_pretrained(tmp_path / "mine")


def with_another_head(model: Any) -> Any:
    model.segmentation_head[0] = torch.nn.Conv3d(8, 5, 3)
    return model


def with_a_loss(model: Any) -> Any:
    model.loss = torch.nn.CrossEntropyLoss(weight=torch.ones(3))
    return model


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: built(activation=torch.nn.Sigmoid), "activation of this UnetPlusPlus is <class 'torch.nn.modules.act"),
        (lambda: built(aux_params={"classes": 2, "activation": torch.nn.Tanh}), "aux_params of this UnetPlusPlus is"),
        (
            lambda: with_another_head(built()),
            "segmentation_head.0 of this UnetPlusPlus has in_channels 8; its arguments describe 4",
        ),
        (lambda: with_a_loss(built()), "1 unexpected: loss.weight"),
    ],
)
def test_what_would_not_load_is_not_saved(model: Callable[[], Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        model().save_pretrained(tmp_path / "best")
    assert says in str(error.value)
    assert not list(tmp_path.iterdir())


def small_unet(**others: Any) -> Any:
    """A Unet on one stage of ResNet-18."""
    torch.manual_seed(0)
    arguments = {**ENCODER, "encoder_name": "resnet18", "encoder_depth": 1, "decoder_channels": (8,)}
    return smp.Unet(**{**arguments, **others}).eval()


def change(name: str, value: Any, *places: str) -> Callable[[Any], Any]:
    """Set an attribute of some modules of a model, or replace an entry of a container."""

    def apply(model: Any) -> None:
        for place in places or ("",):
            module = model.get_submodule(place)
            if name.isdigit():
                module[int(name)] = value
            else:
                setattr(module, name, value)

    return apply


def half_of(self: Any, x: torch.Tensor) -> torch.Tensor:
    return x / 2


def scaled(module: torch.nn.Module, *ignored: Any) -> torch.Tensor:
    return ignored[-1] / 2


def forward_replaced(model: Any) -> None:
    layer = model.segmentation_head[0]
    layer.forward = half_of.__get__(layer)


# What is done to a Unet after it was built, and how the refusal begins: "MODULE of this Unet ...".
CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "softmax in the head": (
        change("activation", torch.nn.Softmax(dim=1), "segmentation_head.2"),
        "segmentation_head.2.activation of this Unet is a Softmax; its arguments describe an Identity",
    ),
    "softmax behind the head": (
        lambda model: model.segmentation_head.append(torch.nn.Softmax(dim=1)),
        "segmentation_head of this Unet has a layer '3', a Softmax, which its arguments do not describe",
    ),
    "order of layers": (
        lambda model: setattr(
            model.decoder.blocks[0].conv1, "_modules", dict(reversed(model.decoder.blocks[0].conv1._modules.items()))
        ),
        "decoder.blocks.0.conv1 of this Unet has its layers in the order 2, 1, 0; its arguments describe 0, 1, 2",
    ),
    "a layer deleted": (
        lambda model: model.segmentation_head.pop(1),
        "segmentation_head of this Unet has no layer '2', which its arguments describe",
    ),
    "a layer taken out": (
        change("relu", torch.nn.Identity(), "encoder"),
        "encoder.relu of this Unet is an Identity; its arguments describe a ReLU",
    ),
    "LeakyReLU": (
        change("2", torch.nn.LeakyReLU(), "decoder.blocks.0.conv1"),
        "decoder.blocks.0.conv1.2 of this Unet is a LeakyReLU; its arguments describe a ReLU",
    ),
    "eps": (
        change("eps", 1e-3, "encoder.bn1"),
        "encoder.bn1 of this Unet has eps 0.001; its arguments describe 1e-05",
    ),
    "stride": (
        change("stride", (1, 1, 1), "encoder.conv1"),
        "encoder.conv1 of this Unet has stride (1, 1, 1); its arguments describe (2, 2, 2)",
    ),
    "padding": (
        change("padding", (0, 0, 0), "segmentation_head.0"),
        "segmentation_head.0 of this Unet has padding (0, 0, 0); its arguments describe (1, 1, 1)",
    ),
    "dilation": (
        change("dilation", (2, 2, 2), "segmentation_head.0"),
        "segmentation_head.0 of this Unet has dilation (2, 2, 2); its arguments describe (1, 1, 1)",
    ),
    "padding mode": (
        change("padding_mode", "reflect", "segmentation_head.0"),
        "segmentation_head.0 of this Unet has padding_mode 'reflect'; its arguments describe 'zeros'",
    ),
    "a block's own setting": (
        change("stride", (1, 2, 2), "decoder.blocks.0"),
        "decoder.blocks.0 of this Unet has stride (1, 2, 2); its arguments describe (2, 2, 2)",
    ),
    "forward hook": (
        lambda model: model.segmentation_head.register_forward_hook(scaled),
        "segmentation_head of this Unet has a forward hook (scaled)",
    ),
    "forward pre-hook": (
        lambda model: model.encoder.register_forward_pre_hook(scaled),
        "encoder of this Unet has a forward pre-hook (scaled)",
    ),
    "forward hook on the model": (
        lambda model: model.register_forward_hook(scaled),
        "this Unet has a forward hook (scaled)",
    ),
    "forward of an instance": (forward_replaced, "segmentation_head.0 of this Unet has a forward of its own (half_of)"),
    "forward of the model": (
        lambda model: setattr(model, "forward", half_of.__get__(model)),
        "this Unet has a forward of its own (half_of)",
    ),
    "parametrization": (
        lambda model: parametrizations.weight_norm(model.segmentation_head[0]),
        "segmentation_head.0 of this Unet is a ParametrizedConv3d; its arguments describe a Conv3d",
    ),
    "weight norm of old": (
        lambda model: torch.nn.utils.spectral_norm(model.segmentation_head[0]),
        "segmentation_head.0 of this Unet has a forward pre-hook (SpectralNorm)",
    ),
    "another encoder": (
        change("encoder", smp.get_encoder("resnet18", 2, 1, strides=((1, 2, 2),))),
        "encoder of this Unet has strides ((1, 2, 2),); its arguments describe ((2, 2, 2),)",
    ),
    "class": (
        change("__class__", torch.nn.Identity, "encoder.relu"),
        "encoder.relu of this Unet is an Identity; its arguments describe a ReLU",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_model_that_its_arguments_do_not_describe_is_not_saved(
    name: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """Loaded from its arguments, it would be another network."""
    model, (apply, says) = small_unet(), CHANGES[name]
    apply(model)
    with pytest.raises(UsageError) as error:
        model.save_pretrained(tmp_path / "best")
    assert str(error.value).startswith(says)
    assert not list(tmp_path.iterdir())


def trained(model: Any) -> None:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    masks, labels = model(torch.rand(2, 2, 8, 8, 8))
    (masks.square().mean() + labels.square().mean()).backward()
    optimizer.step()


def everywhere(name: str, value: Any, *classes: type) -> Callable[[Any], Any]:
    def apply(model: Any) -> None:
        for module in model.modules():
            if isinstance(module, classes):
                setattr(module, name, value)

    return apply


# What changes no prediction, and what is done to every model that is trained.
HARMLESS: dict[str, Callable[[Any], Any]] = {
    "trained": trained,
    "frozen": lambda model: model.encoder.requires_grad_(False).eval(),
    "copied": copy.deepcopy,
    "pickled": lambda model: pickle.loads(pickle.dumps(model)),
    "half": lambda model: model.half(),
    "channels last": lambda model: model.to(memory_format=torch.channels_last_3d),
    "synchronised batch norm": torch.nn.SyncBatchNorm.convert_sync_batchnorm,
    "compiled": lambda model: model.compile(backend="eager"),
    "dropout": everywhere("p", 0.0, torch.nn.Dropout),
    "momentum": everywhere("momentum", None, torch.nn.BatchNorm3d),
    "not in place": everywhere("inplace", False, torch.nn.ReLU),
    "gradients watched": lambda model: model.encoder.register_full_backward_hook(lambda *_: None),
    "notes of one's own": lambda model: setattr(model, "epoch", 3),
    "weights assigned": lambda model: model.load_state_dict(copy.deepcopy(model).state_dict(), assign=True),
    "one tensor in two places": lambda model: setattr(
        model.encoder.layer1[0].bn1, "weight", model.encoder.layer1[0].bn2.weight
    ),
    "views of one tensor": lambda model: [
        setattr(norm, "weight", torch.nn.Parameter(half))
        for norm, half in zip(
            (model.encoder.layer1[0].bn1, model.encoder.layer1[0].bn2), torch.rand(2, 64), strict=True
        )
    ],
}


@pytest.mark.parametrize("name", HARMLESS)
def test_a_model_that_predicts_as_its_arguments_say_is_saved(name: str, tmp_path: Path) -> None:
    model = small_unet(aux_params={"classes": 2})
    changed = HARMLESS[name](model)
    model = changed if isinstance(changed, smp.Unet) else model
    model.save_pretrained(tmp_path / "best")
    image = torch.rand(1, 2, 8, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(smp.from_pretrained(tmp_path / "best")(image), model.eval().float()(image))


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("encoder", FAMILIES.values())
@pytest.mark.slow
def test_no_network_differs_from_one_of_its_arguments(name: str, encoder: str) -> None:
    with torch.device("meta"):
        try:
            model = smp.create_model(name, encoder, encoder_weights=None)
        except UsageError:
            pytest.skip("this pair does not exist")
    assert deviation(copy.deepcopy(model), type(model)(**model.arguments)) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("scale", lambda x: x / 3), ("clip", functools.partial(torch.clamp, min=1)), ("spacing", np.ones(2))],
)
def test_a_setting_of_a_class_of_ones_own_is_compared_too(name: str, value: Any, tmp_path: Path) -> None:
    model = Equipped(**ENCODER, encoder_depth=1, decoder_channels=(4,))
    setattr(model, name, value)
    with pytest.raises(UsageError, match=f"this Equipped has {name} "):
        model.save_pretrained(tmp_path / "best")


def test_a_class_of_ones_own_with_the_name_of_an_architecture_is_not_saved(tmp_path: Path) -> None:
    """`from_pretrained` would make the architecture of it."""
    model = type("Unet", (Deeper,), {})(**{**ENCODER, "width": 6})
    with pytest.raises(UsageError, match="this Unet is not smp3d_export's Unet, which from_pretrained would build"):
        model.save_pretrained(tmp_path / "best")


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
    (shutil.rmtree, "there is no folder '{}', and it cannot be a repository of the hub"),
    (
        lambda folder: (folder / "config.json").unlink(),
        "'{}' is not a saved model: it has no config.json. Export a checkpoint with ",
    ),
    (lambda folder: (folder / "model.safetensors").unlink(), "there is no checkpoint '{}/model.safetensors'"),
    (cut, "'{}/model.safetensors' is cut short, damaged or still being written"),
    (written("config.json", b"{"), "'{}/config.json' is not valid JSON"),
    (written("config.json", b"[]"), "'{}/config.json' does not have the format 'smp3d-export-model/1'"),
    (edited(format="smp3d-export-model/9"), "'{}/config.json' does not have the format 'smp3d-export-model/1'"),
    (
        edited(**{"class": "Unett"}),
        "best is a Unett, which is not an architecture of smp3d-export (Unet, UnetPlusPlus,",
    ),
    (edited(arguments=3), "'{}/config.json' is damaged"),
    (edited(contract=[{"size": 3}]), "'{}/config.json' is damaged"),
    (
        edited(clases=3),
        "config.json of best describes a model that cannot be built: there is no UnetPlusPlus argument 'clases'",
    ),
    (
        edited(classes="many"),
        "config.json of best describes a model that cannot be built: classes of UnetPlusPlus is 'many'",
    ),
    (
        edited(encoder_name="resnet35"),
        "config.json of best describes a model that cannot be built: there is no encoder 'resnet35'",
    ),
    (edited(classes=5), "'{}/model.safetensors' does not fit the config.json beside it:\n  2 wrongly shaped: segm"),
]


@pytest.mark.parametrize(("damage", "says"), DAMAGES, ids=[says for _, says in DAMAGES])
def test_what_does_not_fit_is_refused(damage: Callable[[Path], Any], says: str, saved: Path) -> None:
    damage(saved)
    with pytest.raises(CheckpointError) as error:
        smp.from_pretrained(saved)
    assert says.format(saved) in str(error.value)


def test_a_file_is_no_folder_and_a_folder_has_no_revision(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a folder\. Give the folder: "):
        smp.from_pretrained(saved / "config.json")
    with pytest.raises(UsageError, match="is a folder, and only a repository of the hub has a revision"):
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
    arguments = {**model["arguments"], "encoder_name": model["encoder"]}
    assert arguments == smp.from_pretrained(saved).arguments
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
        # The saved range grows.
        ({"shape": (1, 2, 32, 8, 8)}, [(1, 1, 2), (2, 2, 2), (2, 32, 32), (1, 8, 16), (1, 8, 16)]),
        ({"shape": (4, 2, 8, 8, 8)}, [(1, 4, 4), (2, 2, 2), (2, 8, 16), (1, 8, 16), (1, 8, 16)]),
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
        (["from", "none"], "there is no folder 'none', and it cannot be a repository of the hub, OWNER/NAME"),
        (["from", "best/config.json"], "is a file, and a saved model is a folder. Give the folder: best"),
        (["from", "last.pth"], "is a folder. Export a checkpoint with smp3d-export ARCH ENCODER --checkpoint last.pth"),
        (
            ["from", "runs"],
            "no config.json. Export a checkpoint with smp3d-export ARCH ENCODER --checkpoint runs/a.ckpt",
        ),
        (
            ["from", "export"],
            "no config.json. Make further artifacts of an exported ONNX file with smp3d-export from exp",
        ),
        (["from", "empty"], "no config.json. model.save_pretrained(FOLDER) makes one"),
        (["from", "nowhere.pth"], "OWNER/NAME. Export a checkpoint with smp3d-export ARCH ENCODER --checkpoint FILE"),
        (
            ["from", "scan.npy"],
            "a saved model is a folder. This one is a volume, not a checkpoint. Volumes go to --sample",
        ),
        (["from", "diverged"], "segmentation_head.0.bias of diverged holds NaN, as after a training that diverged"),
        (["from", "best", "--shape", "1,2,33,8,8"], "H is 33, but unetplusplus/mobileone_s1 needs a multiple of 2"),
        (["from", "best", "--shape", "1,1,8,8,8"], "C of --shape is 1, but the network has 2 input channels"),
        (["from", "best", "-o", "best"], "is not overwritten"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input_is_one_line(cli, saved: Path, arguments: list[str], says: str) -> None:
    for name in ("last.pth", "runs/a.ckpt", "export/model.onnx", "scan.npy"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(b"\x80")
    Path("empty").mkdir()
    model = smp.from_pretrained(saved)
    model.segmentation_head[0].bias.data.fill_(torch.nan)  # pyright: ignore[reportIndexIssue]
    model.save_pretrained("diverged")
    before = sorted(map(str, Path().rglob("*")))
    result = cli(*arguments)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert "Traceback" not in result.output
    assert sorted(map(str, Path().rglob("*"))) == before

"""What nnU-Net v2 trained is read, from folders and zip files, without running code from them."""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smp3d_export.errors import CheckpointError, UsageError
from smp3d_export.sources import nnunet
from smp3d_export.sources.ensemble import Average
from smp3d_export.sources.nnunet_plans import Configuration, Labels
from smp3d_export.weights.tensors import read_tensors

DATA = Path(__file__).parents[1] / "data" / "nnunet" / "Dataset901_Tiny"
PLAIN = DATA / "nnUNetTrainer_1epoch__nnUNetPlans__3d_fullres"
RESIDUAL = DATA / "nnUNetTrainer_1epoch__nnUNetResEncUNetMPlans__3d_fullres"
UNET = "dynamic_network_architectures.architectures.unet"

Edits = Mapping[str, Any]
"""New values of a JSON file by the path to them, joined by slashes. `DROP` removes."""
DROP = object()
ARCHITECTURE = "configurations/3d_fullres/architecture"
ARGUMENTS = f"{ARCHITECTURE}/arch_kwargs"
LABELS = {"background": 0, "organ": 1, "lesion": 2}
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}


@pytest.fixture
def unet() -> Any:
    """The networks of nnU-Net, which are an extra of their own."""
    reason = "needs dynamic-network-architectures, whose timm needs torchvision"
    pytest.importorskip("dynamic_network_architectures", reason=reason)
    return pytest.importorskip(UNET, reason=reason)


@pytest.fixture
def result(tmp_path: Path) -> Callable[..., Path]:
    """Makes a copy of a result with other plans, other data set and another checkpoint in fold 0."""

    def make(plans: Edits | None = None, dataset: Edits | None = None, checkpoint: Edits | None = None) -> Path:
        folder = tmp_path / "Dataset901_Tiny" / PLAIN.name
        shutil.copytree(PLAIN, folder)
        for name, edits in (("plans.json", plans), ("dataset.json", dataset)):
            content = json.loads((folder / name).read_text(encoding="utf-8"))
            (folder / name).write_text(json.dumps(edited(content, edits or {})), encoding="utf-8")
        if checkpoint is not None:
            path = folder / "fold_0" / "checkpoint_final.pth"
            torch.save(edited(dict(read_tensors(path)), checkpoint), path)
        return folder

    return make


def edited(content: dict[str, Any], edits: Edits) -> dict[str, Any]:
    for path, value in edits.items():
        *parents, last = path.split("/")
        level = content
        for parent in parents:
            level = level[parent]
        if value is DROP:
            del level[last]
        else:
            level[last] = value
    return content


def plans_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "plans.json").read_text(encoding="utf-8"))


def dataset(labels: Mapping[str, Any] = LABELS, channels: int = 2) -> dict[str, Any]:
    return {"labels": labels, "channel_names": {str(number): "MR" for number in range(channels)}}


def patch(trained: nnunet.Trained) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, trained.in_channels, *trained.patch_size, generator=generator)


def weights(folder: Path, fold: int = 0) -> dict[str, Tensor]:
    return read_tensors(folder / f"fold_{fold}" / "checkpoint_final.pth")["network_weights"]


@pytest.mark.usefixtures("unet")
def test_what_is_read_from_a_real_result() -> None:
    trained = nnunet.read(PLAIN)
    assert (trained.name, trained.title) == ("PlainConvUNet", "dataset901_tiny-3d_fullres")
    assert (trained.in_channels, trained.classes, trained.patch_size) == (2, 3, (16, 20, 24))
    assert (trained.weights, trained.notes) == ("folds 0, 1, checkpoint_final.pth", ())
    assert len(trained.networks) == 2
    for network in trained.networks:
        assert not any(module.training for module in network.modules())
        assert not any(parameter.requires_grad or parameter.is_meta for parameter in network.parameters())
        assert network(patch(trained)).shape == (1, 3, 16, 20, 24)


@pytest.mark.usefixtures("unet")
def test_the_facts_of_a_real_result() -> None:
    facts = nnunet.read(PLAIN, folds=[0]).facts
    assert facts == json.loads(json.dumps(facts))
    intensities = facts.pop("foreground_intensity_properties_per_channel")
    assert set(intensities) == {"0", "1"} and {"mean", "std", "percentile_00_5"} <= set(intensities["0"])
    resampling = {name: facts.pop(name) for name in list(facts) if name.startswith("resampling_fn")}
    assert resampling["resampling_fn_data"] == "resample_data_or_seg_to_shape"
    assert resampling["resampling_fn_data_kwargs"]["order"] == 3
    assert len(resampling) == 6
    assert facts == {
        "trainer_name": "nnUNetTrainer_1epoch",
        "configuration": "3d_fullres",
        "folds": ["0"],
        "checkpoint": "checkpoint_final.pth",
        "dataset_name": "Dataset901_Tiny",
        "plans_name": "nnUNetPlans",
        "transpose_forward": [2, 0, 1],
        "transpose_backward": [1, 2, 0],
        "image_reader_writer": "SimpleITKIO",
        "spacing": [1.5, 1.0, 1.0],
        "patch_size": [16, 20, 24],
        "normalization_schemes": ["CTNormalization", "ZScoreNormalization"],
        "use_mask_for_norm": [False, False],
        "preprocessor_name": "DefaultPreprocessor",
        "previous_stage": None,
        "channel_names": {"0": "CT", "1": "MR"},
        "labels": LABELS,
        "ignore_label": None,
        "regions": None,
        "regions_class_order": None,
        "inference_allowed_mirroring_axes": [0, 1, 2],
        "file_ending": ".nii.gz",
    }


def test_the_networks_equal_those_built_by_hand(unet: Any) -> None:
    sizes = {
        "n_stages": 3,
        "features_per_stage": [4, 8, 12],
        "conv_op": nn.Conv3d,
        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "n_conv_per_stage_decoder": [1, 1],
        "conv_bias": True,
        "norm_op": nn.InstanceNorm3d,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU,
    }
    plain = unet.PlainConvUNet(2, num_classes=3, n_conv_per_stage=[1, 1, 1], **sizes)
    residual = unet.ResidualEncoderUNet(2, num_classes=3, n_blocks_per_stage=[1, 1, 1], **sizes)
    for folder, fold, by_hand in ((PLAIN, 0, plain), (PLAIN, 1, plain), (RESIDUAL, 0, residual)):
        by_hand.load_state_dict(weights(folder, fold))
        trained = nnunet.read(folder, folds=[fold])
        (network,) = trained.networks
        assert torch.equal(network(patch(trained)), by_hand.eval()(patch(trained)))


@pytest.mark.usefixtures("unet")
def test_folds_are_averaged_as_nnunet_does() -> None:
    trained = nnunet.read(PLAIN, folds=["0", 1])
    one, other = (network(patch(trained)) for network in trained.networks)
    assert not torch.allclose(one, other)
    torch.testing.assert_close(Average(trained.networks)(patch(trained)), (one + other) / 2)


# A configuration as nnU-Net wrote it up to version 2.2, and the same as it is written since.
EARLIER = {
    "patch_size": [16, 20, 24],
    "UNet_class_name": "PlainConvUNet",
    "UNet_base_num_features": 4,
    "n_conv_per_stage_encoder": [1, 2, 2],
    "n_conv_per_stage_decoder": [2, 1],
    "num_pool_per_axis": [1, 2, 2],
    "pool_op_kernel_sizes": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "conv_kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "unet_max_num_features": 12,
}
PRESENT = {
    "patch_size": [16, 20, 24],
    "architecture": {
        "network_class_name": f"{UNET}.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 3,
            "features_per_stage": [4, 8, 12],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
            "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
            "n_conv_per_stage": [1, 2, 2],
            "n_conv_per_stage_decoder": [2, 1],
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    },
}


@pytest.mark.parametrize("name", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_both_generations_of_plans_build_the_same(unet: Any, name: str) -> None:
    present = copy.deepcopy(PRESENT)
    architecture = present["architecture"]
    if name != "PlainConvUNet":  # moved: its module was another
        architecture["network_class_name"] = f"dynamic_network_architectures.architectures.residual_unet.{name}"
        architecture["arch_kwargs"]["n_blocks_per_stage"] = architecture["arch_kwargs"].pop("n_conv_per_stage")
    built = []
    for content in (present, EARLIER | {"UNet_class_name": name}):
        found = Configuration.of({"configurations": {"3d_fullres": content}}, dataset(), "3d_fullres")
        assert found.network == name
        built.append(found.build())
    assert type(built[0]) is type(built[1]) is getattr(unet, name)
    assert str(built[0]) == str(built[1])
    assert not any(tensor.is_floating_point() and not tensor.is_meta for tensor in built[0].state_dict().values())


def test_a_block_of_the_package_is_taken_by_name(unet: Any) -> None:
    content = copy.deepcopy(PRESENT)
    architecture = content["architecture"]
    architecture["network_class_name"] = f"{UNET}.ResidualEncoderUNet"
    architecture["arch_kwargs"]["n_blocks_per_stage"] = architecture["arch_kwargs"].pop("n_conv_per_stage")
    block = "dynamic_network_architectures.building_blocks.residual.BottleneckD"
    architecture["arch_kwargs"] |= {"block": block, "bottleneck_channels": 2}
    architecture["_kw_requires_import"].append("block")
    network = Configuration.of({"configurations": {"3d_fullres": content}}, dataset(), "3d_fullres").build()
    assert any(type(module).__name__ == "BottleneckD" for module in network.modules())


@pytest.mark.parametrize("labels, extra", [(LABELS, 2), (REGIONS, 3), (LABELS | {"ignore": 3}, 2)])
def test_the_second_stage_of_a_cascade_gets_the_labels_of_the_first(unet: Any, labels: dict, extra: int) -> None:
    configurations = {
        "3d_lowres": EARLIER,
        "3d_fullres": PRESENT,
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        "wide": {"inherits_from": "3d_cascade_fullres", "patch_size": [32, 32, 32]},
    }
    for name, patch_size in (("3d_cascade_fullres", (16, 20, 24)), ("wide", (32, 32, 32))):
        found = Configuration.of({"configurations": configurations}, dataset(labels), name)
        assert (found.in_channels, found.patch_size) == (2 + extra, patch_size)
        assert found.build().get_parameter("encoder.stages.0.0.convs.0.conv.weight").shape[1] == 2 + extra


@pytest.mark.parametrize(
    "values, heads, foreground, ignore, regions",
    [
        (LABELS, 3, (1, 2), None, None),
        (LABELS | {"ignore": 3}, 3, (1, 2), 3, None),
        ({"background": 0, "a": [1], "b": [2]}, 3, (1, 2), None, None),
        (REGIONS, 3, (1, 2, 3), None, {"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}),
        (REGIONS | {"ignore": 4}, 3, (1, 2, 3), 4, {"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}),
        ({"background": 0, "tumour": 1, "all": [1, 2]}, 2, (1, 2), None, {"tumour": [1], "all": [1, 2]}),
    ],
)
def test_labels(values: dict, heads: int, foreground: tuple, ignore: int | None, regions: dict | None) -> None:
    labels = Labels.of({"labels": values})
    assert (labels.heads, labels.foreground, labels.ignore, labels.regions) == (heads, foreground, ignore, regions)
    assert regions is None or list(labels.regions or ()) == list(regions)


@pytest.mark.usefixtures("unet")
def test_regions_are_in_the_facts_in_the_order_of_the_heads(result: Callable[..., Path]) -> None:
    labels = {"background": 0, "whole": [1, 2], "third": 3, "core": 2}
    trained = nnunet.read(result(dataset={"labels": labels, "regions_class_order": [1, 3, 2]}), folds=[0])
    assert trained.classes == 3
    assert [region["name"] for region in trained.facts["regions"]] == ["whole", "third", "core"]
    assert trained.facts["regions_class_order"] == [1, 3, 2]


@pytest.mark.usefixtures("unet")
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_dropped(result: Callable[..., Path], prefix: str) -> None:
    wrapped = {f"{prefix}{name}": tensor for name, tensor in weights(PLAIN).items()}
    trained = nnunet.read(result(checkpoint={"network_weights": wrapped}), folds=[0])
    assert torch.equal(
        trained.networks[0].state_dict()["decoder.seg_layers.1.bias"], weights(PLAIN)["decoder.seg_layers.1.bias"]
    )


@pytest.mark.parametrize("trainer, noted", [("nnUNetTrainerBN", False), ("MyTrainerBN", True)])
def test_batch_norm_of_a_trainer(unet: Any, result: Callable[..., Path], trainer: str, noted: bool) -> None:
    arguments = plans_of(PLAIN)["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    layers = {"conv_op": nn.Conv3d, "norm_op": nn.BatchNorm3d, "nonlin": nn.LeakyReLU}
    network = unet.PlainConvUNet(2, num_classes=3, **arguments | layers)
    nn.init.uniform_(network.get_buffer("encoder.stages.0.0.convs.0.norm.running_mean"))
    folder = result(checkpoint={"network_weights": network.state_dict(), "trainer_name": trainer})
    trained = nnunet.read(folder, folds=[0])
    assert torch.equal(trained.networks[0](patch(trained)), network.eval()(patch(trained)))
    assert "batch norm" in trained.notes[0]
    assert any("is not one of nnU-Net's" in note for note in trained.notes) == noted


@pytest.mark.parametrize(
    "name, own",
    [
        ("nnUNetTrainer", True),
        ("nnUNetTrainer_250epochs_NoMirroring", True),
        ("nnUNetTrainer_DASegOrd0_NoMirroring", True),
        ("nnUNetTrainer_onlyMirror01_1500ep", True),
        ("nnUNetTrainerDA5Segord0", True),
        ("nnUNetTrainerDiceCELoss_noSmooth", True),
        ("nnUNetTrainerVanillaAdam3en4", True),
        ("nnUNetTrainerAdanCosAnneal", True),
        ("nnUNetTrainer_probabilisticOversampling_033", True),
        ("nnUNetTrainerUMambaBot", False),
        ("nnUNetTrainerSwin", False),
    ],
)
def test_the_trainers_of_nnunet_are_known(name: str, own: bool) -> None:
    assert (nnunet.TRAINER.fullmatch(name) is not None) == own


@pytest.mark.usefixtures("unet")
def test_half_precision_weights_become_float32(result: Callable[..., Path]) -> None:
    half = {name: tensor.half() for name, tensor in weights(PLAIN).items()}
    trained = nnunet.read(result(checkpoint={"network_weights": half}), folds=[0])
    assert {tensor.dtype for tensor in trained.networks[0].state_dict().values()} == {torch.float32}


class Harmful:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("archived", [False, True])
def test_code_in_a_checkpoint_does_not_run(result: Callable[..., Path], tmp_path: Path, archived: bool) -> None:
    folder = result(checkpoint={"logging": Harmful(tmp_path / "made")})
    path = zipped(folder.parent, tmp_path / "model.zip") if archived else folder
    with pytest.raises(CheckpointError, match=r"fold_0.checkpoint_final.pth' holds more than tensors \(\w+\.mkdir\)"):
        nnunet.read(path, folds=[0])
    assert not (tmp_path / "made").exists()


@pytest.mark.usefixtures("unet")
@pytest.mark.parametrize(
    "plans, dataset, checkpoint, message",
    [
        ({f"{ARCHITECTURE}/network_class_name": "os.system"}, {}, None, "asks for the network os.system, and only"),
        ({f"{ARCHITECTURE}/network_class_name": f"{UNET}.nn"}, {}, None, f"asks for the network {UNET}.nn"),
        (
            {f"{ARCHITECTURE}/network_class_name": "dynamic_network_architectures.architectures.primus.Primus"},
            {},
            None,
            "pass the module to smp3d_export.export",
        ),
        ({f"{ARGUMENTS}/nonlin": "os.system"}, {}, None, "gives nonlin as 'os.system', and only layers of torch.nn"),
        ({f"{ARGUMENTS}/norm_op": "torch.nn.init.Path"}, {}, None, "gives norm_op as 'torch.nn.init.Path'"),
        ({f"{ARGUMENTS}/norm_op": "torch.nn.Parameter"}, {}, None, "gives norm_op as 'torch.nn.Parameter'"),
        ({f"{ARGUMENTS}/conv_op": ["torch"]}, {}, None, r"gives conv_op as \['torch'\]"),
        ({f"{ARGUMENTS}/n_stages": 4}, {}, None, "plans.json is not as nnU-Net v2 writes it"),
        ({f"{ARGUMENTS}/stages": 4}, {}, None, "plans.json is not as nnU-Net v2 writes it .*'stages'"),
        ({ARCHITECTURE: DROP}, {}, None, "plans.json has no 'UNet_class_name'"),
        ({"configurations": DROP}, {}, None, "plans.json has no 'configurations'"),
        ({"configurations/3d_fullres": DROP}, {}, None, "has no configuration '3d_fullres'. It has 2d"),
        ({"configurations/3d_fullres/inherits_from": "3d_fullres"}, {}, None, "which is a circle"),
        ({"configurations/3d_fullres/inherits_from": "gone"}, {}, None, "no configuration 'gone'"),
        ({"configurations/3d_fullres/patch_size": DROP}, {}, None, "plans.json has no 'patch_size'"),
        ({}, {"labels": DROP}, None, "dataset.json has no 'labels'"),
        ({}, {"labels": {"organ": 1}}, None, "dataset.json has no 'background'"),
        ({}, {"labels": {"0": "background"}}, None, "dataset.json is not as nnU-Net v2 writes it"),
        ({}, {"channel_names": DROP}, None, "dataset.json has no 'channel_names'"),
        ({}, {"channel_names": {"0": "CT"}}, None, r"should be \(4, 1, 1, 3, 3\)"),
        ({}, {}, {"init_args/configuration": "2d"}, "configuration 2d is 2D, and smp3d-export exports 3D networks"),
        ({}, {}, {"network_weights": DROP}, "not a checkpoint of nnU-Net v2"),
        ({}, {}, {"network_weights": {}}, "missing: encoder.* If its trainer nnUNetTrainer_1epoch builds another"),
        ({}, {}, {"network_weights/decoder.seg_layers.1.bias": torch.full((3,), torch.nan)}, "holds NaN"),
        ({}, {}, {"network_weights/more": torch.zeros(3)}, "1 unexpected: more"),
    ],
)
def test_what_does_not_fit_is_one_line(
    result: Callable[..., Path], plans: Edits, dataset: Edits, checkpoint: Edits | None, message: str
) -> None:
    folder = result(plans, dataset, checkpoint)
    with pytest.raises(UsageError, match=message) as caught:
        nnunet.read(folder, folds=[0])
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_earlier_plans_of_another_network() -> None:
    content = EARLIER | {"UNet_class_name": "os.system"}
    with pytest.raises(CheckpointError, match=r"the network os.system, and only PlainConvUNet and"):
        Configuration.of({"configurations": {"3d_fullres": content}}, dataset(), "3d_fullres").build()


def test_without_the_package_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("dynamic_network_architectures")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "dynamic_network_architectures", None)
    assert nnunet.is_results(PLAIN)
    with pytest.raises(UsageError, match=r"pip install 'smp3d-export\[nnunet\]'"):
        nnunet.read(PLAIN)


def zipped(folder: Path, target: Path) -> Path:
    """The zip file of a data set, as `nnUNetv2_export_model_to_zip` makes it: no entries for folders."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder.parent))
    return target


@pytest.mark.usefixtures("unet")
def test_a_zip_file_gives_the_same(tmp_path: Path) -> None:
    path = zipped(DATA, tmp_path / "model.zip")
    assert nnunet.is_results(path)
    for name in (PLAIN.name, f"Dataset901_Tiny/{PLAIN.name}"):
        archived, trained = nnunet.read(path, configuration=name), nnunet.read(PLAIN)
        assert (archived.facts, archived.title, archived.weights) == (trained.facts, trained.title, trained.weights)
        for one, other in zip(archived.networks, trained.networks, strict=True):
            assert torch.equal(one(patch(trained)), other(patch(trained)))


def test_a_damaged_zip_file(tmp_path: Path) -> None:
    path = zipped(DATA, tmp_path / "model.zip")
    content = path.read_bytes()
    broken = tmp_path / "broken.zip"
    at = content.index(b"plans.json") + 200  # within the first compressed plans
    broken.write_bytes(content[:at] + bytes(64) + content[at + 64 :])
    with pytest.raises(CheckpointError, match=r"broken.zip' cannot be unpacked"):
        nnunet.read(broken, configuration=PLAIN.name)
    short = tmp_path / "short.zip"
    short.write_bytes(content[: len(content) // 2])
    assert not nnunet.is_results(short)
    with pytest.raises(CheckpointError, match=r"short.zip' cannot be unpacked"):
        nnunet.read(short)


def test_which_paths_are_results(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "predictions" / "case").mkdir(parents=True)
    shutil.copyfile(PLAIN / "plans.json", tmp_path / "predictions" / "case" / "plans.json")
    results = {PLAIN, DATA, DATA.parent, PLAIN / "fold_0"}
    others = {tmp_path / "model", tmp_path / "predictions", tmp_path / "gone", PLAIN / "plans.json"}
    others.add(PLAIN / "fold_0" / "checkpoint_final.pth")
    assert {path for path in results | others if nnunet.is_results(path)} == results


@pytest.mark.usefixtures("unet")
def test_the_folder_of_a_fold_is_that_fold() -> None:
    assert nnunet.read(PLAIN / "fold_1").facts["folds"] == ["1"]


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """A data set with a 2D configuration, two 3D ones, and the folder of an ensemble."""
    folder = tmp_path / "Dataset901_Tiny"
    for name in ("2d", "3d_fullres", "3d_lowres"):
        shutil.copytree(PLAIN, folder / f"nnUNetTrainer__nnUNetPlans__{name}")
    (folder / "ensembles" / "ensemble").mkdir(parents=True)
    shutil.copyfile(PLAIN / "plans.json", folder / "ensembles" / "ensemble" / "plans.json")
    return folder


@pytest.mark.usefixtures("unet")
def test_a_configuration_is_chosen(several: Path) -> None:
    for asked in ("3d_lowres", "nnUNetTrainer__nnUNetPlans__3d_lowres"):
        assert nnunet.read(several, folds=[0], configuration=asked).name == "PlainConvUNet"
    with pytest.raises(UsageError, match=r"2 trained configurations: 3d_fullres, 3d_lowres. Choose one, .* 3d_fullres"):
        nnunet.read(several)
    with pytest.raises(UsageError, match=r"has no configuration '3d'. It has 2d, 3d_fullres, 3d_lowres"):
        nnunet.read(several, configuration="3d")
    shutil.rmtree(several / "nnUNetTrainer__nnUNetPlans__3d_lowres")
    assert nnunet.read(several, folds=[0]).title == "dataset901_tiny-3d_fullres"


def test_configurations_of_the_same_name_are_listed_by_folder() -> None:
    names = f"{PLAIN.name}, {RESIDUAL.name}"
    with pytest.raises(UsageError, match=f"{names}. Choose one, for example with --configuration {PLAIN.name}"):
        nnunet.read(DATA, configuration="3d_fullres")


@pytest.mark.usefixtures("unet")
def test_folds_and_checkpoints_are_chosen(result: Callable[..., Path]) -> None:
    folder = result()
    with pytest.raises(CheckpointError, match=r"has no fold 7 with a checkpoint_final.pth. It has 0, 1"):
        nnunet.read(folder, folds=[7])
    (folder / "fold_1").rename(folder / "fold_all")
    assert nnunet.read(folder).facts["folds"] == ["0"]
    assert nnunet.read(folder, folds=["all"]).facts["folds"] == ["all"]
    (folder / "fold_0" / "checkpoint_final.pth").rename(folder / "fold_0" / "checkpoint_best.pth")
    assert nnunet.read(folder).facts["folds"] == ["all"]
    assert nnunet.read(folder, checkpoint_name="checkpoint_best.pth").facts["checkpoint"] == "checkpoint_best.pth"
    shutil.rmtree(folder / "fold_all")
    with pytest.raises(
        CheckpointError, match=r"no fold .* has a checkpoint_final.pth. There is checkpoint_best.pth: --ch"
    ):
        nnunet.read(folder)
    shutil.rmtree(folder / "fold_0")
    with pytest.raises(CheckpointError, match="Train a fold first"):
        nnunet.read(folder)


def test_files_that_are_missing_or_damaged(result: Callable[..., Path]) -> None:
    folder = result()
    (folder / "dataset.json").unlink()
    with pytest.raises(CheckpointError, match=r"there is no '.*dataset.json'"):
        nnunet.read(folder)
    (folder / "dataset.json").write_text("[]", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"dataset.json' is not as nnU-Net writes it: it holds a list"):
        nnunet.read(folder)
    (folder / "plans.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"plans.json' is not JSON"):
        nnunet.read(folder)
    (folder / "plans.json").rename(folder / "plans.pkl")
    assert nnunet.is_results(folder)
    with pytest.raises(UsageError, match=r"is a result of nnU-Net v1, and only those of nnU-Net v2 are read"):
        nnunet.read(folder)
    with pytest.raises(UsageError, match=r"holds no results of nnU-Net v2"):
        nnunet.read(folder / "fold_0")

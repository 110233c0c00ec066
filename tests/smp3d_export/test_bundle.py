"""MONAI bundles: their network, their weights, what their metadata says, and what is wrong with some."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import Result

from smp3d_export import api, load
from smp3d_export.errors import UsageError
from smp3d_export.sources.bundle import Bundle, is_bundle
from smp3d_export.sources.bundle_metadata import facts, input_shape, size_of
from smp3d_export.sources.kinds import source_from

Cli = Callable[..., Result]
QUICK = ("--no-bench", "--shape", "1,2,8,8,8", "--max", "1,2,16,16,16")
UNET = {
    "_target_": "UNet",
    "spatial_dims": 3,
    "in_channels": "@channels",
    "out_channels": 3,
    "channels": [4, 8],
    "strides": [2],
    "norm": "batch",
}
CONFIG: dict[str, Any] = {
    "imports": ["$import os", "$import there_is_no_such_package"],
    "bundle_root": "/workspace/elsewhere",
    "device": "$torch.device('cuda:0')",
    "channels": "$1 + 1",
    "network_def": UNET,
    "network": "$@network_def.to(@device)",
    "pixdim": [1.5, 1.5, 2.0],
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [{"_target_": "LoadImaged", "keys": "image"}, {"_target_": "Spacingd", "pixdim": "@pixdim"}],
    },
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [8, 8, 8]},
    "datalist": "$open('/there/is/no/such/file')",
}
METADATA: dict[str, Any] = {
    "version": "0.5.9",
    "task": "spleen segmentation",
    "network_data_format": {
        "inputs": {
            "image": {
                "modality": "CT",
                "num_channels": 2,
                "spatial_shape": [8, "8*n", "*"],
                "value_range": [0, 1],
                "channel_def": {"0": "arterial", "1": "venous"},
            }
        },
        "outputs": {"pred": {"channel_def": {"0": "background", "1": "spleen", "2": "tumour"}}},
    },
}
OWN_NETWORK = """
from torch import nn

class Net(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv3d(channels, {classes}, 1)

    def forward(self, image):
        from scripts import helpers
        return helpers.doubled(self.conv(image))
"""
HELPERS = "def doubled(tensor):\n    return 2 * tensor\n"


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])


def network() -> nn.Module:
    from monai.networks.nets.unet import UNet

    torch.manual_seed(1)
    return UNet(3, 2, 3, (4, 8), (2,), norm="batch").eval()


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[..., Path]:
    """Makes a bundle of a tiny network, with other items of its configuration and metadata."""

    def make(
        config: Mapping[str, Any] | str | None = None,
        metadata: Mapping[str, Any] | str | None = None,
        drop: tuple[str, ...] = (),
        kind: str = "inference.json",
        name: str = "spleen",
        weights: Any = None,
    ) -> Path:
        folder = tmp_path / name
        (folder / "configs").mkdir(parents=True)
        (folder / "models").mkdir()
        whole = {key: value for key, value in {**CONFIG, **changes(config)}.items() if key not in drop}
        write(folder / "configs" / kind, config if isinstance(config, str) else whole)
        write(
            folder / "configs/metadata.json",
            metadata if isinstance(metadata, str) else {**METADATA, **changes(metadata)},
        )
        (folder / "scripts").mkdir()
        write(folder / "scripts/nets.py", "# The network.\ncount = 1 / 0\n")
        torch.save(network().state_dict() if weights is None else weights, folder / "models/model.pt")
        return folder

    return make


def changes(given: Mapping[str, Any] | str | None) -> Mapping[str, Any]:
    return given if isinstance(given, Mapping) else {}


def write(path: Path, content: Any) -> None:
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")


def image(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def agrees(artifact: Path, model: nn.Module) -> bool:
    volume = image(1, 2, 16, 8, 12)
    with torch.no_grad():
        expected = model(torch.from_numpy(volume)).numpy()
    return np.allclose(load(artifact)(volume)["masks"], expected, atol=1e-4)


def test_a_folder_is_exported_with_its_own_weights(cli: Cli, bundle: Callable[..., Path]) -> None:
    folder = bundle()
    result = cli("from", folder, *QUICK)
    assert result.exit_code == 0, result.output
    assert "this runs the code that configs/inference.json names" in result.output
    assert agrees(Path("spleen-export"), network())
    manifest = json.loads(Path("spleen-export/manifest.json").read_text())
    assert manifest["model"]["architecture"] == "spleen"
    assert manifest["model"]["weights"]["source"] == "model.pt of version 0.5.9"
    found = manifest["monai"]
    assert (found["name"], found["network"], found["version"]) == ("spleen", "UNet", "0.5.9")
    assert found["channel_names"] == {"0": "arterial", "1": "venous"}
    assert found["output_channels"] == {"0": "background", "1": "spleen", "2": "tumour"}
    assert (found["spacing"], found["patch_size"]) == ([1.5, 1.5, 2.0], [8, 8, 8])
    assert found["input"] == {"modality": "CT", "value_range": [0, 1]}
    assert found["preprocessing"][0] == {"_target_": "LoadImaged", "keys": "image"}


def test_a_zip_file_is_exported_with_code_of_its_own(cli: Cli, bundle: Callable[..., Path]) -> None:
    for name, classes, within in (("first", 2, True), ("second", 3, False)):  # both have a package called scripts
        weights = {"conv.weight": torch.rand(classes, 2, 1, 1, 1), "conv.bias": torch.rand(classes)}
        own = {"_target_": "scripts.nets.Net", "channels": 2}
        folder = bundle({"network_def": own}, name=name, weights=weights)
        write(folder / "scripts/__init__.py", "")
        write(folder / "scripts/helpers.py", HELPERS)
        write(folder / "scripts/nets.py", OWN_NETWORK.replace("{classes}", str(classes)))
        archive = shutil.make_archive(
            f"{name}-1.0", "zip", folder.parent if within else folder, name if within else None
        )
        shutil.rmtree(folder)
        result = cli("from", archive, *QUICK, "-o", name)
        assert result.exit_code == 0, result.output
        model = nn.Conv3d(2, classes, 1)
        model.load_state_dict({key.removeprefix("conv."): 2 * value for key, value in weights.items()})
        assert agrees(Path(name), model)


def test_other_weights_and_a_name(bundle: Callable[..., Path], tmp_path: Path) -> None:
    folder = bundle()
    (folder / "models/model.pt").unlink()
    other = {key: tensor + 1 for key, tensor in network().state_dict().items()}
    torch.save({"model": other, "epoch": 3}, tmp_path / "best.pt")
    source = source_from(str(folder), checkpoint=tmp_path / "best.pt", name="mine")
    assert isinstance(source, Bundle)
    given = source.load()
    assert (source.title, given.name, given.weights) == ("mine", "mine", "best.pt")
    assert all(torch.equal(tensor, other[key]) for key, tensor in given.module.state_dict().items())


def test_a_configuration_in_yaml_of_the_training(bundle: Callable[..., Path]) -> None:
    text = "network_def:\n  _target_: UNet\n" + "".join(
        f"  {key}: {value}\n" for key, value in UNET.items() if key != "_target_"
    )
    folder = bundle(text.replace("@channels", "2"), kind="train.yaml")
    given = Bundle(path=folder).load()
    assert given.shape == (1, 2, 8, 64, 64)
    assert given.notes[0] == "this runs the code that configs/train.yaml names"
    assert torch.equal(given.module.eval()(torch.ones(1, 2, 8, 8, 8)), network()(torch.ones(1, 2, 8, 8, 8)))


def test_the_second_best_name_of_the_network(bundle: Callable[..., Path]) -> None:
    given = Bundle(path=bundle({"network": {**UNET, "in_channels": 2}}, drop=("network_def",))).load()
    assert type(given.module).__name__ == "UNet"


WRONG = {
    "no configuration": ({"kind": "evaluate.json"}, (), "has no configs/inference.json"),
    "no network": ({"drop": ("network_def", "network")}, (), "defines no network_def or network"),
    "code of its own that raises": (
        {"config": {"network_def": {"_target_": "scripts.nets.Net"}}},
        (),
        "nets.py:2 (count = 1 / 0): ZeroDivisionError: division by zero",
    ),
    "not JSON": ({"config": "{"}, (), "inference.json' cannot be read: JSONDecodeError"),
    "not a table": ({"config": "[1]"}, (), "cannot be read"),
    "metadata that is not JSON": ({"metadata": "{"}, (), "metadata.json' cannot be read: JSONDecodeError"),
    "metadata that is no table": ({"metadata": "[]"}, (), "metadata.json' holds a list"),
    "no such class": ({"config": {"network_def": {"_target_": "monai.Nothing"}}}, (), "network_def of"),
    "no such argument": ({"config": {"network_def": {**UNET, "chanels": 1}}}, (), "chanels"),
    "an expression that raises": ({"config": {"channels": "$1 / 0"}}, (), "ZeroDivisionError: division by zero"),
    "an expression that exits": ({"config": {"channels": "$exit(3)"}}, (), "SystemExit: 3"),
    "a reference to nothing": ({"config": {"channels": "@width"}}, (), "@width"),
    "not a network": ({"config": {"network_def": [1]}}, (), "is a list, not a torch.nn.Module"),
    "weights of another network": ({"config": {"channels": 1}}, (), "does not fit UNet"),
    "weights with code": ({"weights": [print]}, (), "loading that can run code, so it is refused"),
    "images with two axes": (
        {"metadata": {"network_data_format": {"inputs": {"image": {"spatial_shape": [8, 8]}}}}},
        (),
        "takes images with 2 axes",
    ),
    "an argument for it": ({}, ("--factory-arg", "a=1"), "--factory-arg does not go with a MONAI bundle"),
    "a revision": ({}, ("--revision", "main"), "--revision does not go with a MONAI bundle"),
    "no such output": ({}, ("--keep-output", "mask"), "there is no output 'mask'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line(cli: Cli, bundle: Callable[..., Path], case: str) -> None:
    made, options, says = WRONG[case]
    result = cli("from", bundle(**made), *QUICK, *options)
    assert result.exit_code == 2, result.output
    errors = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and says in result.output, result.output
    assert "Traceback" not in result.output


def test_no_weights(bundle: Callable[..., Path]) -> None:
    folder = bundle()
    (folder / "models/model.pt").unlink()
    with pytest.raises(UsageError, match=r"has no models/model.pt.*: give --checkpoint FILE"):
        Bundle(path=folder).load()


def test_errors_of_a_zip_file_name_it(bundle: Callable[..., Path], tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "spleen"), "zip", bundle({"channels": 1}))
    assert is_bundle(Path(archive))
    with pytest.raises(UsageError) as error:
        api.export(archive, shape=(1, 2, 8, 8, 8))
    assert f"{archive}/models/model.pt' does not fit UNet" in str(error.value)
    content = bytearray(Path(archive).read_bytes())
    content[content.index(b"models/model.pt") + 200] ^= 255
    Path(archive).write_bytes(content)
    with pytest.raises(UsageError, match="cannot be unpacked"):
        Bundle(path=Path(archive)).load()


def test_without_monai(bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bundle()
    for name in [name for name in sys.modules if name.split(".")[0] == "monai"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "monai", None)
    with pytest.raises(UsageError, match=r"pip install 'smp3d-export\[monai\]'"):
        Bundle(path=folder).load()


def test_what_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    torch.save({}, tmp_path / "model.pt")  # a zip file too
    assert not is_bundle(tmp_path)
    assert not is_bundle(tmp_path / "model.pt")
    assert not is_bundle(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("entry", "size"),
    [
        (96, 96),
        ("96", 96),
        ("*", 64),
        ("16*n", 64),
        ("24 * n", 72),
        ("160*n", 160),
        ("32 ** p * n", 64),
        ("2**p", 64),
        ("n * 32 + 1", 65),
        ("n", 64),
        (True, None),
        (0, None),
        (None, None),
        ("sixteen", None),
        ("__import__('os').getpid()", None),
        ("9**9**9", None),
        ("n // 0", None),
    ],
)
def test_sizes_that_metadata_leaves_open(entry: object, size: int | None) -> None:
    assert size_of(entry) == size


def test_metadata_of_any_form_is_read() -> None:
    assert input_shape({}) is None
    assert input_shape({"num_channels": 1, "spatial_shape": "8*n"}) is None
    assert input_shape({"num_channels": 1, "spatial_shape": [8, "x", 8]}) is None
    for metadata in ({"network_data_format": 3}, {"network_data_format": {"inputs": {"image": None}}}):
        assert facts(metadata, {"preprocessing": 3}, lambda _: None) == {}

"""Constructor arguments: kept by name, refused if a class does not take them, and listed correctly."""

from __future__ import annotations

import copy
import inspect
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import smp3d_export as smp
from smp3d_export.architectures import ARCHITECTURES, architecture_class
from smp3d_export.architectures.arguments import check_arguments
from smp3d_export.errors import UsageError

# Arguments of every architecture, which `list architectures` does not repeat.
COMMON = {
    "encoder_name": "resnet34",
    "encoder_depth": 5,
    "encoder_weights": "imagenet",
    "in_channels": 3,
    "classes": 1,
    "activation": None,
    "upsampling": None,
    "aux_params": None,
    "strides": ((2, 2, 2),) * 5,
}
SMALL = {"encoder_name": "mobileone_s1", "encoder_weights": None, "encoder_depth": 2, "decoder_channels": (8, 4)}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_table_has_the_arguments_of_the_class(name: str) -> None:
    defaults = {key: p.default for key, p in inspect.signature(architecture_class(name)).parameters.items()}
    own = {key: value for key, value in defaults.items() if key not in COMMON or COMMON[key] != value}
    assert ARCHITECTURES[name].arguments == own


def test_a_model_knows_its_arguments_however_they_were_given() -> None:
    model = smp.Unet("mobileone_s1", 2, None, True, np.array([8, 4]), classes=np.int64(2), in_channels=1)  # pyright: ignore[reportArgumentType]
    assert model.arguments == {
        "encoder_name": "mobileone_s1",
        "encoder_depth": 2,
        "encoder_weights": None,
        "decoder_use_batchnorm": True,
        "decoder_channels": [8, 4],
        "decoder_attention_type": None,
        "in_channels": 1,
        "classes": 2,
        "activation": None,
        "aux_params": None,
        "strides": [[2, 2, 2]] * 5,
        "decoder_use_norm": "batchnorm",
    }


def test_later_changes_to_the_passed_objects_do_not_matter() -> None:
    channels, aux = [8, 4], {"classes": 2}
    model = smp.Unet(**{**SMALL, "decoder_channels": channels, "aux_params": aux})
    channels.append(2)
    aux["classes"] = 3
    assert model.arguments["decoder_channels"] == [8, 4]
    assert model.arguments["aux_params"] == {"classes": 2}


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_keep_them(again) -> None:
    model = smp.Unet(**SMALL, classes=3, activation=lambda: torch.nn.Sigmoid())  # a lambda cannot be pickled itself
    assert again(model).arguments["classes"] == 3


class WithDefaults(smp.Unet):
    """The way users write subclasses: some arguments of their own, the others passed on."""

    def __init__(self, width: int = 4, **others) -> None:
        super().__init__("mobileone_s1", 2, None, decoder_channels=(2 * width, width), **others)


class Passing(smp.Unet):
    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)


def test_a_users_own_class_has_its_own_arguments() -> None:
    assert WithDefaults(6, classes=2).arguments == {"width": 6, "classes": 2}
    assert Passing(**SMALL).arguments["decoder_channels"] == [8, 4]
    with pytest.raises(UsageError, match="pass them by name"):
        _ = Passing("mobileone_s1", encoder_weights=None).arguments


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("fpn", {"clases": 2}, "there is no FPN argument 'clases'. Nearest: classes. All: encoder_name"),
        ("fpn", {"decoder_channels": 8}, "there is no FPN argument 'decoder_channels'. Nearest: decoder_p"),
        ("pan", {"encoder_depth": 4}, "there is no PAN argument 'encoder_depth'"),
        ("unet", {"classes": "3"}, "classes of Unet is '3'; it takes a whole number from 1 up"),
        ("unet", {"classes": 0}, "it takes a whole number from 1 up"),
        ("unet", {"classes": True}, "it takes a whole number from 1 up"),
        ("unet", {"decoder_channels": 256}, "it takes a list of whole numbers from 1 up"),
        ("unet", {"decoder_channels": (64, 32, 16, 8, -4)}, "it takes a list of whole numbers from 1 up"),
        ("unet", {"decoder_use_batchnorm": "inplace"}, "it takes true or false"),
        ("unet", {"strides": 2}, "it takes a list of lists of whole numbers from 1 up"),
        ("unet", {"activation": 3}, "it takes a name or a callable or none"),
        ("unet", {"aux_params": 3}, "aux_params of Unet is 3; it takes a mapping or none"),
        ("unet", {"aux_params": {"classes": "two"}}, "classes of aux_params is 'two'"),
        ("fpn", {"decoder_dropout": 2}, "decoder_dropout of FPN is 2; it takes a number from 0 to 1"),
        ("pspnet", {"psp_dropout": None}, "it takes a number from 0 to 1"),
        ("pan", {"decoder_channels": (32, 16)}, "it takes a whole number from 1 up"),
        ("deeplabv3plus", {"decoder_atrous_rates": 6}, "it takes a list of whole numbers from 1 up"),
        ("segformer", {"upsampling": "x2"}, "from 1 up or a list of whole numbers from 1 up or none"),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_names_and_types_are_refused(name: str, arguments, says: str) -> None:
    with pytest.raises(UsageError) as error:
        smp.create_model(name, "resnet18", None, **arguments)
    assert says in str(error.value)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_valid_arguments_are_accepted(name: str) -> None:
    """Defaults, their JSON counterparts, and objects such as paths that may replace text."""
    cls = architecture_class(name)
    check_arguments(cls, {key: p.default for key, p in inspect.signature(cls).parameters.items()})
    check_arguments(
        cls,
        {
            "encoder_weights": Path("weights"),
            "activation": torch.nn.Sigmoid,
            "classes": np.int64(2),
            "aux_params": {"classes": 2},
            "strides": [[1, 2, 2]],
        },
    )

"""Normalisation of the decoders by `decoder_use_norm`: layers, keys, errors, and what a checkpoint shows of it."""

from __future__ import annotations

from collections.abc import Callable
from math import gcd
from pathlib import Path
from typing import Any

import pytest
import tiny_encoder
import torch
from torch import Tensor, nn

import smp3d_export as smp
from smp3d_export.architectures import architecture_class, create_model
from smp3d_export.architectures.normalisation import InstanceNorm, Norm, norm_of, norms_shown
from smp3d_export.encoders import encoder_spec
from smp3d_export.encoders.spec import Triple
from smp3d_export.errors import ShapeError, UsageError
from smp3d_export.sources.network import randomise_normalisations

# Architectures whose normalisation is an argument, with arguments for a network of a few channels.
NETWORKS: dict[str, dict[str, Any]] = {
    "Unet": {"encoder_depth": 2, "decoder_channels": (8, 4)},
    "UnetPlusPlus": {"encoder_depth": 2, "decoder_channels": (8, 4)},
    "MAnet": {"encoder_depth": 2, "decoder_channels": (8, 4), "decoder_pab_channels": 4},
    "Linknet": {"encoder_depth": 2},
    "PSPNet": {"encoder_depth": 2, "psp_out_channels": 8},
    "UPerNet": {"encoder_depth": 3, "decoder_channels": 8},
}
FLAGS = {"PSPNet": "psp_use_batchnorm"} | dict.fromkeys(
    ("Unet", "UnetPlusPlus", "MAnet", "Linknet"), "decoder_use_batchnorm"
)


class OverChannels(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)


# `decoder_use_norm` -> the same layer made by hand, for a number of channels.
LAYERS: list[tuple[Any, Callable[[int], nn.Module]]] = [
    ("groupnorm", lambda c: nn.GroupNorm(gcd(8, c), c)),
    ({"type": "groupnorm", "num_groups": 1, "eps": 0.1}, lambda c: nn.GroupNorm(1, c, eps=0.1)),
    ("instancenorm", lambda c: nn.InstanceNorm3d(c)),
    ({"type": "instancenorm", "affine": True}, lambda c: nn.InstanceNorm3d(c, affine=True)),
    (
        {"type": "instancenorm", "affine": True, "track_running_stats": True},
        lambda c: nn.InstanceNorm3d(c, affine=True, track_running_stats=True),
    ),
    ("layernorm", OverChannels),
    ({"type": "layernorm", "eps": 0.01, "elementwise_affine": False}, lambda c: OverChannels(c, 0.01, False)),
    ({"type": "batchnorm", "eps": 0.1}, lambda c: nn.BatchNorm3d(c, eps=0.1)),
]
CASES = [
    (name, norm, layer)
    for name in NETWORKS
    for norm, layer in LAYERS
    if (name, norm_of(norm).name) != ("UPerNet", "instancenorm")
]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_encoder.register(monkeypatch)


def built(name: str, **others: Any) -> Any:
    torch.manual_seed(0)
    model = create_model(name, tiny_encoder.SPEC.name, None, 1, 2, **{**NETWORKS[name], **others}).eval()
    randomise_normalisations(model)
    return model


def replaced(model: nn.Module, layer: Callable[[int], nn.Module]) -> nn.Module:
    """The network with other layers in place of the decoder's batch normalisation."""
    decoder = model.get_submodule("decoder")
    for name, module in list(decoder.named_modules()):
        if isinstance(module, nn.BatchNorm3d) and name != "psp.out_conv.1":  # batch norm always, as in the 2D library
            decoder.set_submodule(name, layer(module.num_features))
    return model.eval()


@pytest.mark.parametrize(("name", "norm", "layer"), CASES, ids=lambda value: "layer" if callable(value) else str(value))
def test_the_layer_is_where_batch_normalisation_is(name: str, norm: Any, layer: Callable[[int], nn.Module]) -> None:
    model = built(name, decoder_use_norm=norm)
    by_hand = replaced(built(name), layer)
    by_hand.load_state_dict(model.state_dict())  # the same keys, or it raises
    image = torch.randn(2, 1, *(2 * k for k in model.multiple))
    with torch.no_grad():
        torch.testing.assert_close(model(image), by_hand(image))


@pytest.mark.parametrize("norm", [norm for norm, _ in LAYERS], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_smallest_volume_is_taken(name: str, norm: Any) -> None:
    if (name, norm_of(norm).name) == ("UPerNet", "instancenorm"):
        pytest.skip("UPerNet has no instance normalisation")
    model = built(name, decoder_use_norm=norm)
    assert model(torch.randn(1, 1, *model.min_size)).isfinite().all()


FLAT = ((2, 2, 1), (2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1))


@pytest.mark.parametrize(
    ("name", "encoder", "norm", "strides", "min_size"),
    [
        ("Unet", "tiny", "instancenorm", None, (8, 4, 4)),  # VGG has two convolutions at its last map
        ("Unet", "resnet18", "instancenorm", None, (4, 4, 4)),  # the decoder begins with an upsampling
        ("Unet", "resnet18", "instancenorm", ((2, 2, 2), (1, 1, 1), *FLAT[2:]), (4, 2, 2)),  # by a stride of 1
        ("UnetPlusPlus", "tiny", "instancenorm", None, (4, 4, 4)),
        ("MAnet", "tiny", "instancenorm", None, (8, 4, 4)),
        ("Linknet", "tiny", "instancenorm", FLAT, (8, 4, 2)),
        ("PSPNet", "tiny", "instancenorm", ((1, 1, 2), (1, 2, 2), *FLAT[2:]), (1, 2, 8)),
        ("PSPNet", "tiny", {"type": "instancenorm", "track_running_stats": True}, None, (4, 4, 4)),
        ("PSPNet", "tiny", "groupnorm", None, (4, 4, 4)),
        ("MAnet", "mit_b0", "instancenorm", None, (32, 32, 32)),
    ],
)
def test_instances_need_two_voxels(name: str, encoder: str, norm: Any, strides: Any, min_size: Triple) -> None:
    """PyTorch's own module refuses one voxel, and takes the volumes that these networks take."""
    strides = {} if strides is None else {"strides": strides}
    model = create_model(name, encoder, None, 1, 2, **NETWORKS[name], **strides, decoder_use_norm=norm).eval()
    assert model.min_size == min_size
    decoder = model.decoder
    for key, module in list(decoder.named_modules()):
        if isinstance(module, InstanceNorm):
            tracks = module.track_running_stats
            decoder.set_submodule(key, nn.InstanceNorm3d(module.num_features, track_running_stats=tracks).eval())
    model(torch.randn(1, 1, *min_size))
    least = model.encoder.min_size
    if min_size != least:
        with pytest.raises(ShapeError, match="its instance normalisation needs two voxels in the smallest feature map"):
            model(torch.randn(1, 1, *least))
        with pytest.raises(ValueError, match="more than 1 spatial element"):
            model.decoder(model.encoder(torch.randn(1, 1, *least)))


@pytest.mark.parametrize(
    ("norm", "batchnorm", "layer"),
    [
        (True, True, "BatchNorm3d"),
        ("batchnorm", True, "BatchNorm3d"),
        ("BatchNorm", True, "BatchNorm3d"),
        (True, False, "Identity"),
        ("batchnorm", False, "Identity"),
        (False, True, "Identity"),
        ("identity", True, "Identity"),
        (False, False, "Identity"),
        ({"type": "Identity"}, False, "Identity"),
        ("layernorm", True, "LayerNorm"),
        ("instancenorm", True, "InstanceNorm"),
        ("groupnorm", True, "GroupNorm"),
    ],
)
def test_values_of_the_two_arguments(norm: Any, batchnorm: bool, layer: str) -> None:
    assert type(norm_of(norm, batchnorm).layer(4)).__name__ == layer
    model = smp.Unet("tiny", 1, None, batchnorm, (8,), decoder_use_norm=norm)
    block = model.get_submodule("decoder.blocks.0.conv1")
    assert [type(module).__name__ for module in block.children()] == ["Conv3d", layer, "ReLU"]
    assert (block.get_submodule("0").bias is not None) == (layer == "Identity")


@pytest.mark.parametrize(("channels", "groups"), [(64, 8), (24, 8), (20, 4), (10, 2), (8, 8), (3, 1), (1, 1)])
def test_groups_of_the_default_divide_every_number_of_channels(channels: int, groups: int) -> None:
    assert norm_of("groupnorm").layer(channels).num_groups == groups


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"decoder_use_norm": "grupnorm"}, "there is no decoder_use_norm 'grupnorm'. Nearest: groupnorm"),
        ({"decoder_use_norm": "inplace"}, "comes from another package whose kernels cannot be exported"),
        ({"decoder_use_norm": 3}, "decoder_use_norm of Unet is 3; it takes true or false or a name or a mapping"),
        ({"decoder_use_norm": {"eps": 0.1}}, "a mapping with one of these as \"type\""),
        ({"decoder_use_norm": {"type": "groupnorm", "groups": 2}}, "Nearest: num_groups. All: num_groups, eps, affine"),
        ({"decoder_use_norm": {"type": "groupnorm", "num_channels": 8}}, "All: num_groups, eps, affine"),
        ({"decoder_use_norm": {"type": "identity", "eps": 0.1}}, "All: none"),
        (
            {"decoder_use_norm": {"type": "layernorm", "eps": "small"}},
            "eps of decoder_use_norm layernorm is 'small'; it takes a number from 0 to 1",
        ),
        (
            {"decoder_use_norm": {"type": "groupnorm", "num_groups": 6}},
            "num_groups of decoder_use_norm is 6, but a decoder map has 8 channels: use a divisor of them, such as 2",
        ),
        (
            {"decoder_use_norm": "groupnorm", "decoder_use_batchnorm": False},
            "decoder_use_norm is 'groupnorm', but decoder_use_batchnorm is false: give one of the two",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_values_are_named(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as error:
        built("Unet", **arguments)
    assert says in str(error.value)


@pytest.mark.parametrize("name", FLAGS)
def test_the_older_argument_of_every_network_is_the_identity(name: str) -> None:
    keys = built(name, **{FLAGS[name]: False}).state_dict().keys()
    assert keys == built(name, decoder_use_norm="identity").state_dict().keys()
    with pytest.raises(UsageError, match=f"{FLAGS[name]} is false"):
        built(name, **{FLAGS[name]: False}, decoder_use_norm="layernorm")


SAME_TENSORS = ("layernorm", "groupnorm,num_groups=N", "instancenorm,affine=true")


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("norm", "shown"),
    [
        ("batchnorm", ("batchnorm",)),
        ("identity", ("identity",)),
        ("instancenorm", ("instancenorm",)),
        ("layernorm", SAME_TENSORS),
        ("groupnorm", SAME_TENSORS),
        ({"type": "instancenorm", "affine": True}, SAME_TENSORS),
    ],
    ids=str,
)  # fmt: skip
def test_tensors_show_a_normalisation_that_is_the_only_one(name: str, norm: Any, shown: tuple[str, ...]) -> None:
    """Where several have the same tensors nothing is inferred: the wrong one would give a wrong network silently."""
    if (name, norm_of(norm).name) == ("UPerNet", "instancenorm"):
        pytest.skip("UPerNet has no instance normalisation")
    cls = architecture_class(name)
    shapes = {key: tuple(tensor.shape) for key, tensor in built(name, decoder_use_norm=norm).state_dict().items()}
    assert norms_shown(shapes, cls.norm_block) == shown
    inferred = cls.infer_arguments(shapes, encoder_spec("tiny"))
    chosen = {key: value for key, value in inferred.items() if key in {*FLAGS.values(), "decoder_use_norm"}}
    flag = FLAGS.get(name)
    if len(shown) > 1:
        assert chosen == {}
    elif flag and norm != "instancenorm":
        assert chosen == {flag: norm == "batchnorm"}
    else:
        assert chosen == {"decoder_use_norm": norm}


@pytest.mark.parametrize("norm", ["layernorm", {"type": "groupnorm", "num_groups": 2}, False], ids=str)
def test_a_saved_model_has_it(norm: Any, tmp_path: Path) -> None:
    model = built("Unet", decoder_use_norm=norm)
    model.save_pretrained(tmp_path)
    again = smp.from_pretrained(tmp_path)
    assert again.arguments["decoder_use_norm"] == norm
    image = torch.randn(1, 1, 8, 8, 8)
    torch.testing.assert_close(again.predict(image), model.predict(image))


def test_norms_are_equal_by_what_they_say() -> None:
    assert norm_of({"type": "LayerNorm", "eps": 0.1}) == Norm("layernorm", {"eps": 0.1})

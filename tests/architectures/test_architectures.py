"""Every architecture with every encoder family: refusals, sizes, heads, and what can be inferred from a checkpoint."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from families import FAMILIES, STRIDES, draws_each_weight_once

from smp3d_export import create_model
from smp3d_export.architectures import ARCHITECTURES, architecture_class
from smp3d_export.architectures.base import SegmentationModel
from smp3d_export.encoders import encoder_spec
from smp3d_export.errors import ShapeError, UsageError
from smp3d_export.sources.network import randomise_normalisations

SMALLEST = "efficientnet-b0"
# A total stride of 2, for networks that have to run.
SHALLOW = ((2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1))

# Pairs that are impossible, and arguments that some of the others need.
REFUSED = {
    **{(name, "mit"): "needs a feature map from every stage" for name in ("UnetPlusPlus", "Linknet")},
    **{
        (name, family): f"{name} dilates the encoder's last stages"
        for name in ("DeepLabV3", "DeepLabV3Plus")
        for family in ("densenet", "vgg", "mit")
    },
}
NEEDS = {("PAN", family): {"encoder_output_stride": 32} for family in ("densenet", "vgg", "mit")}

PAIRS = [(name, family) for name in ARCHITECTURES for family in FAMILIES]
VALID = [pair for pair in PAIRS if pair not in REFUSED]


def strided() -> list[Any]:
    """Unet with every family and every architecture with ResNet get all sets of uneven strides, the other pairs one.

    Each pair with Unet, ResNet or MiT, which lacks a feature map, takes its turn with one set in a quick run.
    """
    params, quick = [], 0
    for name, family in VALID:
        main = {"Unet", "resnet"} & {name, family}
        sets = [*STRIDES] if main else ["with-3"]
        chosen = sets[quick % len(sets)] if main or family == "mit" else None
        quick += chosen is not None
        params += [pytest.param(name, family, n, marks=[] if n == chosen else pytest.mark.slow) for n in sets]
    return params


MIN_DEPTH = {"FPN": 3, "DeepLabV3Plus": 3, "UPerNet": 3, "Segformer": 3, "PAN": 5}
# In a quick run every architecture with ResNet, and Unet with the others.
DEPTHS = [
    pytest.param(name, encoder, depth, marks=[] if {"Unet", "resnet18"} & {name, encoder} else pytest.mark.slow)
    for name in ARCHITECTURES
    for encoder in ("resnet18", "vgg11", "mit_b0")
    for depth in range(MIN_DEPTH.get(name, 1), 5)
    if ARCHITECTURES[name].refusal(encoder_spec(encoder), depth) is None
]


def on_meta(name: str, encoder: str, **arguments: Any) -> SegmentationModel:
    """A model without weights, which still has shapes."""
    with torch.device("meta"):
        return create_model(name, encoder, **{"encoder_weights": None, "in_channels": 1, **arguments}).eval()


@functools.cache
def of_defaults(name: str, family: str) -> SegmentationModel:
    """A pair of the table with nothing but the arguments that it needs, built once."""
    return on_meta(name, FAMILIES[family], **NEEDS.get((name, family), {}))


def defaults(name: str) -> dict[str, Any]:
    return {key: p.default for key, p in inspect.signature(architecture_class(name)).parameters.items()}


def at_depth(name: str, depth: int) -> dict[str, Any]:
    """The arguments for an encoder of `depth` stages and a matching decoder."""
    if "encoder_depth" not in defaults(name):
        return {}
    channels = defaults(name).get("decoder_channels")
    return {"encoder_depth": depth} | ({"decoder_channels": channels[:depth]} if isinstance(channels, tuple) else {})


def tensors(model: SegmentationModel) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def masks_of(model: SegmentationModel, size: tuple[int, ...] | None = None) -> torch.Size:
    volume = torch.zeros(2, model.encoder.in_channels, *(size or model.min_size), device="meta")
    with torch.no_grad():
        return model(volume).shape


# Refusals


@pytest.mark.parametrize(("name", "family"), PAIRS)
def test_exactly_the_pairs_of_the_table_are_refused(name: str, family: str) -> None:
    row, encoder = ARCHITECTURES[name], encoder_spec(FAMILIES[family])
    refusal, needs = row.refusal(encoder, defaults(name).get("encoder_depth", 5)), row.needs(encoder)
    assert (refusal is not None) == ((name, family) in REFUSED)
    assert needs == NEEDS.get((name, family), {})
    if refusal is not None:
        assert REFUSED[name, family] in refusal
        with pytest.raises(UsageError) as error:
            on_meta(name, encoder.name)
        assert str(error.value) == f"{name} cannot use {encoder.name}: {refusal}"
        return
    for argument, value in needs.items():
        with pytest.raises(UsageError) as error:
            on_meta(name, encoder.name)
        assert str(error.value).endswith(f"{encoder.undilatable}. Pass {argument}={value}")
    of_defaults(name, family)


@pytest.mark.parametrize(
    ("name", "encoder", "arguments", "says"),
    [
        ("Unet", "mit_b0", {"encoder_depth": 1, "decoder_channels": [16]}, "use an encoder_depth of at least 2"),
        ("FPN", "mit_b0", {"encoder_depth": 4}, "needs the last 4 feature maps, and mit_b0 has none from the first"),
        ("FPN", "resnet18", {"encoder_depth": 2}, "encoder_depth is 2, but FPN reads four feature maps"),
        ("FPN", "resnet18", {"decoder_merge_policy": "sum"}, "there is no decoder_merge_policy 'sum'"),
        ("FPN", "resnet18", {"decoder_segmentation_channels": 100}, "use a multiple of 32"),
        ("Unet", "resnet18", {"decoder_channels": [16, 16]}, "decoder_channels has 2 numbers"),
        ("Unet", "resnet18", {"decoder_attention_type": "cbam"}, "there is no decoder attention 'cbam'"),
        ("UnetPlusPlus", "resnet18", {"encoder_depth": 4}, "decoder_channels has 5 numbers"),
        ("MAnet", "resnet18", {"decoder_pab_channels": 0}, "decoder_pab_channels of MAnet is 0"),
        ("PAN", "resnet18", {"encoder_output_stride": 8}, "PAN takes 16 or 32"),
        ("DeepLabV3Plus", "resnet18", {"encoder_output_stride": 32}, "DeepLabV3Plus takes 8 or 16"),
        ("DeepLabV3Plus", "resnet18", {"encoder_depth": 2}, "DeepLabV3Plus takes 3 to 5"),
        ("DeepLabV3Plus", "resnet18", {"decoder_atrous_rates": [6, 12]}, "three positive whole numbers"),
        ("UPerNet", "resnet18", {"encoder_depth": 2}, "UPerNet takes 3 to 5"),
        ("UPerNet", "resnet18", {"decoder_use_norm": "instancenorm"}, "which UPerNet cannot use"),
        ("Segformer", "resnet18", {"encoder_depth": 2}, "Segformer takes 3 to 5"),
        ("PSPNet", "resnet18", {"upsampling": [2, 2]}, "upsampling is [2, 2]"),
        ("PSPNet", "resnet18", {"activation": "relu"}, "there is no activation 'relu'"),
        ("Linknet", "resnet18", {"aux_params": {"pooling": "avg"}}, "aux_params has no classes"),
        ("Linknet", "resnet18", {"aux_params": {"classes": 2, "pool": "avg"}}, "aux_params has pool"),
        ("Linknet", "resnet18", {"aux_params": {"classes": 2, "pooling": "sum"}}, "must be avg or max"),
        ("Unett", "resnet18", {}, "there is no architecture 'Unett'. Nearest: Unet"),
    ],
)
def test_invalid_arguments_are_named(name: str, encoder: str, arguments: Mapping[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as error:
        on_meta(name, encoder, **arguments)
    assert says in str(error.value)


# Sizes


@pytest.mark.parametrize(("name", "family", "which"), strided())
def test_masks_have_the_size_of_the_input_with_any_strides(name: str, family: str, which: str) -> None:
    model = on_meta(name, FAMILIES[family], classes=3, strides=STRIDES[which], **NEEDS.get((name, family), {}))
    size = tuple(min_size + n * k for n, min_size, k in zip((0, 1, 2), model.min_size, model.multiple, strict=True))
    assert masks_of(model, size) == (2, 3, *size)


@pytest.mark.parametrize(("name", "encoder", "depth"), DEPTHS)
def test_encoders_of_fewer_stages(name: str, encoder: str, depth: int) -> None:
    model = on_meta(name, encoder, **at_depth(name, depth))
    dilated = {"DeepLabV3": 3, "DeepLabV3Plus": 4}.get(name, 5)  # number of stages before the dilated ones
    assert model.multiple == (2 ** min(depth, dilated),) * 3
    assert masks_of(model) == (2, 1, *model.min_size)


@pytest.mark.parametrize("name", ["FPN", "PSPNet", "PAN", "DeepLabV3", "DeepLabV3Plus", "UPerNet", "Segformer"])
def test_upsampling_follows_the_argument(name: str) -> None:
    usual = on_meta(name, SMALLEST)
    model = on_meta(name, SMALLEST, upsampling=(2, 1, 4))
    head = usual.segmentation_head.get_submodule("1")
    factors = [int(s) for s in head.scale_factor]  # pyright: ignore
    expected = [size // k * s for size, k, s in zip(model.min_size, factors, (2, 1, 4), strict=True)]
    assert list(masks_of(model)[2:]) == expected


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_invalid_shapes_are_refused(name: str) -> None:
    model = on_meta(name, SMALLEST)
    h, w, d = model.min_size
    k = model.multiple[0]
    for shape, says in (
        ((1, 1, h, w + 1, d), f"W is {w + 1}, but the network needs a multiple of {k}: use {w} or {w + k}."),
        ((1, 1, h, w, 1), f"D is 1, but the network needs a multiple of {k}: use {d}."),
        ((1, 1, 0, w, d), f"H is 0, but the network needs a multiple of {k}: use {h}."),
        ((1, 2, h, w, d), "C is 2, but the network has 1 input channels"),
        ((1, h, w, d), "the input has 4 axes"),
    ):
        with pytest.raises(ShapeError) as error:
            model(torch.zeros(shape, device="meta"))
        assert says in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "min_size"),
    [({}, 128), ({"encoder_output_stride": 32}, 256), ({"strides": [(2, 1, 2)] * 5}, (128, 8, 128))],
)
def test_pan_needs_eight_voxels_in_the_last_map(arguments: Mapping[str, Any], min_size) -> None:
    model = on_meta("PAN", SMALLEST, **arguments)
    assert model.min_size == ((min_size,) * 3 if isinstance(min_size, int) else min_size)
    assert masks_of(model) == (2, 1, *model.min_size)
    h, w, d = model.min_size
    with pytest.raises(ShapeError) as error:
        model(torch.zeros(1, 1, h - model.multiple[0], w, d, device="meta"))
    assert f"needs at least {h}: its three poolings need 8 voxels per axis in the last feature map" in str(error.value)


@pytest.mark.parametrize(("name", "family"), [pair for pair in VALID if pair[1] == "mit"])
def test_mix_vision_transformers_take_any_number_of_channels(name: str, family: str) -> None:
    """One channel, as above, and four."""
    model = on_meta(name, FAMILIES[family], in_channels=4, **NEEDS.get((name, family), {}))
    assert masks_of(model) == masks_of(of_defaults(name, family)) == (2, 1, *model.min_size)


# Heads


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_classification_head_gives_labels_beside_the_masks(name: str) -> None:
    head = {"classes": 4, "pooling": "max", "dropout": 0.5, "activation": "sigmoid"}
    model = create_model(name, SMALLEST, None, 1, 2, aux_params=head, strides=SHALLOW).eval()
    randomise_normalisations(model)  # with the initial statistics everything is close to zero
    # The last map has more than one voxel.
    size = [max(least, 2 * k) for least, k in zip(model.min_size, model.multiple, strict=True)]
    image = torch.randn(2, 1, *size)
    with torch.no_grad():
        masks, labels = model(image)
        last = model.encoder(image)[-1]
    assert last.std() > 0.01
    linear = model.classification_head.get_submodule("3")  # pyright: ignore
    assert masks.shape == (2, 2, *size)
    torch.testing.assert_close(labels, torch.sigmoid(linear(last.amax(dim=(2, 3, 4)))))


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (None, lambda x: x),
        ("sigmoid", torch.sigmoid),
        ("softmax", lambda x: torch.softmax(x, 1)),
        ("softmax2d", lambda x: torch.softmax(x, 1)),
        ("logsoftmax", lambda x: torch.log_softmax(x, 1)),
        ("tanh", torch.tanh),
        ("argmax", lambda x: x.argmax(1)),
        ("clamp", lambda x: x.clamp(0, 1)),
        (torch.nn.Hardsigmoid, torch.nn.functional.hardsigmoid),
    ],
)
def test_activations(activation, expected) -> None:
    image = torch.randn(1, 1, 8, 8, 8)
    outputs = []
    for chosen in (None, activation):
        torch.manual_seed(0)
        model = create_model("Linknet", SMALLEST, None, 1, 3, encoder_depth=2, activation=chosen)
        randomise_normalisations(model)
        outputs.append(model.predict(image))
    torch.testing.assert_close(outputs[1], expected(outputs[0]))


# Weights


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_weight_is_drawn_once(name: str) -> None:
    assert draws_each_weight_once(lambda: create_model(name, SMALLEST, None, 1, aux_params={"classes": 2}))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_weight_that_is_used_learns(name: str) -> None:
    """A gradient reaches all of the decoder and the heads, and all of the encoder but its unused last layers."""
    model = create_model(name, SMALLEST, None, 1, 2, strides=SHALLOW).train()
    model(torch.randn(2, 1, *model.min_size)).mean().backward()
    without = {key for key, p in model.named_parameters() if p.grad is None}
    assert all(key.startswith("encoder.") for key in without)


# Inference from a checkpoint

ARGUMENTS: list[tuple[str, str, dict[str, Any]]] = [
    ("Unet", "resnet18", {"encoder_depth": 3, "decoder_channels": (24, 20, 16), "decoder_attention_type": "scse"}),
    ("Unet", "vgg11_bn", {"decoder_use_batchnorm": False}),
    ("Unet", "mit_b0", {"encoder_depth": 4, "decoder_channels": (40, 32, 24, 16)}),
    ("UnetPlusPlus", "resnet18", {"encoder_depth": 1, "decoder_channels": (24,)}),
    ("UnetPlusPlus", "vgg11", {"decoder_channels": (64, 48, 40, 32, 24), "decoder_attention_type": "scse"}),
    ("UnetPlusPlus", "dpn68", {"encoder_depth": 4, "decoder_channels": (9, 8, 7, 6), "decoder_use_batchnorm": False}),
    ("MAnet", "resnet18", {"encoder_depth": 3, "decoder_channels": (24, 20, 16), "decoder_pab_channels": 12}),
    ("MAnet", "mit_b0", {"decoder_use_batchnorm": False, "aux_params": {"classes": 7}}),
    ("Linknet", "resnet18", {"encoder_depth": 2, "decoder_use_batchnorm": False}),
    ("Linknet", "mobileone_s0", {"encoder_depth": 4, "aux_params": {"classes": 7}}),
    ("Unet", "resnet18", {"decoder_use_norm": "instancenorm"}),
    ("UnetPlusPlus", "resnet18", {"decoder_use_norm": "instancenorm"}),
    ("MAnet", "resnet18", {"decoder_use_norm": "instancenorm"}),
    ("Linknet", "resnet18", {"decoder_use_norm": "instancenorm"}),
    ("PSPNet", "resnet18", {"decoder_use_norm": "instancenorm"}),
    ("FPN", "resnet18", {"decoder_pyramid_channels": 24, "decoder_segmentation_channels": 64}),
    ("FPN", "vgg11", {"encoder_depth": 4, "decoder_merge_policy": "cat", "decoder_segmentation_channels": 32}),
    ("FPN", "densenet121", {"encoder_depth": 3, "aux_params": {"classes": 7}}),
    ("PSPNet", "resnet18", {"encoder_depth": 4, "psp_out_channels": 40}),
    ("PSPNet", "mit_b0", {"encoder_depth": 2, "psp_use_batchnorm": False, "aux_params": {"classes": 7}}),
    ("PAN", "resnet18", {"decoder_channels": 24}),
    ("DeepLabV3", "resnet18", {"encoder_depth": 4, "decoder_channels": 24}),
    ("DeepLabV3Plus", "efficientnet-b0", {"encoder_depth": 3, "decoder_channels": 24, "aux_params": {"classes": 7}}),
    ("UPerNet", "resnet18", {"encoder_depth": 3, "decoder_channels": 24}),
    ("UPerNet", "mit_b0", {"encoder_depth": 4, "decoder_use_norm": "identity"}),
    ("Segformer", "resnet18", {"encoder_depth": 4, "decoder_segmentation_channels": 24}),
    ("Segformer", "mit_b0", {"encoder_depth": 3, "aux_params": {"classes": 7}}),
]


@pytest.mark.parametrize(("name", "encoder", "arguments"), ARGUMENTS)
def test_tensors_show_the_arguments(name: str, encoder: str, arguments: dict[str, Any]) -> None:
    arguments = {**arguments, "in_channels": 2, "classes": 5}
    shapes = tensors(on_meta(name, encoder, **arguments))
    inferred = architecture_class(name).infer_arguments(shapes, encoder_spec(encoder))
    assert {key: inferred.get(key) for key in arguments} == arguments
    assert list(tensors(on_meta(name, encoder, **inferred)).items()) == list(shapes.items())


def test_every_argument_that_shows_has_a_case() -> None:
    """Every constructor argument is inferred in some case, except those that do not change the tensors."""
    unshown = {"encoder_name", "encoder_weights", "strides", "activation", "upsampling"}
    unshown |= {"decoder_dropout", "psp_dropout", "encoder_output_stride", "decoder_atrous_rates"}
    for name in ARCHITECTURES:
        shown = {"in_channels", "classes"}.union(*(arguments for case, _, arguments in ARGUMENTS if case == name))
        assert defaults(name).keys() - unshown - {"aux_params"} <= shown, name


@pytest.mark.parametrize(("name", "family"), VALID)
def test_tensors_of_the_defaults_show_nothing_else(name: str, family: str) -> None:
    shapes = tensors(of_defaults(name, family))
    inferred = architecture_class(name).infer_arguments(shapes, encoder_spec(FAMILIES[family]))
    assert inferred == {**{key: defaults(name)[key] for key in inferred}, "in_channels": 1}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_missing_or_odd_tensors_are_left_to_the_loader(name: str) -> None:
    shapes = tensors(on_meta(name, SMALLEST))
    infer = architecture_class(name).infer_arguments
    for key in shapes:
        infer({k: shape for k, shape in shapes.items() if k != key}, encoder_spec(SMALLEST))
        infer({**shapes, key: ()}, encoder_spec(SMALLEST))
    assert infer({}, encoder_spec(SMALLEST)) == {}


def test_an_ambiguous_depth_is_not_inferred() -> None:
    """VGG's last three maps have the same number of channels."""
    infer = architecture_class("PSPNet").infer_arguments
    shown = [
        infer(tensors(on_meta("PSPNet", "vgg11", encoder_depth=depth)), encoder_spec("vgg11")).get("encoder_depth")
        for depth in (1, 2, 3, 4, 5)
    ]
    assert shown == [1, 2, None, None, None]

"""Every encoder of the table: state-dict keys, feature maps, strides, and wrong arguments."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from families import FAMILIES, STRIDES, draws_each_weight_once
from reference import reference

from smp3d_export.encoders import ENCODERS, get_encoder, index
from smp3d_export.encoders.spec import product
from smp3d_export.errors import UsageError

REFERENCE = reference("encoder_state_dicts.json.gz")


@pytest.mark.parametrize("name", sorted(REFERENCE.keys() & ENCODERS.keys()))
def test_state_dict_is_the_published_one(name: str) -> None:
    expected = {key: tuple(shape) for key, shape in REFERENCE[name].items()}
    channels = next(iter(expected.values()))[1]
    with torch.device("meta"):
        encoder = get_encoder(name, in_channels=channels)
    assert list(expected.items()) == [(key, tuple(value.shape)) for key, value in encoder.state_dict().items()]


@pytest.mark.parametrize("spec", ENCODERS.values(), ids=lambda spec: spec.name)
def test_row_says_the_parameters(spec) -> None:
    with torch.device("meta"):
        encoder = get_encoder(spec.name, in_channels=1)
    assert sum(p.numel() for p in encoder.parameters()) == spec.parameters


@pytest.mark.parametrize("strides", STRIDES.values(), ids=STRIDES)
@pytest.mark.parametrize("name", FAMILIES.values())
def test_maps_have_the_channels_and_sizes_of_the_row(name: str, strides) -> None:
    encoder = get_encoder(name, in_channels=2, strides=strides).eval()
    with torch.no_grad():
        maps = encoder(torch.randn(1, 2, *encoder.min_size))
    sizes = [
        tuple(size // stride for size, stride in zip(encoder.min_size, product(strides[:stage]), strict=True))
        for stage in range(6)
    ]
    assert [tuple(m.shape[1:]) for m in maps] == [
        (c, *size) for c, size in zip(encoder.out_channels, sizes, strict=True)
    ]


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("name", FAMILIES.values())
def test_depth_runs_only_the_first_stages(name: str, depth: int) -> None:
    encoder = get_encoder(name, in_channels=1, depth=depth).eval()
    with torch.no_grad():
        maps = encoder(torch.randn(1, 1, *encoder.min_size))
    assert [m.shape[1] for m in maps] == list(encoder.out_channels)
    assert encoder.total_stride == (2**depth,) * 3


@pytest.mark.parametrize("name", FAMILIES.values())
def test_every_weight_is_drawn_once(name: str) -> None:
    assert draws_each_weight_once(lambda: get_encoder(name, in_channels=1))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": "resnet35"}, "there is no encoder 'resnet35'. Nearest: resnet"),
        ({"name": "timm-efficientnet-b0"}, "is a 2D network, which takes no volumes. The same network in 3D is effi"),
        (
            {"name": "timm-efficientnet-b8"},
            "Nearest: efficientnet-b7, efficientnet-b6. Models of timm_3d are called tu-N",
        ),
        ({"name": "timm-resnest50d"}, "Nearest: resnet50, se_resnet50. Models of timm_3d are called tu-NAME, with pip"),
        ({"name": "timm-regnetx_002"}, "which takes no volumes. Models of timm_3d are called tu-NAME, with pip"),
        ({"name": "resnet18", "depth": 6}, "encoder_depth is 6; it must be 1 to 5"),
        ({"name": "resnet18", "in_channels": 0}, "in_channels is 0"),
        ({"name": "resnet18", "strides": [(2, 2, 2)] * 4}, "strides has 4 triples"),
        ({"name": "resnet18", "strides": [(2, 2, 5)] * 5}, "stride (2, 2, 5) of stage 1"),
        ({"name": "resnet18", "strides": [(2, 2)] * 5}, "stride (2, 2) of stage 1"),
        ({"name": "resnet18", "output_stride": 4}, "encoder_output_stride is 4"),
    ],
)
def test_wrong_arguments_are_named(arguments, says: str) -> None:
    with pytest.raises(UsageError) as error:
        get_encoder(**arguments)
    assert says in str(error.value)


def test_a_name_can_be_in_the_table_only_once() -> None:
    row = next(iter(ENCODERS.values()))
    with pytest.raises(RuntimeError, match=row.name):
        index([row, replace(row)])

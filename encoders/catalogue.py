"""The table of encoders: a row each, and for each family a small class of columns. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from smp3d_export.encoders.spec import EncoderSpec


@dataclass(frozen=True, kw_only=True)
class ResNetSpec(EncoderSpec):
    """`layers` is the number of blocks in each of the four layers; `groups` and `width_per_group` are ResNeXt's."""

    layers: tuple[int, int, int, int]
    bottleneck: bool = True
    groups: int = 1
    width_per_group: int = 64

    family: ClassVar[str] = "resnet"
    implementation: ClassVar[str] = "resnet:ResNetEncoder"
    stem: ClassVar[str] = "conv1.weight"


BASIC = (64, 64, 128, 256, 512)
DEEP = (64, 256, 512, 1024, 2048)

# fmt: off
RESNET = (
    ResNetSpec(name="resnet18", channels=BASIC, parameters=33_160_000, layers=(2, 2, 2, 2), bottleneck=False),
    ResNetSpec(name="resnet34", channels=BASIC, parameters=63_469_632, layers=(3, 4, 6, 3), bottleneck=False),
    ResNetSpec(name="resnet50", channels=DEEP, parameters=46_155_072, layers=(3, 4, 6, 3)),
    ResNetSpec(name="resnet101", channels=DEEP, parameters=85_201_216, layers=(3, 4, 23, 3)),
    ResNetSpec(name="resnet152", channels=DEEP, parameters=117_359_936, layers=(3, 8, 36, 3)),
    ResNetSpec(name="resnext50_32x4d", channels=DEEP, parameters=25_821_760, layers=(3, 4, 6, 3), groups=32, width_per_group=4),
    ResNetSpec(name="resnext101_32x4d", channels=DEEP, parameters=47_477_312, layers=(3, 4, 23, 3), groups=32, width_per_group=4),
    ResNetSpec(name="resnext101_32x8d", channels=DEEP, parameters=108_099_136, layers=(3, 4, 23, 3), groups=32, width_per_group=8),
    ResNetSpec(name="resnext101_32x16d", channels=DEEP, parameters=277_367_360, layers=(3, 4, 23, 3), groups=32, width_per_group=16),
    ResNetSpec(name="resnext101_32x32d", channels=DEEP, parameters=808_002_112, layers=(3, 4, 23, 3), groups=32, width_per_group=32),
    ResNetSpec(name="resnext101_32x48d", channels=DEEP, parameters=1_594_767_936, layers=(3, 4, 23, 3), groups=32, width_per_group=48),
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class EfficientNetSpec(EncoderSpec):
    """`width` and `depth` scale B0's channels and repeats; `resolution` is the size it was designed for.

    `stage_ends` are the numbers of blocks behind which the last four feature maps are taken. (In B0 the fourth is taken
    within a group of blocks: that is how the published checkpoints of segmentation networks were trained.)
    """

    width: float
    depth: float
    resolution: int
    stage_ends: tuple[int, int, int, int]

    family: ClassVar[str] = "efficientnet"
    implementation: ClassVar[str] = "efficientnet:EfficientNetEncoder"
    stem: ClassVar[str] = "_conv_stem.weight"


# fmt: off
EFFICIENTNET = (
    EfficientNetSpec(name="efficientnet-b0", channels=(32, 24, 40, 112, 320), parameters=4_688_380, width=1.0, depth=1.0, resolution=224, stage_ends=(3, 5, 9, 16)),
    EfficientNetSpec(name="efficientnet-b1", channels=(32, 24, 40, 112, 320), parameters=7_446_496, width=1.0, depth=1.1, resolution=240, stage_ends=(5, 8, 16, 23)),
    EfficientNetSpec(name="efficientnet-b2", channels=(32, 24, 48, 120, 352), parameters=8_714_946, width=1.1, depth=1.2, resolution=260, stage_ends=(5, 8, 16, 23)),
    EfficientNetSpec(name="efficientnet-b3", channels=(40, 32, 48, 136, 384), parameters=12_058_472, width=1.2, depth=1.4, resolution=300, stage_ends=(5, 8, 18, 26)),
    EfficientNetSpec(name="efficientnet-b4", channels=(48, 32, 56, 160, 448), parameters=19_612_760, width=1.4, depth=1.8, resolution=380, stage_ends=(6, 10, 22, 32)),
    EfficientNetSpec(name="efficientnet-b5", channels=(48, 40, 64, 176, 512), parameters=31_048_464, width=1.6, depth=2.2, resolution=456, stage_ends=(8, 13, 27, 39)),
    EfficientNetSpec(name="efficientnet-b6", channels=(56, 40, 72, 200, 576), parameters=44_391_528, width=1.8, depth=2.6, resolution=528, stage_ends=(9, 15, 31, 45)),
    EfficientNetSpec(name="efficientnet-b7", channels=(64, 48, 80, 224, 640), parameters=68_758_992, width=2.0, depth=3.1, resolution=600, stage_ends=(11, 18, 38, 55)),
)
# fmt: on

SPECS: tuple[EncoderSpec, ...] = (*RESNET, *EFFICIENTNET)

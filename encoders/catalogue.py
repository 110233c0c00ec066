"""The table of encoders: one row per encoder, and one small class per family with its columns. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from smp3d_export.encoders.spec import EncoderSpec


@dataclass(frozen=True, kw_only=True)
class ResNetSpec(EncoderSpec):
    """`layers` is the number of blocks in each of the four layers; ResNeXt sets `groups` and `width_per_group`."""

    layers: tuple[int, int, int, int]
    bottleneck: bool = True
    groups: int = 1
    width_per_group: int = 64

    family: ClassVar[str] = "resnet"
    implementation: ClassVar[str] = "resnet:ResNetEncoder"
    stem: ClassVar[str] = "conv1.weight"
    classifier: ClassVar[tuple[str, ...]] = ("fc.",)


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
class SENetSpec(EncoderSpec):
    """`layers` is the number of blocks in each of the four layers.

    `widths` are the channels between a block's three convolutions, in multiples of the layer's planes. `groups` applies
    to the second convolution. `stride_first` puts the stride on the first convolution, as in Caffe's ResNet, instead of
    the second. `projection` is the kernel size of shortcuts that change the size. `deep_stem` makes the stem three 3³
    convolutions.
    """

    layers: tuple[int, int, int, int]
    widths: tuple[int, int] = (1, 1)
    groups: int = 1
    stride_first: bool = False
    projection: int = 1
    deep_stem: bool = False

    family: ClassVar[str] = "senet"
    implementation: ClassVar[str] = "senet:SENetEncoder"
    stem: ClassVar[str] = "layer0.conv1.weight"
    classifier: ClassVar[tuple[str, ...]] = ("last_linear.",)


# fmt: off
SENET = (
    SENetSpec(name="senet154", channels=(128, 256, 512, 1024, 2048), parameters=170_206_832, layers=(3, 8, 36, 3), widths=(2, 4), groups=64, projection=3, deep_stem=True),
    SENetSpec(name="se_resnet50", channels=DEEP, parameters=48_686_064, layers=(3, 4, 6, 3), stride_first=True),
    SENetSpec(name="se_resnet101", channels=DEEP, parameters=89_978_928, layers=(3, 4, 23, 3), stride_first=True),
    SENetSpec(name="se_resnet152", channels=DEEP, parameters=123_988_976, layers=(3, 8, 36, 3), stride_first=True),
    SENetSpec(name="se_resnext50_32x4d", channels=DEEP, parameters=28_352_752, layers=(3, 4, 6, 3), widths=(2, 2), groups=32),
    SENetSpec(name="se_resnext101_32x4d", channels=DEEP, parameters=52_255_024, layers=(3, 4, 23, 3), widths=(2, 2), groups=32),
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class DenseNetSpec(EncoderSpec):
    """`layers` is the number of layers in each of the four dense blocks; each layer adds `growth` channels."""

    layers: tuple[int, int, int, int]
    growth: int = 32

    family: ClassVar[str] = "densenet"
    implementation: ClassVar[str] = "densenet:DenseNetEncoder"
    stem: ClassVar[str] = "features.conv0.weight"
    classifier: ClassVar[tuple[str, ...]] = ("classifier.",)
    renames: ClassVar[tuple[tuple[str, str], ...]] = ((r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2"),)
    undilatable: ClassVar[str | None] = (
        "DenseNet downsamples by average pooling, which cannot be dilated in exchange for its stride"
    )


# fmt: off
DENSENET = (
    DenseNetSpec(name="densenet121", channels=(64, 256, 512, 1024, 1024), parameters=11_242_624, layers=(6, 12, 24, 16)),
    DenseNetSpec(name="densenet169", channels=(64, 256, 512, 1280, 1664), parameters=18_542_720, layers=(6, 12, 32, 32)),
    DenseNetSpec(name="densenet201", channels=(64, 256, 512, 1792, 1920), parameters=25_330_816, layers=(6, 12, 48, 32)),
    DenseNetSpec(name="densenet161", channels=(96, 384, 768, 2112, 2208), parameters=39_430_080, layers=(6, 12, 36, 24), growth=48),
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class EfficientNetSpec(EncoderSpec):
    """`width` and `depth` scale B0's channels and repeats; `resolution` is the image size it was designed for.

    `stage_ends` are the block numbers after which the last four feature maps are taken. (In B0 the fourth comes from
    the middle of a group of blocks, because the published segmentation checkpoints were trained that way.)
    """

    width: float
    depth: float
    resolution: int
    stage_ends: tuple[int, int, int, int]

    family: ClassVar[str] = "efficientnet"
    implementation: ClassVar[str] = "efficientnet:EfficientNetEncoder"
    stem: ClassVar[str] = "_conv_stem.weight"
    classifier: ClassVar[tuple[str, ...]] = ("_fc.",)


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


@dataclass(frozen=True, kw_only=True)
class DPNSpec(EncoderSpec):
    """`layers` is the number of blocks in each of the four groups; each block adds `growths` channels to the dense path.

    `base` is the width of the residual path in the first group, `width` the width between convolutions; both double
    with each group. `groups` applies to the 3³ convolutions. `split` gives each path its own last convolution.
    """

    layers: tuple[int, int, int, int]
    growths: tuple[int, int, int, int]
    width: int
    groups: int
    base: int = 256
    stem_kernel: int = 7
    split: bool = False

    family: ClassVar[str] = "dpn"
    implementation: ClassVar[str] = "dpn:DPNEncoder"
    stem: ClassVar[str] = "features.conv1_1.conv.weight"
    classifier: ClassVar[tuple[str, ...]] = ("last_linear.",)


# fmt: off
DPN = (
    DPNSpec(name="dpn68", channels=(10, 144, 320, 704, 832), parameters=15_492_650, layers=(3, 4, 12, 3), growths=(16, 32, 32, 64), width=128, groups=32, base=64, stem_kernel=3),
    DPNSpec(name="dpn68b", channels=(10, 144, 320, 704, 832), parameters=15_492_650, layers=(3, 4, 12, 3), growths=(16, 32, 32, 64), width=128, groups=32, base=64, stem_kernel=3, split=True),
    DPNSpec(name="dpn92", channels=(64, 336, 704, 1552, 2688), parameters=37_744_640, layers=(3, 4, 20, 3), growths=(16, 32, 24, 128), width=96, groups=32),
    DPNSpec(name="dpn98", channels=(96, 336, 768, 1728, 2688), parameters=65_109_824, layers=(3, 6, 20, 3), growths=(16, 32, 32, 128), width=160, groups=40),
    DPNSpec(name="dpn107", channels=(128, 376, 1152, 2432, 2688), parameters=92_145_088, layers=(4, 8, 20, 3), growths=(20, 64, 64, 128), width=200, groups=50),
    DPNSpec(name="dpn131", channels=(128, 352, 832, 1984, 2688), parameters=84_378_112, layers=(4, 8, 28, 3), growths=(16, 32, 32, 128), width=160, groups=40),
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class VGGSpec(EncoderSpec):
    """`layers` is the number of convolutions in each of the five groups."""

    layers: tuple[int, int, int, int, int]
    batchnorm: bool = False

    family: ClassVar[str] = "vgg"
    implementation: ClassVar[str] = "vgg:VGGEncoder"
    stem: ClassVar[str] = "features.0.weight"
    classifier: ClassVar[tuple[str, ...]] = ("classifier.",)
    unet_center: ClassVar[bool] = True
    undilatable: ClassVar[str | None] = (
        "VGG downsamples by max pooling, which cannot be dilated in exchange for its stride"
    )
    entry_channels: ClassVar[int | None] = 64


VGG_CHANNELS = (128, 256, 512, 512, 512)

# fmt: off
VGG = (
    VGGSpec(name="vgg11", channels=VGG_CHANNELS, parameters=27_652_480, layers=(1, 1, 2, 2, 2)),
    VGGSpec(name="vgg11_bn", channels=VGG_CHANNELS, parameters=27_657_984, layers=(1, 1, 2, 2, 2), batchnorm=True),
    VGGSpec(name="vgg13", channels=VGG_CHANNELS, parameters=28_205_632, layers=(2, 2, 2, 2, 2)),
    VGGSpec(name="vgg13_bn", channels=VGG_CHANNELS, parameters=28_211_520, layers=(2, 2, 2, 2, 2), batchnorm=True),
    VGGSpec(name="vgg16", channels=VGG_CHANNELS, parameters=44_132_160, layers=(2, 2, 3, 3, 3)),
    VGGSpec(name="vgg16_bn", channels=VGG_CHANNELS, parameters=44_140_608, layers=(2, 2, 3, 3, 3), batchnorm=True),
    VGGSpec(name="vgg19", channels=VGG_CHANNELS, parameters=60_058_688, layers=(2, 2, 4, 4, 4)),
    VGGSpec(name="vgg19_bn", channels=VGG_CHANNELS, parameters=60_069_696, layers=(2, 2, 4, 4, 4), batchnorm=True),
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class MixVisionTransformerSpec(EncoderSpec):
    """`layers` is the number of blocks in each of the last four stages; the first stage gives no feature map."""

    layers: tuple[int, int, int, int]

    family: ClassVar[str] = "mit"
    implementation: ClassVar[str] = "mit:MixVisionTransformerEncoder"
    stem: ClassVar[str] = "patch_embed1.proj.weight"
    classifier: ClassVar[tuple[str, ...]] = ("head.",)
    undilatable: ClassVar[str | None] = "the patch embeddings of a Mix Vision Transformer have no dilated form"


SMALL = (0, 32, 64, 160, 256)
LARGE = (0, 64, 128, 320, 512)

# fmt: off
MIT = (
    MixVisionTransformerSpec(name="mit_b0", channels=SMALL, parameters=5_873_376, layers=(2, 2, 2, 2)),
    MixVisionTransformerSpec(name="mit_b1", channels=LARGE, parameters=23_207_360, layers=(2, 2, 2, 2)),
    MixVisionTransformerSpec(name="mit_b2", channels=LARGE, parameters=39_450_560, layers=(3, 4, 6, 3)),
    MixVisionTransformerSpec(name="mit_b3", channels=LARGE, parameters=64_518_080, layers=(3, 4, 18, 3)),
    MixVisionTransformerSpec(name="mit_b4", channels=LARGE, parameters=88_364_992, layers=(3, 8, 27, 3)),
    MixVisionTransformerSpec(name="mit_b5", channels=LARGE, parameters=112_998_336, layers=(3, 6, 40, 3)),
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class MobileOneSpec(EncoderSpec):
    """`branches` is the number of parallel convolutions; `excited` adds squeeze-and-excitation to the last blocks."""

    branches: int = 1
    excited: bool = False

    family: ClassVar[str] = "mobileone"
    implementation: ClassVar[str] = "mobileone:MobileOneEncoder"
    stem: ClassVar[str] = "stage0.rbr_conv.0.conv.weight"
    further_stems: ClassVar[tuple[str, ...]] = ("stage0.rbr_scale.conv.weight",)
    classifier: ClassVar[tuple[str, ...]] = ("linear.",)


# fmt: off
MOBILEONE = (
    MobileOneSpec(name="mobileone_s0", channels=(48, 48, 128, 256, 1024), parameters=4_536_592, branches=4),
    MobileOneSpec(name="mobileone_s1", channels=(64, 96, 192, 512, 1280), parameters=3_668_480),
    MobileOneSpec(name="mobileone_s2", channels=(64, 96, 256, 640, 2048), parameters=5_992_192),
    MobileOneSpec(name="mobileone_s3", channels=(64, 128, 320, 768, 2048), parameters=8_311_552),
    MobileOneSpec(name="mobileone_s4", channels=(64, 192, 448, 896, 2048), parameters=13_135_976, excited=True),
)
# fmt: on

SPECS: tuple[EncoderSpec, ...] = (*RESNET, *SENET, *DENSENET, *EFFICIENTNET, *DPN, *VGG, *MIT, *MOBILEONE)

"""Networks of other libraries: MONAI's, and nnU-Net's as its default plans make them, with few features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from common import CLASSES
from torch import nn

Volume = tuple[int, int, int]
CUBE: Volume = (64, 64, 64)
FLAT: Volume = (16, 64, 64)


@dataclass(frozen=True)
class Foreign:
    """A network, and the volume that it is exported at.

    Attributes:
        build: makes it, with one input channel.
        largest: the largest volume it is compared at; None if it takes one size only.
        why: why not every axis is dynamic.
    """

    build: Callable[[], nn.Module]
    volume: Volume = CUBE
    largest: Volume | None = (96, 96, 96)
    why: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, 1, *self.volume)

    @property
    def max(self) -> tuple[int, ...] | None:
        return None if self.largest is None else (2, 1, *self.largest)


def monai(name: str, *args: Any, **options: Any) -> Callable[[], nn.Module]:
    """Makes a network of `monai.networks.nets`."""

    def build() -> nn.Module:
        from monai.networks import nets

        return getattr(nets, name)(*args, **options)

    return build


# nnU-Net's planner halves an axis until about 4 voxels are left, and a coarse one only once its spacing is no longer
# coarser than the others'. Until then kernels have size 1 along it.
FULLRES = {
    "kernel_sizes": [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]],
}
LOWRES = {"kernel_sizes": [[3, 3, 3]] * 5, "strides": [[1, 1, 1], *[[2, 2, 2]] * 4]}


def nnunet(name: str, axes: Mapping[str, Any], **blocks: Any) -> Callable[[], nn.Module]:
    """Makes a network of `dynamic_network_architectures` as in the plans, with a quarter of the features."""

    def build() -> nn.Module:
        from dynamic_network_architectures.architectures import unet

        return getattr(unet, name)(
            input_channels=1,
            num_classes=CLASSES,
            n_stages=5,
            features_per_stage=[8, 16, 32, 64, 80],
            conv_op=nn.Conv3d,
            conv_bias=True,
            norm_op=nn.InstanceNorm3d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
            deep_supervision=False,
            **axes,
            **blocks,
        )

    return build


PLAIN = {"n_conv_per_stage": [2] * 5, "n_conv_per_stage_decoder": [2] * 4}
RESIDUAL = {"n_blocks_per_stage": [1, 3, 4, 6, 6], "n_conv_per_stage_decoder": [1] * 4}

NETWORKS: dict[str, Foreign] = {
    "UNet": Foreign(monai("UNet", 3, 1, CLASSES, (8, 16, 32, 64), (2, 2, 2), num_res_units=2)),
    "BasicUNet": Foreign(monai("BasicUNet", 3, 1, CLASSES, features=(8, 8, 16, 32, 64, 8))),
    "AttentionUnet": Foreign(monai("AttentionUnet", 3, 1, CLASSES, (8, 16, 32), (2, 2))),
    "VNet": Foreign(monai("VNet", 3, 1, CLASSES)),
    "SegResNet": Foreign(monai("SegResNet", 3, 8, 1, CLASSES)),
    "SegResNetDS": Foreign(monai("SegResNetDS", 3, 8, 1, CLASSES, dsdepth=2)),
    "DynUNet": Foreign(
        monai("DynUNet", 3, 1, CLASSES, [3] * 4, [1, 2, 2, 2], [2, 2, 2], filters=[8, 16, 32, 64], res_block=True)
    ),
    "HighResNet": Foreign(monai("HighResNet", 3, 1, CLASSES), volume=(32, 32, 32), largest=(48, 48, 48)),
    "SwinUNETR": Foreign(monai("SwinUNETR", 1, CLASSES, feature_size=12)),
    "UNETR": Foreign(
        monai("UNETR", 1, CLASSES, CUBE, feature_size=8, hidden_size=96, mlp_dim=192, num_heads=4),
        largest=None,
        why="it has a position embedding of one size",
    ),
    "FlexUNet": Foreign(monai("FlexUNet", 1, CLASSES, "efficientnet-b0", spatial_dims=3)),
    "PlainConvUNet 3d_fullres": Foreign(nnunet("PlainConvUNet", FULLRES, **PLAIN), FLAT, (24, 96, 96)),
    "PlainConvUNet 3d_lowres": Foreign(nnunet("PlainConvUNet", LOWRES, **PLAIN)),
    "ResidualEncoderUNet 3d_fullres": Foreign(nnunet("ResidualEncoderUNet", FULLRES, **RESIDUAL), FLAT, (24, 96, 96)),
    "ResidualEncoderUNet 3d_lowres": Foreign(nnunet("ResidualEncoderUNet", LOWRES, **RESIDUAL)),
}

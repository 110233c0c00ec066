"""The table of architectures, and the encoders that each refuses. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smp3d_export.encoders.spec import STAGES, EncoderSpec


@dataclass(frozen=True, kw_only=True)
class ArchitectureSpec:
    """One architecture: its class, the module that holds it, the paper, and what it needs from an encoder."""

    name: str
    module: str
    paper: str
    arguments: Mapping[str, Any]
    """Constructor arguments (with defaults) that other architectures lack or have with another default."""
    dilated: bool = False
    """Dilates the encoder's last stages."""
    undilated_stride: int | None = None
    """The `encoder_output_stride` at which nothing is dilated, if it takes one."""
    every_stage: bool = False
    """Needs a feature map from every stage."""
    last_maps: int = 1
    """How many of the last feature maps it needs."""

    def refusal(self, encoder: EncoderSpec, depth: int = STAGES) -> str | None:
        """Why this architecture cannot use an encoder; None if it can, with the arguments of `needs`."""
        if self.dilated and encoder.undilatable and self.undilated_stride is None:
            return f"{self.name} dilates the encoder's last stages, and {encoder.undilatable}"
        if self.every_stage and not encoder.has_first_map:
            return f"{self.name} needs a feature map from every stage, and {encoder.name} has none from the first"
        if depth <= self.last_maps and not encoder.has_first_map:
            maps = f"the last {self.last_maps} feature maps" if self.last_maps > 1 else "the last feature map"
            return (
                f"encoder_depth is {depth}, {self.name} needs {maps}, and {encoder.name} has none from the first "
                f"stage: use an encoder_depth of at least {self.last_maps + 1}"
            )
        return None

    def needs(self, encoder: EncoderSpec) -> dict[str, int]:
        """Arguments, other than the defaults, that this architecture needs to use an encoder."""
        if self.dilated and encoder.undilatable and self.undilated_stride is not None:
            return {"encoder_output_stride": self.undilated_stride}
        return {}


NORM = {"decoder_use_norm": "batchnorm"}
UNET = {"decoder_use_batchnorm": True, "decoder_channels": (256, 128, 64, 32, 16)} | NORM
ATTENTION = {"decoder_attention_type": None}

SPECS = (
    ArchitectureSpec(name="Unet", module="unet", paper="arXiv:1505.04597", arguments=UNET | ATTENTION),
    ArchitectureSpec(
        name="UnetPlusPlus",
        module="unetplusplus",
        paper="arXiv:1807.10165",
        arguments=UNET | ATTENTION,
        every_stage=True,
    ),
    ArchitectureSpec(
        name="MAnet",
        module="manet",
        paper="doi:10.1109/ACCESS.2020.3025372",
        arguments=UNET | {"decoder_pab_channels": 64},
    ),
    ArchitectureSpec(
        name="Linknet",
        module="linknet",
        paper="arXiv:1707.03718",
        arguments={"decoder_use_batchnorm": True} | NORM,
        every_stage=True,
    ),
    ArchitectureSpec(
        name="FPN",
        module="fpn",
        paper="arXiv:1901.02446",
        arguments={
            "decoder_pyramid_channels": 256,
            "decoder_segmentation_channels": 128,
            "decoder_merge_policy": "add",
            "decoder_dropout": 0.2,
        },
        last_maps=4,
    ),
    ArchitectureSpec(
        name="PSPNet",
        module="pspnet",
        paper="arXiv:1612.01105",
        arguments={"encoder_depth": 3, "psp_out_channels": 512, "psp_use_batchnorm": True, "psp_dropout": 0.2} | NORM,
    ),
    ArchitectureSpec(
        name="PAN",
        module="pan",
        paper="arXiv:1805.10180",
        arguments={"encoder_output_stride": 16, "decoder_channels": 32},
        dilated=True,
        undilated_stride=32,
    ),
    ArchitectureSpec(
        name="DeepLabV3",
        module="deeplabv3",
        paper="arXiv:1706.05587",
        arguments={"decoder_channels": 256},
        dilated=True,
    ),
    ArchitectureSpec(
        name="DeepLabV3Plus",
        module="deeplabv3",
        paper="arXiv:1802.02611",
        arguments={"encoder_output_stride": 16, "decoder_channels": 256, "decoder_atrous_rates": (12, 24, 36)},
        dilated=True,
    ),
    ArchitectureSpec(
        name="UPerNet",
        module="upernet",
        paper="arXiv:1807.10221",
        arguments={"decoder_channels": 256} | NORM,
    ),
    ArchitectureSpec(
        name="Segformer", module="segformer", paper="arXiv:2105.15203", arguments={"decoder_segmentation_channels": 256}
    ),
)

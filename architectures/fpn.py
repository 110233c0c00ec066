"""Feature pyramid network for segmentation in 3D (Kirillov et al., arXiv:1901.02446), on any encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from smp3d_export.architectures.base import SegmentationModel, Shapes, classification_head, encoder_for, infer_depth
from smp3d_export.architectures.heads import SegmentationHead, UpsamplingArgument, as_upsampling
from smp3d_export.architectures.layers import ActivationArgument, upsample
from smp3d_export.architectures.normalisation import GroupNorm
from smp3d_export.encoders.base import Encoder
from smp3d_export.encoders.spec import DEFAULT_STRIDES, EncoderSpec, Strides, Triple, product
from smp3d_export.errors import UsageError, unknown

NORM_GROUPS = 32


class FPN(SegmentationModel):
    """A pyramid of the last four feature maps, resized to the finest of them and merged.

    Args:
        encoder_name: an encoder from `smp3d-export list encoders`.
        encoder_depth: how many of the encoder's five stages run, 3 to 5. At 3 the input is the finest map.
        encoder_weights: name of published weights, or None for random weights.
        decoder_pyramid_channels: C of the pyramid's maps.
        decoder_segmentation_channels: C of the maps that are merged, a multiple of 32.
        decoder_merge_policy: `add` or `cat`.
        decoder_dropout: probability of dropping a channel of the merged map during training.
        in_channels: C of the input.
        classes: channels of the masks.
        activation: activation of the masks: a name, a callable that returns a module, or None for logits.
        upsampling: upsampling factor of the masks, one number or an (H, W, D) triple; by default the masks get the
            input's size (4 with five default strides).
        aux_params: adds a classification head on the last feature map (`classes`, `pooling`, `dropout`, `activation`).
        strides: one (H, W, D) triple per stage.

    Raises:
        UsageError: the arguments do not fit together.
    """

    def __init__(
        self,
        encoder_name: str = "resnet34",
        encoder_depth: int = 5,
        encoder_weights: str | None = "imagenet",
        decoder_pyramid_channels: int = 256,
        decoder_segmentation_channels: int = 128,
        decoder_merge_policy: str = "add",
        decoder_dropout: float = 0.2,
        in_channels: int = 3,
        classes: int = 1,
        activation: ActivationArgument = None,
        upsampling: UpsamplingArgument = None,
        aux_params: Mapping[str, Any] | None = None,
        strides: Sequence[Sequence[int]] = DEFAULT_STRIDES,
    ) -> None:
        super().__init__()
        if encoder_depth < 3:
            raise UsageError(f"encoder_depth is {encoder_depth}, but FPN reads four feature maps: use 3, 4 or 5")
        self.encoder = encoder_for(
            self,
            encoder_name,
            in_channels=in_channels,
            depth=encoder_depth,
            weights=encoder_weights,
            strides=strides,
        )
        self.decoder = FPNDecoder(
            self.encoder,
            decoder_pyramid_channels,
            decoder_segmentation_channels,
            policy=decoder_merge_policy,
            dropout=decoder_dropout,
        )
        self.segmentation_head = SegmentationHead(
            self.decoder.out_channels,
            classes,
            kernel=1,
            activation=activation,
            upsampling=as_upsampling(upsampling, product(self.encoder.strides[:-3])),
        )
        self.classification_head = classification_head(self.encoder.out_channels[-1], aux_params)
        self.name = f"fpn-{encoder_name}"

    @classmethod
    def infer_decoder(cls, shapes: Shapes, encoder: EncoderSpec) -> dict[str, Any]:
        maps = [shapes[f"decoder.{key}.weight"] for key in ("p3.skip_conv", "p4.skip_conv", "p5")]
        segmentation = shapes["decoder.seg_blocks.0.block.0.block.0.weight"][0]
        merged = shapes["segmentation_head.0.weight"][1]
        return {
            "decoder_pyramid_channels": maps[-1][0],
            "decoder_segmentation_channels": segmentation,
            "decoder_merge_policy": "add" if merged == segmentation else "cat",
            **infer_depth(encoder, *(weight[1] for weight in maps)),
        }


class FPNDecoder(nn.Module):
    """The pyramid from the coarsest map, a segmentation block per level, and their sum or concatenation."""

    def __init__(self, encoder: Encoder, pyramid: int, segmentation: int, *, policy: str, dropout: float) -> None:
        super().__init__()
        if policy not in ("add", "cat"):
            raise unknown("decoder_merge_policy", policy, ["add", "cat"], "add, cat")
        if segmentation < 1 or segmentation % NORM_GROUPS:
            raise UsageError(
                f"decoder_segmentation_channels is {segmentation}, but FPN normalises them in {NORM_GROUPS} groups: "
                f"use a multiple of {NORM_GROUPS}"
            )
        self.policy = policy
        self.out_channels = segmentation if policy == "add" else segmentation * 4
        c2, c3, c4, c5 = encoder.out_channels[-4:]
        s3, s4, s5 = encoder.strides[-3:]
        self.p5 = nn.Conv3d(c5, pyramid, 1)
        self.p4 = PyramidBlock(pyramid, c4, s5)
        self.p3 = PyramidBlock(pyramid, c3, s4)
        self.p2 = PyramidBlock(pyramid, c2, s3)
        self.seg_blocks = nn.ModuleList(
            SegmentationBlock(pyramid, segmentation, strides) for strides in ((s5, s4, s3), (s4, s3), (s3,), ())
        )
        self.dropout = nn.Dropout3d(dropout, inplace=True)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The encoder's feature maps to one map, as large as the fourth last."""
        c2, c3, c4, c5 = features[-4:]
        p5 = self.p5(c5)
        p4 = self.p4(p5, c4)
        p3 = self.p3(p4, c3)
        p2 = self.p2(p3, c2)
        maps = [block(p) for block, p in zip(self.seg_blocks, (p5, p4, p3, p2), strict=True)]
        return self.dropout(torch.cat(maps, dim=1) if self.policy == "cat" else sum(maps[1:], start=maps[0]))


class PyramidBlock(nn.Module):
    """Nearest upsampling of the coarser level by its stride, plus a projection of the encoder's map."""

    def __init__(self, channels: int, skip: int, stride: Triple) -> None:
        super().__init__()
        self.stride = stride
        self.skip_conv = nn.Conv3d(skip, channels, 1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return upsample(x, self.stride) + self.skip_conv(skip)


class SegmentationBlock(nn.Module):
    """Brings a pyramid level to the finest size with one convolution and one upsampling per stride."""

    def __init__(self, inputs: int, outputs: int, strides: Strides) -> None:
        super().__init__()
        self.block = nn.Sequential()
        for stride in strides or ((1, 1, 1),):
            self.block.append(GroupNormBlock(inputs, outputs, stride))
            inputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class GroupNormBlock(nn.Module):
    """Convolution, group normalisation, ReLU, and trilinear upsampling with aligned corners."""

    def __init__(self, inputs: int, outputs: int, stride: Triple) -> None:
        super().__init__()
        self.stride = stride
        self.block = nn.Sequential(
            nn.Conv3d(inputs, outputs, 3, padding=1, bias=False),
            GroupNorm(NORM_GROUPS, outputs),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return upsample(self.block(x), self.stride, mode="trilinear", align_corners=True)

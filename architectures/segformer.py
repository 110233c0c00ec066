"""Segformer's decoder in 3D (Xie et al., arXiv:2105.15203), on any encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smp3d_export.architectures.base import SegmentationModel, Shapes, classification_head, encoder_for
from smp3d_export.architectures.heads import SegmentationHead, UpsamplingArgument, as_upsampling
from smp3d_export.architectures.layers import ActivationArgument, ConvBlock, upsample
from smp3d_export.encoders.base import Encoder
from smp3d_export.encoders.spec import DEFAULT_STRIDES, EncoderSpec, product
from smp3d_export.errors import UsageError

TARGET = 2
"""All feature maps are resized to this one: the second stage's, at a quarter of the input's size."""


class Segformer(SegmentationModel):
    """A linear layer per feature map, resizing to a common size, and a 1³ convolution over all.

    Args:
        encoder_name: an encoder from `smp3d-export list encoders`.
        encoder_depth: how many of the encoder's five stages run, at least 3.
        encoder_weights: name of published weights, or None for random weights.
        decoder_segmentation_channels: C of the decoder's maps.
        in_channels: C of the input.
        classes: channels of the masks.
        activation: activation of the masks: a name, a callable that returns a module, or None for logits.
        upsampling: upsampling factor of the masks, one number or an (H, W, D) triple; by default the masks get the
            input's size (4 with default strides).
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
        decoder_segmentation_channels: int = 256,
        in_channels: int = 3,
        classes: int = 1,
        activation: ActivationArgument = None,
        upsampling: UpsamplingArgument = None,
        aux_params: Mapping[str, Any] | None = None,
        strides: Sequence[Sequence[int]] = DEFAULT_STRIDES,
    ) -> None:
        super().__init__()
        if encoder_depth <= TARGET:
            raise UsageError(f"encoder_depth is {encoder_depth}; Segformer takes {TARGET + 1} to 5")
        self.encoder = encoder_for(
            self,
            encoder_name,
            in_channels=in_channels,
            depth=encoder_depth,
            weights=encoder_weights,
            strides=strides,
        )
        self.decoder = SegformerDecoder(self.encoder, decoder_segmentation_channels)
        self.segmentation_head = SegmentationHead(
            decoder_segmentation_channels,
            classes,
            kernel=1,
            activation=activation,
            upsampling=as_upsampling(upsampling, product(self.encoder.strides[:TARGET])),
        )
        self.classification_head = classification_head(self.encoder.out_channels[-1], aux_params)
        self.name = f"segformer-{encoder_name}"

    @classmethod
    def infer_decoder(cls, shapes: Shapes, encoder: EncoderSpec) -> dict[str, Any]:
        channels = shapes["decoder.mlp_stage.0.linear.weight"][0]
        maps = sum(key.startswith("decoder.mlp_stage.") and key.endswith(".weight") for key in shapes)
        return {
            "encoder_depth": maps if encoder.has_first_map else maps + 1,
            "decoder_segmentation_channels": channels,
        }


class SegformerDecoder(nn.Module):
    """Every stage's map, coarsest first, is projected and resized to the second stage's; then all are fused."""

    def __init__(self, encoder: Encoder, channels: int) -> None:
        super().__init__()
        self.strides = encoder.strides
        # A Mix Vision Transformer has no map from the first stage.
        self.maps = tuple(i for i in range(encoder.depth, 0, -1) if encoder.out_channels[i])
        self.mlp_stage = nn.ModuleList(Projection(encoder.out_channels[i], channels) for i in self.maps)
        self.fuse_stage = ConvBlock(len(self.maps) * channels, channels, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The encoder's feature maps to one map of the second stage's size."""
        resized = []
        for i, project in zip(self.maps, self.mlp_stage, strict=True):
            if i < TARGET:
                # Interpolation and projection commute, so the finest map shrinks before it gets more channels.
                x = F.interpolate(features[i], size=features[TARGET].shape[2:], mode="trilinear", align_corners=False)
                resized.append(project(x))
            else:
                x = project(features[i])
                resized.append(upsample(x, product(self.strides[TARGET:i]), "trilinear", False))
        return self.fuse_stage(torch.cat(resized, dim=1))


class Projection(nn.Module):
    """A linear layer applied to every voxel, (N, inputs, H, W, D) to (N, outputs, H, W, D)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.movedim(1, -1)).movedim(-1, 1)

"""MA-Net in 3D (Fan et al., 2020, doi:10.1109/ACCESS.2020.3025372), on any encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from smp3d_export.architectures.base import SegmentationModel, Shapes, classification_head, encoder_for
from smp3d_export.architectures.heads import SegmentationHead
from smp3d_export.architectures.layers import (
    ActivationArgument,
    ConvBlock,
    DecoderBlock,
    check_decoder_channels,
    infer_blocks,
    upsample,
)
from smp3d_export.encoders.base import Encoder
from smp3d_export.encoders.spec import DEFAULT_STRIDES, EncoderSpec, Triple
from smp3d_export.errors import UsageError


class MAnet(SegmentationModel):
    """A Unet with attention between the voxels of the last feature map, and over the channels of each skip.

    The attention between voxels holds a matrix of the square of their number: large volumes, or strides that leave the
    last feature map large, cost memory by its sixth power.

    Args:
        encoder_name: a row of `smp3d-export list encoders`.
        encoder_depth: how many of the encoder's five stages run.
        encoder_weights: name of published weights, or None for random ones.
        decoder_use_batchnorm: batch normalisation in the decoder; without, its convolutions have a bias.
        decoder_channels: of the decoder's blocks, coarsest first; one for each stage.
        decoder_pab_channels: in which the attention between voxels compares them.
        in_channels: C of the input.
        classes: channels of the masks.
        activation: of the masks: a name, a callable that makes a module, or None for logits.
        aux_params: of a classification head on the last feature map (`classes`, `pooling`, `dropout`, `activation`).
        strides: of the stages, a triple for H, W and D each.

    Raises:
        UsageError: arguments that do not go together.
    """

    def __init__(
        self,
        encoder_name: str = "resnet34",
        encoder_depth: int = 5,
        encoder_weights: str | None = "imagenet",
        decoder_use_batchnorm: bool = True,
        decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
        decoder_pab_channels: int = 64,
        in_channels: int = 3,
        classes: int = 1,
        activation: ActivationArgument = None,
        aux_params: Mapping[str, Any] | None = None,
        strides: Sequence[Sequence[int]] = DEFAULT_STRIDES,
    ) -> None:
        super().__init__()
        self.encoder = encoder_for(
            self,
            encoder_name,
            in_channels=in_channels,
            depth=encoder_depth,
            weights=encoder_weights,
            strides=strides,
        )
        self.decoder = MAnetDecoder(
            self.encoder, decoder_channels, batchnorm=decoder_use_batchnorm, pab_channels=decoder_pab_channels
        )
        self.segmentation_head = SegmentationHead(decoder_channels[-1], classes, activation=activation)
        self.classification_head = classification_head(self.encoder.out_channels[-1], aux_params)
        self.name = f"manet-{encoder_name}"

    @classmethod
    def infer_decoder(cls, shapes: Shapes, encoder: EncoderSpec) -> dict[str, Any]:
        compared = shapes["decoder.center.top_conv.weight"][0]
        return infer_blocks(shapes, "decoder.blocks.") | {"decoder_pab_channels": compared}


class MAnetDecoder(nn.Module):
    """Position attention, then a fusion block per stage with a skip, and a plain one for the others."""

    def __init__(
        self, encoder: Encoder, decoder_channels: Sequence[int], *, batchnorm: bool, pab_channels: int
    ) -> None:
        super().__init__()
        check_decoder_channels(decoder_channels, encoder.depth)
        if pab_channels < 1:
            raise UsageError(f"decoder_pab_channels is {pab_channels}; it must be at least 1")
        inputs, *skips = reversed(encoder.out_channels[1:])
        self.center = PositionAttention(inputs, pab_channels)
        self.blocks = nn.ModuleList()
        for skip, outputs, stride in zip([*skips, 0], decoder_channels, reversed(encoder.strides), strict=True):
            block = FusionBlock if skip else DecoderBlock
            self.blocks.append(block(inputs, skip, outputs, stride, batchnorm=batchnorm))
            inputs = outputs

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The encoder's feature maps to one of the input's size."""
        head, *skips = reversed(features[1:])
        x = self.center(head)
        for block, skip in zip(self.blocks, skips, strict=False):
            x = block(x, skip)
        return self.blocks[-1](x)


class PositionAttention(nn.Module):
    """Adds to every voxel a mixture of all of them, weighted by how alike they are; one softmax over all pairs."""

    def __init__(self, channels: int, compared: int) -> None:
        super().__init__()
        self.top_conv = nn.Conv3d(channels, compared, 1)
        self.center_conv = nn.Conv3d(channels, compared, 1)
        self.bottom_conv = nn.Conv3d(channels, channels, 3, padding=1)
        self.out_conv = nn.Conv3d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        keys = self.top_conv(x).flatten(2)
        queries = self.center_conv(x).flatten(2).transpose(1, 2)
        values = self.bottom_conv(x).flatten(2).transpose(1, 2)
        alike = queries @ keys  # (N, voxels, voxels)
        weights = alike.flatten(1).softmax(dim=1).reshape(alike.shape)
        # (N, voxels, C) is read as (N, C, H, W, D) without exchanging the axes: so were the published weights trained.
        mixture = (weights @ values).reshape(x.shape)
        return self.out_conv(x + mixture)


class FusionBlock(nn.Module):
    """Channel attention from the coarse map and the skip together, concatenation with the skip, two convolutions."""

    def __init__(self, inputs: int, skip: int, outputs: int, stride: Triple, *, batchnorm: bool) -> None:
        super().__init__()
        self.stride = stride
        self.hl_conv = nn.Sequential(
            ConvBlock(inputs, inputs, batchnorm=batchnorm), ConvBlock(inputs, skip, 1, batchnorm=batchnorm)
        )
        self.SE_ll = channel_attention(skip)
        self.SE_hl = channel_attention(skip)
        self.conv1 = ConvBlock(2 * skip, outputs, batchnorm=batchnorm)
        self.conv2 = ConvBlock(outputs, outputs, batchnorm=batchnorm)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.hl_conv(x)
        # Nearest upsampling changes neither the mean of a channel nor what a factor on it does, so both come first.
        x = upsample(x * (self.SE_hl(x) + self.SE_ll(skip)), self.stride)
        return self.conv2(self.conv1(torch.cat([x, skip], dim=1)))


def channel_attention(channels: int, reduction: int = 16) -> nn.Sequential:
    """(N, C, H, W, D) to a factor for each channel, (N, C, 1, 1, 1) (squeeze and excitation, arXiv:1709.01507)."""
    squeezed = max(1, channels // reduction)
    return nn.Sequential(
        nn.AdaptiveAvgPool3d(1),
        nn.Conv3d(channels, squeezed, 1),
        nn.ReLU(inplace=True),
        nn.Conv3d(squeezed, channels, 1),
        nn.Sigmoid(),
    )

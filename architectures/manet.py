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
from smp3d_export.architectures.normalisation import Norm, NormArgument, infer_norm, norm_of
from smp3d_export.encoders.base import Encoder
from smp3d_export.encoders.spec import DEFAULT_STRIDES, EncoderSpec, Triple
from smp3d_export.errors import UsageError


class MAnet(SegmentationModel):
    """A Unet with attention between the voxels of the last feature map, and over the channels of each skip.

    The attention matrix has as many elements as the square of the number of voxels. So memory grows with the sixth
    power of the side of the last feature map: avoid large volumes, and strides that leave that map large.

    Args:
        encoder_name: an encoder from `smp3d-export list encoders`.
        encoder_depth: how many of the encoder's five stages run.
        encoder_weights: name of published weights, or None for random weights.
        decoder_use_batchnorm: batch normalisation in the decoder; without it, the convolutions have a bias.
        decoder_channels: output channels of the decoder blocks, coarsest first, one per stage.
        decoder_pab_channels: C of the keys and queries in the attention between voxels.
        in_channels: C of the input.
        classes: channels of the masks.
        activation: activation of the masks: a name, a callable that returns a module, or None for logits.
        aux_params: adds a classification head on the last feature map (`classes`, `pooling`, `dropout`, `activation`).
        strides: one (H, W, D) triple per stage.
        decoder_use_norm: normalisation after the decoder's convolutions: `batchnorm` or True, `groupnorm`,
            `instancenorm`, `layernorm`, `identity` or False; or a mapping with one of these names as `type` and further
            arguments of the layer.

    Raises:
        UsageError: the arguments do not fit together.
    """

    norm_block = "decoder.blocks.0.conv1"

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
        decoder_use_norm: NormArgument = "batchnorm",
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
        norm = norm_of(decoder_use_norm, decoder_use_batchnorm)
        self.normalises(norm, encoder_depth)
        self.decoder = MAnetDecoder(
            self.encoder,
            decoder_channels,
            norm=norm,
            pab_channels=decoder_pab_channels,
        )
        self.segmentation_head = SegmentationHead(decoder_channels[-1], classes, activation=activation)
        self.classification_head = classification_head(self.encoder.out_channels[-1], aux_params)
        self.name = f"manet-{encoder_name}"

    @classmethod
    def infer_decoder(cls, shapes: Shapes, encoder: EncoderSpec) -> dict[str, Any]:
        compared = shapes["decoder.center.top_conv.weight"][0]
        blocks = infer_blocks(shapes, "decoder.blocks.") | {"decoder_pab_channels": compared}
        return blocks | infer_norm(shapes, cls.norm_block, "decoder_use_batchnorm")


class MAnetDecoder(nn.Module):
    """Position attention, then one block per stage: a fusion block with a skip, a plain block without."""

    def __init__(self, encoder: Encoder, decoder_channels: Sequence[int], *, norm: Norm, pab_channels: int) -> None:
        super().__init__()
        check_decoder_channels(decoder_channels, encoder.depth)
        if pab_channels < 1:
            raise UsageError(f"decoder_pab_channels is {pab_channels}; it must be at least 1")
        inputs, *skips = reversed(encoder.out_channels[1:])
        self.center = PositionAttention(inputs, pab_channels)
        self.blocks = nn.ModuleList()
        for skip, outputs, stride in zip([*skips, 0], decoder_channels, reversed(encoder.strides), strict=True):
            block = FusionBlock if skip else DecoderBlock
            self.blocks.append(block(inputs, skip, outputs, stride, norm=norm))
            inputs = outputs

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The encoder's feature maps to one map of the input's size."""
        head, *skips = reversed(features[1:])
        x = self.center(head)
        for block, skip in zip(self.blocks, skips, strict=False):
            x = block(x, skip)
        return self.blocks[-1](x)


class PositionAttention(nn.Module):
    """Adds to every voxel a mean of all voxels, weighted by similarity; one softmax over all pairs."""

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
        similarity = queries @ keys  # (N, voxels, voxels)
        weights = similarity.flatten(1).softmax(dim=1).reshape(similarity.shape)
        # (N, voxels, C) is reshaped to (N, C, H, W, D) without a transpose; the published weights need that.
        mixture = (weights @ values).reshape(x.shape)
        return self.out_conv(x + mixture)


class FusionBlock(nn.Module):
    """Channel attention from the coarse map and the skip, concatenation with the skip, two convolutions."""

    def __init__(self, inputs: int, skip: int, outputs: int, stride: Triple, *, norm: Norm) -> None:
        super().__init__()
        self.stride = stride
        self.hl_conv = nn.Sequential(ConvBlock(inputs, inputs, norm=norm), ConvBlock(inputs, skip, 1, norm=norm))
        self.SE_ll = channel_attention(skip)
        self.SE_hl = channel_attention(skip)
        self.conv1 = ConvBlock(2 * skip, outputs, norm=norm)
        self.conv2 = ConvBlock(outputs, outputs, norm=norm)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.hl_conv(x)
        # Nearest upsampling keeps channel means and commutes with channel factors, so both come first, on fewer voxels.
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

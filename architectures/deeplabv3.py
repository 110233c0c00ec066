"""DeepLabV3 (Chen et al., arXiv:1706.05587) and DeepLabV3+ (Chen et al., arXiv:1802.02611) in 3D, on any encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from smp3d_export.architectures.base import SegmentationModel, Shapes, classification_head, encoder_for, infer_depth
from smp3d_export.architectures.heads import SegmentationHead, UpsamplingArgument, as_upsampling
from smp3d_export.architectures.layers import ActivationArgument, ConvBlock, upsample
from smp3d_export.encoders.base import Encoder
from smp3d_export.encoders.spec import DEFAULT_STRIDES, EncoderSpec, product
from smp3d_export.errors import UsageError

RATES = (12, 24, 36)
FINE_CHANNELS = 48
FINE = 2
"""The feature map that adds detail in DeepLabV3+: the second stage's, at a quarter of the input's size."""


class DeepLabV3(SegmentationModel):
    """Atrous spatial pyramid pooling on the last map of a dilated encoder with output stride 8.

    Args:
        encoder_name: an encoder from `smp3d-export list encoders`.
        encoder_depth: how many of the encoder's five stages run; the fourth and fifth are dilated.
        encoder_weights: name of published weights, or None for random weights.
        decoder_channels: C of the pyramid's branches and of its output.
        in_channels: C of the input.
        classes: channels of the masks.
        activation: activation of the masks: a name, a callable that returns a module, or None for logits.
        upsampling: upsampling factor of the masks, one number or an (H, W, D) triple; by default the masks get the
            input's size (8 with default strides).
        aux_params: adds a classification head on the last feature map (`classes`, `pooling`, `dropout`, `activation`).
        strides: one (H, W, D) triple per stage; a dilated stage has stride 1 instead.

    Raises:
        UsageError: the arguments do not fit together.
    """

    def __init__(
        self,
        encoder_name: str = "resnet34",
        encoder_depth: int = 5,
        encoder_weights: str | None = "imagenet",
        decoder_channels: int = 256,
        in_channels: int = 3,
        classes: int = 1,
        activation: ActivationArgument = None,
        upsampling: UpsamplingArgument = None,
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
            output_stride=8,
        )
        self.decoder = DeepLabV3Decoder(self.encoder.out_channels[-1], decoder_channels)
        self.segmentation_head = SegmentationHead(
            decoder_channels,
            classes,
            kernel=1,
            activation=activation,
            upsampling=as_upsampling(upsampling, self.encoder.total_stride),
        )
        self.classification_head = classification_head(self.encoder.out_channels[-1], aux_params)
        self.name = f"deeplabv3-{encoder_name}"

    @classmethod
    def infer_decoder(cls, shapes: Shapes, encoder: EncoderSpec) -> dict[str, Any]:
        return pyramid_arguments(shapes, "decoder.0", encoder)


class DeepLabV3Plus(SegmentationModel):
    """A pyramid of separable convolutions on the last map, upsampled and refined with the second stage's map.

    Args:
        encoder_name: an encoder from `smp3d-export list encoders`.
        encoder_depth: how many of the encoder's five stages run, at least 3.
        encoder_weights: name of published weights, or None for random weights.
        encoder_output_stride: 16 dilates the encoder's fifth stage, 8 the fourth and the fifth.
        decoder_channels: C of the pyramid's branches and of the decoder's output.
        decoder_atrous_rates: dilations of the pyramid's three 3³ convolutions.
        in_channels: C of the input.
        classes: channels of the masks.
        activation: activation of the masks: a name, a callable that returns a module, or None for logits.
        upsampling: upsampling factor of the masks, one number or an (H, W, D) triple; by default the masks get the
            input's size (4 with default strides).
        aux_params: adds a classification head on the last feature map (`classes`, `pooling`, `dropout`, `activation`).
        strides: one (H, W, D) triple per stage; a dilated stage has stride 1 instead.

    Raises:
        UsageError: the arguments do not fit together.
    """

    def __init__(
        self,
        encoder_name: str = "resnet34",
        encoder_depth: int = 5,
        encoder_weights: str | None = "imagenet",
        encoder_output_stride: int = 16,
        decoder_channels: int = 256,
        decoder_atrous_rates: Sequence[int] = RATES,
        in_channels: int = 3,
        classes: int = 1,
        activation: ActivationArgument = None,
        upsampling: UpsamplingArgument = None,
        aux_params: Mapping[str, Any] | None = None,
        strides: Sequence[Sequence[int]] = DEFAULT_STRIDES,
    ) -> None:
        super().__init__()
        if encoder_output_stride not in (8, 16):
            raise UsageError(f"encoder_output_stride is {encoder_output_stride}; DeepLabV3Plus takes 8 or 16")
        if encoder_depth < FINE + 1:
            raise UsageError(f"encoder_depth is {encoder_depth}; DeepLabV3Plus takes {FINE + 1} to 5")
        self.encoder = encoder_for(
            self,
            encoder_name,
            in_channels=in_channels,
            depth=encoder_depth,
            weights=encoder_weights,
            strides=strides,
            output_stride=encoder_output_stride,
        )
        self.decoder = DeepLabV3PlusDecoder(self.encoder, decoder_channels, decoder_atrous_rates)
        self.segmentation_head = SegmentationHead(
            decoder_channels,
            classes,
            kernel=1,
            activation=activation,
            upsampling=as_upsampling(upsampling, product(self.encoder.strides[:FINE])),
        )
        self.classification_head = classification_head(self.encoder.out_channels[-1], aux_params)
        self.name = f"deeplabv3plus-{encoder_name}"

    @classmethod
    def infer_decoder(cls, shapes: Shapes, encoder: EncoderSpec) -> dict[str, Any]:
        return pyramid_arguments(shapes, "decoder.aspp.0", encoder)


class DeepLabV3Decoder(nn.Sequential):
    """The pyramid, and a 3³ convolution on its output."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(ASPP(inputs, outputs, RATES, separable=False), *ConvBlock(outputs, outputs))

    def forward(self, input: Sequence[Tensor]) -> Tensor:
        """The encoder's feature maps to one map of the last one's size."""
        return super().forward(input[-1])


class DeepLabV3PlusDecoder(nn.Module):
    """The pyramid, upsampled to the second stage's map, and a separable convolution over both.

    At every depth it takes the second stage's map. (The published package counts from the last map but upsamples as if
    it had counted from the first, so below depth 5 its two maps differ in size.)
    """

    def __init__(self, encoder: Encoder, outputs: int, rates: Sequence[int]) -> None:
        super().__init__()
        self.scale = product(encoder.strides[FINE:])
        self.aspp = nn.Sequential(
            ASPP(encoder.out_channels[-1], outputs, rates, separable=True),
            *normed(SeparableConv(outputs, outputs), outputs),
        )
        self.block1 = ConvBlock(encoder.out_channels[FINE], FINE_CHANNELS, 1)
        self.block2 = normed(SeparableConv(FINE_CHANNELS + outputs, outputs), outputs)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The encoder's feature maps to one map of the second stage's size."""
        x = upsample(self.aspp(features[-1]), self.scale, "trilinear", False)
        return self.block2(torch.cat([x, self.block1(features[FINE])], dim=1))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a 1³ convolution, three dilated 3³ convolutions and a global mean in parallel.

    Raises:
        UsageError: `rates` are not three positive whole numbers.
    """

    def __init__(self, inputs: int, outputs: int, rates: Sequence[int], *, separable: bool) -> None:
        super().__init__()
        if len(rates) != 3 or any(not isinstance(rate, int) or rate < 1 for rate in rates):
            raise UsageError(f"decoder_atrous_rates is {tuple(rates)}; it takes three positive whole numbers")
        dilated = SeparableConv if separable else DilatedConv
        self.convs = nn.ModuleList(
            [
                ConvBlock(inputs, outputs, 1),
                *(normed(dilated(inputs, outputs, rate), outputs) for rate in rates),
                nn.Sequential(nn.AdaptiveAvgPool3d(1), *ConvBlock(inputs, outputs, 1)),
            ]
        )
        self.project = nn.Sequential(*ConvBlock(5 * outputs, outputs, 1), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W, D) to (N, outputs, H, W, D)."""
        *maps, mean = [conv(x) for conv in self.convs]
        # The mean is a single voxel, so interpolating it to the size of the maps repeats it.
        return self.project(torch.cat([*maps, mean.expand_as(maps[0])], dim=1))


class DilatedConv(nn.Conv3d):
    """A 3³ convolution without bias that keeps the size."""

    def __init__(self, inputs: int, outputs: int, dilation: int = 1) -> None:
        super().__init__(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=False)


class SeparableConv(nn.Sequential):
    """A depthwise 3³ and a pointwise 1³ convolution, both without bias; the size stays the same."""

    def __init__(self, inputs: int, outputs: int, dilation: int = 1) -> None:
        super().__init__(
            nn.Conv3d(inputs, inputs, 3, padding=dilation, dilation=dilation, groups=inputs, bias=False),
            nn.Conv3d(inputs, outputs, 1, bias=False),
        )


def normed(conv: nn.Module, channels: int) -> nn.Sequential:
    """A convolution, batch normalisation and ReLU."""
    return nn.Sequential(conv, nn.BatchNorm3d(channels), nn.ReLU(inplace=True))


def pyramid_arguments(shapes: Shapes, pyramid: str, encoder: EncoderSpec) -> dict[str, Any]:
    """What a checkpoint's first pyramid convolution shows: `decoder_channels` (outputs), the depth (inputs)."""
    weight = shapes[f"{pyramid}.convs.0.0.weight"]
    return {"decoder_channels": weight[0], **infer_depth(encoder, weight[1])}

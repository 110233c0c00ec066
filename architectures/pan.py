"""Pyramid attention network (PAN) in 3D (Li et al., arXiv:1805.10180), on any encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from smp3d_export.architectures.base import SegmentationModel, Shapes, classification_head, encoder_for
from smp3d_export.architectures.heads import SegmentationHead, UpsamplingArgument, as_upsampling
from smp3d_export.architectures.layers import ActivationArgument, upsample
from smp3d_export.encoders.base import Encoder
from smp3d_export.encoders.spec import DEFAULT_STRIDES, EncoderSpec, Triple, product
from smp3d_export.errors import UsageError

MIN_MAP = 8
"""Voxels per axis that the last feature map needs, because three poolings halve it."""


class PAN(SegmentationModel):
    """Pyramid attention on the last feature map; each coarser map gates the next finer one.

    Args:
        encoder_name: an encoder from `smp3d-export list encoders`.
        encoder_weights: name of published weights, or None for random weights.
        encoder_output_stride: 16 dilates the encoder's last stage, 32 leaves it as it is.
        decoder_channels: C of the decoder's maps.
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

    min_size_reason = f"its three poolings need {MIN_MAP} voxels per axis in the last feature map"

    def __init__(
        self,
        encoder_name: str = "resnet34",
        encoder_weights: str | None = "imagenet",
        encoder_output_stride: int = 16,
        decoder_channels: int = 32,
        in_channels: int = 3,
        classes: int = 1,
        activation: ActivationArgument = None,
        upsampling: UpsamplingArgument = None,
        aux_params: Mapping[str, Any] | None = None,
        strides: Sequence[Sequence[int]] = DEFAULT_STRIDES,
    ) -> None:
        super().__init__()
        if encoder_output_stride not in (16, 32):
            raise UsageError(f"encoder_output_stride is {encoder_output_stride}; PAN takes 16 or 32")
        self.encoder = encoder_for(
            self,
            encoder_name,
            in_channels=in_channels,
            depth=5,
            weights=encoder_weights,
            strides=strides,
            output_stride=encoder_output_stride,
        )
        self.decoder = PANDecoder(self.encoder, decoder_channels)
        self.segmentation_head = SegmentationHead(
            decoder_channels,
            classes,
            activation=activation,
            upsampling=as_upsampling(upsampling, product(self.encoder.strides[:2])),
        )
        self.classification_head = classification_head(self.encoder.out_channels[-1], aux_params)
        self.name = f"pan-{encoder_name}"

    @classmethod
    def infer_decoder(cls, shapes: Shapes, encoder: EncoderSpec) -> dict[str, Any]:
        return {"decoder_channels": shapes["decoder.fpa.mid.0.conv.weight"][0]}

    @property
    def min_size(self) -> Triple:
        """The smallest volume (H, W, D), whose last feature map has 8 voxels per axis."""
        h, w, d = (max(MIN_MAP * k, low) for k, low in zip(self.multiple, self.encoder.min_size, strict=True))
        return h, w, d


class PANDecoder(nn.Module):
    """Pyramid attention on the last feature map, then three gated upsamplings to the second stage's map."""

    def __init__(self, encoder: Encoder, channels: int) -> None:
        super().__init__()
        _, _, fine, middle, coarse, last = encoder.out_channels
        self.fpa = PyramidAttention(last, channels)
        self.gau3 = GatedUpsample(coarse, channels, encoder.strides[4])
        self.gau2 = GatedUpsample(middle, channels, encoder.strides[3])
        self.gau1 = GatedUpsample(fine, channels, encoder.strides[2])

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The encoder's feature maps to one map of the second stage's size."""
        _, _, fine, middle, coarse, last = features
        x = self.gau3(coarse, self.fpa(last))
        x = self.gau2(middle, x)
        return self.gau1(fine, x)


class PyramidAttention(nn.Module):
    """Feature pyramid attention: a one-channel map, computed at 1/2, 1/4 and 1/8 of the size, weights the input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.branch1 = nn.Sequential(nn.AdaptiveAvgPool3d(1), NormedConv(inputs, outputs, 1))
        self.mid = nn.Sequential(NormedConv(inputs, outputs, 1))
        self.down1 = nn.Sequential(nn.MaxPool3d(2), NormedConv(inputs, 1, 7))
        self.down2 = nn.Sequential(nn.MaxPool3d(2), NormedConv(1, 1, 5))
        self.down3 = nn.Sequential(nn.MaxPool3d(2), NormedConv(1, 1, 3), NormedConv(1, 1, 3))
        self.conv2 = NormedConv(1, 1, 5)
        self.conv1 = NormedConv(1, 1, 7)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W, D) to (N, outputs, H, W, D); H, W and D are at least 8."""
        half = self.down1(x)
        quarter = self.down2(half)
        eighth = self.down3(quarter)
        attention = self.conv2(quarter) + resized(eighth, quarter)
        attention = self.conv1(half) + resized(attention, half)
        # The pooled branch is a single voxel, so broadcasting replaces interpolation.
        return resized(attention, x) * self.mid(x) + self.branch1(x)


class GatedUpsample(nn.Module):
    """Global attention upsample: the coarse map, pooled, gates the channels of the fine one and is added to it."""

    def __init__(self, inputs: int, outputs: int, stride: Triple) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Sequential(nn.AdaptiveAvgPool3d(1), NormedConv(outputs, outputs, 1, relu=False), nn.Sigmoid())
        self.conv2 = NormedConv(inputs, outputs, 3)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        return upsample(coarse, self.stride, "trilinear", True) + self.conv2(fine) * self.conv1(coarse)


class NormedConv(nn.Module):
    """Convolution with "same" padding, batch normalisation and optional ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, relu: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, kernel, padding=kernel // 2)
        self.bn = nn.BatchNorm3d(outputs)
        self.activation = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.bn(self.conv(x)))


def resized(x: Tensor, like: Tensor) -> Tensor:
    """Trilinear interpolation to the size of another map, with aligned corners."""
    return F.interpolate(x, size=like.shape[-3:], mode="trilinear", align_corners=True)

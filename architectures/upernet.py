"""UPerNet in 3D (Xiao et al., arXiv:1807.10221), on any encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smp3d_export.architectures.base import SegmentationModel, Shapes, classification_head, encoder_for
from smp3d_export.architectures.heads import SegmentationHead, UpsamplingArgument, as_upsampling
from smp3d_export.architectures.layers import ActivationArgument, ConvBlock, upsample
from smp3d_export.architectures.normalisation import LayerNorm, Norm, NormArgument, infer_norm, norm_of
from smp3d_export.architectures.pooling import AdaptiveAvgPool3d
from smp3d_export.encoders.base import Encoder
from smp3d_export.encoders.spec import DEFAULT_STRIDES, EncoderSpec, Strides, Triple, product
from smp3d_export.errors import UsageError

BINS = (1, 2, 3, 6)
FIRST = 2
"""The finest feature map that the decoder uses: the second stage's, at a quarter of the input's size."""


class UPerNet(SegmentationModel):
    """Pyramid pooling on the last feature map, a feature pyramid over the finer maps, and a convolution that fuses all.

    Args:
        encoder_name: an encoder from `smp3d-export list encoders`.
        encoder_depth: how many of the encoder's five stages run, at least 3.
        encoder_weights: name of published weights, or None for random weights.
        decoder_channels: C of the decoder's maps.
        decoder_use_norm: normalisation after the decoder's convolutions: `batchnorm` or True, `groupnorm`,
            `layernorm`, `identity` or False; or a mapping with one of these names as `type` and further arguments of
            the layer.
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

    norm_block = "decoder.fusion_block"

    def __init__(
        self,
        encoder_name: str = "resnet34",
        encoder_depth: int = 5,
        encoder_weights: str | None = "imagenet",
        decoder_channels: int = 256,
        decoder_use_norm: NormArgument = "batchnorm",
        in_channels: int = 3,
        classes: int = 1,
        activation: ActivationArgument = None,
        upsampling: UpsamplingArgument = None,
        aux_params: Mapping[str, Any] | None = None,
        strides: Sequence[Sequence[int]] = DEFAULT_STRIDES,
    ) -> None:
        super().__init__()
        if encoder_depth <= FIRST:
            raise UsageError(f"encoder_depth is {encoder_depth}; UPerNet takes {FIRST + 1} to 5")
        norm = norm_of(decoder_use_norm)
        if norm.name == "instancenorm":
            raise UsageError(
                "decoder_use_norm is 'instancenorm', which UPerNet cannot use: the global mean is a single voxel, "
                "which has no variance to normalise by"
            )
        self.encoder = encoder_for(
            self,
            encoder_name,
            in_channels=in_channels,
            depth=encoder_depth,
            weights=encoder_weights,
            strides=strides,
        )
        self.decoder = UPerNetDecoder(self.encoder, decoder_channels, norm)
        self.segmentation_head = SegmentationHead(
            decoder_channels,
            classes,
            kernel=1,
            activation=activation,
            upsampling=as_upsampling(upsampling, product(self.encoder.strides[:FIRST])),
        )
        self.classification_head = classification_head(self.encoder.out_channels[-1], aux_params)
        self.name = f"upernet-{encoder_name}"

    @classmethod
    def infer_decoder(cls, shapes: Shapes, encoder: EncoderSpec) -> dict[str, Any]:
        channels = shapes["decoder.fusion_block.0.weight"][0]
        maps = sum(key.startswith("decoder.feature_norms.") and key.endswith(".weight") for key in shapes)
        depth = {"encoder_depth": maps + FIRST - 1, "decoder_channels": channels}
        return depth | infer_norm(shapes, cls.norm_block, None)


class UPerNetDecoder(nn.Module):
    """From the last map to the second stage's: each map is added to the upsampled coarser one; then all are fused."""

    def __init__(self, encoder: Encoder, channels: int, norm: Norm) -> None:
        super().__init__()
        *finer, last = encoder.out_channels[FIRST:]
        self.feature_norms = nn.ModuleList(LayerNorm(inputs, eps=1e-6) for inputs in (*finer, last))
        self.psp = PyramidPooling(last, channels, norm)
        self.fpn_lateral_blocks = nn.ModuleList()
        self.fpn_conv_blocks = nn.ModuleList()
        self.strides: Strides = tuple(reversed(encoder.strides[FIRST:]))
        for inputs, stride in zip(reversed(finer), self.strides, strict=True):
            self.fpn_lateral_blocks.append(Lateral(inputs, channels, stride, norm))
            self.fpn_conv_blocks.append(ConvBlock(channels, channels, 3, norm=norm))
        self.fusion_block = ConvBlock((1 + len(finer)) * channels, channels, 3, norm=norm)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The encoder's feature maps to one map of the second stage's size."""
        *finer, last = [norm(x) for norm, x in zip(self.feature_norms, features[FIRST:], strict=True)]
        pyramid = [self.psp(last)]
        for lateral, x in zip(self.fpn_lateral_blocks, reversed(finer), strict=True):
            pyramid.append(lateral(pyramid[-1], x))
        # The convolutions run after all sums: each level passes on its sum, not its convolved map.
        maps = [pyramid[0], *(conv(x) for conv, x in zip(self.fpn_conv_blocks, pyramid[1:], strict=True))]
        maps = [upsample(x, product(self.strides[i:]), "trilinear", False) for i, x in enumerate(maps)]
        return self.fusion_block(torch.cat(maps[::-1], dim=1))


class PyramidPooling(nn.Module):
    """Averages over 1, 2, 3 and 6 bins per axis, resized to the map, and a convolution over all of them and the map."""

    def __init__(self, inputs: int, outputs: int, norm: Norm) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(AdaptiveAvgPool3d(bins), ConvBlock(inputs, outputs, 1, norm=norm)) for bins in BINS
        )
        # Batch normalisation whatever `norm` is, as in the 2D library's state dicts.
        self.out_conv = ConvBlock(inputs + len(BINS) * outputs, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W, D) to (N, outputs, H, W, D)."""
        mean, *averages = [block(x) for block in self.blocks]
        # The mean is a single voxel, so interpolating repeats it.
        mean = mean.expand(-1, -1, *x.shape[2:])
        averages = [F.interpolate(y, size=x.shape[2:], mode="trilinear", align_corners=False) for y in averages]
        return self.out_conv(torch.cat([x, mean, *averages], dim=1))


class Lateral(nn.Module):
    """A 1³ convolution of the finer map, added to the upsampled coarser one."""

    def __init__(self, inputs: int, outputs: int, stride: Triple, norm: Norm) -> None:
        super().__init__()
        self.stride = stride
        self.conv_norm_relu = ConvBlock(inputs, outputs, 1, norm=norm)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        return upsample(coarse, self.stride, "trilinear", False) + self.conv_norm_relu(fine)

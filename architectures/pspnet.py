"""PSPNet in 3D (Zhao et al., arXiv:1612.01105), on any encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smp3d_export.architectures.base import SegmentationModel, Shapes, classification_head, encoder_for, infer_depth
from smp3d_export.architectures.heads import SegmentationHead, UpsamplingArgument, as_upsampling
from smp3d_export.architectures.layers import ActivationArgument, ConvBlock
from smp3d_export.architectures.normalisation import IDENTITY, Norm, NormArgument, infer_norm, norm_of
from smp3d_export.architectures.pooling import AdaptiveAvgPool3d
from smp3d_export.encoders.spec import DEFAULT_STRIDES, EncoderSpec

BINS = (1, 2, 3, 6)
DEFAULT_DEPTH = 3


class PSPNet(SegmentationModel):
    """The last feature map and its averages over 1, 2, 3 and 6 bins per axis. It reads no finer map.

    Args:
        encoder_name: an encoder from `smp3d-export list encoders`.
        encoder_weights: name of published weights, or None for random weights.
        encoder_depth: how many of the encoder's five stages run.
        psp_out_channels: C of the decoder's map.
        psp_use_batchnorm: batch normalisation in the decoder; without it, the convolutions have a bias.
        psp_dropout: probability of dropping a channel of the decoder's map during training.
        in_channels: C of the input.
        classes: channels of the masks.
        activation: activation of the masks: a name, a callable that returns a module, or None for logits.
        upsampling: upsampling factor of the masks, one number or an (H, W, D) triple; by default the masks get the
            input's size (8 with three default strides).
        aux_params: adds a classification head on the last feature map (`classes`, `pooling`, `dropout`, `activation`).
        strides: one (H, W, D) triple per stage.
        decoder_use_norm: normalisation after the decoder's convolutions: `batchnorm` or True, `groupnorm`,
            `instancenorm`, `layernorm`, `identity` or False; or a mapping with one of these names as `type` and further
            arguments of the layer.

    Raises:
        UsageError: the arguments do not fit together.
    """

    norm_block = "decoder.conv"

    def __init__(
        self,
        encoder_name: str = "resnet34",
        encoder_weights: str | None = "imagenet",
        encoder_depth: int = DEFAULT_DEPTH,
        psp_out_channels: int = 512,
        psp_use_batchnorm: bool = True,
        psp_dropout: float = 0.2,
        in_channels: int = 3,
        classes: int = 1,
        activation: ActivationArgument = None,
        upsampling: UpsamplingArgument = None,
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
        norm = norm_of(decoder_use_norm, psp_use_batchnorm, "psp_use_batchnorm")
        self.normalises(norm, encoder_depth)
        self.decoder = PSPDecoder(self.encoder.out_channels[-1], psp_out_channels, norm=norm, dropout=psp_dropout)
        self.segmentation_head = SegmentationHead(
            psp_out_channels,
            classes,
            activation=activation,
            upsampling=as_upsampling(upsampling, self.encoder.total_stride),
        )
        self.classification_head = classification_head(self.encoder.out_channels[-1], aux_params)
        self.name = f"psp-{encoder_name}"

    @classmethod
    def infer_decoder(cls, shapes: Shapes, encoder: EncoderSpec) -> dict[str, Any]:
        return {
            "psp_out_channels": shapes["decoder.conv.0.weight"][0],
            **infer_norm(shapes, cls.norm_block, "psp_use_batchnorm"),
            **infer_depth(encoder, shapes["decoder.psp.blocks.0.pool.1.0.weight"][1], default=DEFAULT_DEPTH),
        }


class PSPDecoder(nn.Module):
    """The pyramid of averages, and a 1³ convolution over all levels."""

    def __init__(self, inputs: int, outputs: int, *, norm: Norm, dropout: float) -> None:
        super().__init__()
        self.psp = PyramidPooling(inputs, norm=norm)
        self.conv = ConvBlock(self.psp.out_channels, outputs, 1, norm=norm)
        self.dropout = nn.Dropout3d(dropout)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The encoder's feature maps to one map, as large as the last."""
        return self.dropout(self.conv(self.psp(features[-1])))


class PyramidPooling(nn.Module):
    """(N, C, H, W, D) to the same size with up to 2·C channels: a quarter of C from each level, then the map itself."""

    def __init__(self, channels: int, *, norm: Norm) -> None:
        super().__init__()
        width = channels // len(BINS)
        self.out_channels = width * len(BINS) + channels
        self.blocks = nn.ModuleList(PoolingBlock(channels, width, bins, norm=norm) for bins in BINS)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([*(block(x) for block in self.blocks), x], dim=1)


class PoolingBlock(nn.Module):
    """Averages over `bins` per axis, a 1³ convolution, and trilinear upsampling with aligned corners."""

    def __init__(self, inputs: int, outputs: int, bins: int, *, norm: Norm) -> None:
        super().__init__()
        self.pool = nn.Sequential(
            AdaptiveAvgPool3d(bins),
            # Most normalisations cannot be trained on a single voxel, so the 2D library has none here.
            ConvBlock(inputs, outputs, 1, norm=norm if bins > 1 else IDENTITY),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.pool(x), size=x.shape[2:], mode="trilinear", align_corners=True)

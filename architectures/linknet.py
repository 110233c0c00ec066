"""LinkNet in 3D (Chaurasia and Culurciello, arXiv:1707.03718), on any encoder with a feature map from every stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from smp3d_export.architectures.base import SegmentationModel, Shapes, classification_head, encoder_for
from smp3d_export.architectures.heads import SegmentationHead
from smp3d_export.architectures.layers import ActivationArgument, ConvBlock
from smp3d_export.architectures.normalisation import Norm, NormArgument, infer_norm, norm_of
from smp3d_export.encoders.base import Encoder
from smp3d_export.encoders.spec import DEFAULT_STRIDES, EncoderSpec, Triple

FINAL_CHANNELS = 32


class Linknet(SegmentationModel):
    """A light decoder of transposed convolutions that adds the encoder's feature maps, coarsest first.

    Args:
        encoder_name: an encoder from `smp3d-export list encoders`.
        encoder_depth: how many of the encoder's five stages run.
        encoder_weights: name of published weights, or None for random weights.
        decoder_use_batchnorm: batch normalisation in the decoder; without it, the convolutions have a bias.
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

    norm_block = "decoder.blocks.0.block.0"

    def __init__(
        self,
        encoder_name: str = "resnet34",
        encoder_depth: int = 5,
        encoder_weights: str | None = "imagenet",
        decoder_use_batchnorm: bool = True,
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
        self.decoder = LinknetDecoder(self.encoder, norm=norm)
        self.segmentation_head = SegmentationHead(FINAL_CHANNELS, classes, kernel=1, activation=activation)
        self.classification_head = classification_head(self.encoder.out_channels[-1], aux_params)
        self.name = f"link-{encoder_name}"

    @classmethod
    def infer_decoder(cls, shapes: Shapes, encoder: EncoderSpec) -> dict[str, Any]:
        depth = 0
        while f"decoder.blocks.{depth}.block.0.0.weight" in shapes:
            depth += 1
        if not depth:
            return {}
        return {"encoder_depth": depth} | infer_norm(shapes, cls.norm_block, "decoder_use_batchnorm")


class LinknetDecoder(nn.Module):
    """One block per stage, coarsest first; all but the last add the encoder's feature map of their output size."""

    def __init__(self, encoder: Encoder, *, norm: Norm) -> None:
        super().__init__()
        channels = [*reversed(encoder.out_channels[1:]), FINAL_CHANNELS]
        self.blocks = nn.ModuleList(
            LinknetBlock(inputs, outputs, stride, norm=norm)
            for inputs, outputs, stride in zip(channels, channels[1:], reversed(encoder.strides), strict=False)
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The encoder's feature maps to one map of the input's size."""
        x, *skips = reversed(features[1:])
        for block, skip in zip(self.blocks, skips, strict=False):
            x = block(x) + skip
        return self.blocks[-1](x)


class LinknetBlock(nn.Module):
    """A 1³ convolution to a quarter of the channels, upsampling by the stage's stride, and a 1³ convolution."""

    def __init__(self, inputs: int, outputs: int, stride: Triple, *, norm: Norm) -> None:
        super().__init__()
        width = inputs // 4
        self.block = nn.Sequential(
            ConvBlock(inputs, width, 1, norm=norm),
            TransposedBlock(width, stride, norm=norm),
            ConvBlock(width, outputs, 1, norm=norm),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class TransposedBlock(nn.Sequential):
    """A transposed convolution, normalisation if any, and ReLU; each axis grows by its stride.

    A transposed convolution turns n voxels into (n - 1)·s - 2·padding + kernel: n·s with padding 1 and kernel s + 2.
    """

    def __init__(self, channels: int, stride: Triple, *, norm: Norm) -> None:
        h, w, d = stride
        super().__init__(
            nn.ConvTranspose3d(channels, channels, (h + 2, w + 2, d + 2), stride=stride, padding=1),
            norm.layer(channels),
            nn.ReLU(inplace=True),
        )

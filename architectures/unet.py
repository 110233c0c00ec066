"""Unet in 3D (Ronneberger et al., arXiv:1505.04597), on any encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from smp3d_export.architectures.base import SegmentationModel, Shapes, classification_head, encoder_for
from smp3d_export.architectures.heads import SegmentationHead
from smp3d_export.architectures.layers import (
    ActivationArgument,
    DecoderBlock,
    center_block,
    check_decoder_channels,
    infer_attention,
    infer_blocks,
)
from smp3d_export.architectures.normalisation import Norm, NormArgument, infer_norm, norm_of
from smp3d_export.encoders.base import Encoder
from smp3d_export.encoders.spec import DEFAULT_STRIDES, EncoderSpec


class Unet(SegmentationModel):
    """A decoder that upsamples by the encoder's strides and concatenates its feature maps, coarsest first.

    Args:
        encoder_name: an encoder from `smp3d-export list encoders`.
        encoder_depth: how many of the encoder's five stages run.
        encoder_weights: name of published weights, or None for random weights.
        decoder_use_batchnorm: batch normalisation in the decoder; without it, the convolutions have a bias.
        decoder_channels: output channels of the decoder blocks, coarsest first, one per stage.
        decoder_attention_type: `scse` or None.
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
        decoder_attention_type: str | None = None,
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
        self.normalises(norm, encoder_depth if self.encoder.spec.unet_center else encoder_depth - 1)
        self.decoder = UnetDecoder(
            self.encoder,
            decoder_channels,
            norm=norm,
            attention=decoder_attention_type,
        )
        self.segmentation_head = SegmentationHead(decoder_channels[-1], classes, activation=activation)
        self.classification_head = classification_head(self.encoder.out_channels[-1], aux_params)
        self.name = f"u-{encoder_name}"

    @classmethod
    def infer_decoder(cls, shapes: Shapes, encoder: EncoderSpec) -> dict[str, Any]:
        blocks = infer_blocks(shapes, "decoder.blocks.") | infer_attention(shapes, "decoder.blocks.0")
        return blocks | infer_norm(shapes, cls.norm_block, "decoder_use_batchnorm")


class UnetDecoder(nn.Module):
    """One block per stage, coarsest first; the last has no skip because the input itself is not concatenated."""

    def __init__(self, encoder: Encoder, decoder_channels: Sequence[int], *, norm: Norm, attention: str | None) -> None:
        super().__init__()
        check_decoder_channels(decoder_channels, encoder.depth)
        inputs, *skips = reversed(encoder.out_channels[1:])
        self.center = center_block(inputs, norm=norm) if encoder.spec.unet_center else nn.Identity()
        self.blocks = nn.ModuleList()
        for skip, outputs, stride in zip([*skips, 0], decoder_channels, reversed(encoder.strides), strict=True):
            self.blocks.append(DecoderBlock(inputs, skip, outputs, stride, norm=norm, attention=attention))
            inputs = outputs

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The encoder's feature maps to one map of the input's size."""
        head, *skips = reversed(features[1:])
        x = self.center(head)
        for block, skip in zip(self.blocks, skips, strict=False):
            x = block(x, skip)
        return self.blocks[-1](x)

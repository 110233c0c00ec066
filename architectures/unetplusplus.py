"""Unet++ in 3D (Zhou et al., arXiv:1807.10165), on any encoder with a feature map from every stage."""

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


class UnetPlusPlus(SegmentationModel):
    """A Unet whose skips are nested decoders: each level concatenates all maps computed at its size.

    Args:
        encoder_name: an encoder from `smp3d-export list encoders`.
        encoder_depth: how many of the encoder's five stages run.
        encoder_weights: name of published weights, or None for random weights.
        decoder_use_batchnorm: batch normalisation in the decoder; without it, the convolutions have a bias.
        decoder_channels: output channels of the outermost decoder blocks, coarsest first, one per stage.
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

    norm_block = "decoder.blocks.x_0_0.conv1"

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
        self.normalises(norm, encoder_depth - 1)
        self.decoder = UnetPlusPlusDecoder(
            self.encoder,
            decoder_channels,
            norm=norm,
            attention=decoder_attention_type,
        )
        self.segmentation_head = SegmentationHead(decoder_channels[-1], classes, activation=activation)
        self.classification_head = classification_head(self.encoder.out_channels[-1], aux_params)
        self.name = f"unetplusplus-{encoder_name}"

    @classmethod
    def infer_decoder(cls, shapes: Shapes, encoder: EncoderSpec) -> dict[str, Any]:
        blocks = infer_blocks(shapes, "decoder.blocks.x_0_") | infer_attention(shapes, "decoder.blocks.x_0_0")
        return blocks | infer_norm(shapes, cls.norm_block, "decoder_use_batchnorm")


class UnetPlusPlusDecoder(nn.Module):
    """A triangle of blocks: `x_i_j` computes the map at level j of the decoder that starts at level i.

    Levels count from the coarsest. Block `x_i_j` upsamples its own decoder's map from level j - 1 (the encoder's map if
    i = j) and concatenates the level j maps of the decoders i + 1 .. j and of the encoder. Decoder 0 is the outermost;
    only it uses `decoder_channels` and continues to the input's size.
    """

    def __init__(self, encoder: Encoder, decoder_channels: Sequence[int], *, norm: Norm, attention: str | None) -> None:
        super().__init__()
        check_decoder_channels(decoder_channels, encoder.depth)
        head, *skips = reversed(encoder.out_channels[1:])
        self.levels = len(skips)
        # As in the published package, the centre's layers are in the state dict but never run.
        self.center = center_block(head, norm=norm) if encoder.spec.unet_center else nn.Identity()
        self.blocks = nn.ModuleDict()
        strides = encoder.strides[::-1]
        below = (head, *skips)  # channels of what a nested decoder upsamples
        outer = (head, *decoder_channels)
        for level, skip in enumerate(skips):
            for start in range(level + 1):
                inputs, outputs = (below[level], skip) if start else (outer[level], outer[level + 1])
                self.blocks[f"x_{start}_{level}"] = DecoderBlock(
                    inputs,
                    skip * (level + 1 - start),
                    outputs,
                    strides[level],
                    norm=norm,
                    attention=attention,
                )
        self.blocks[f"x_0_{self.levels}"] = DecoderBlock(
            outer[-2], 0, outer[-1], strides[-1], norm=norm, attention=attention
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The encoder's feature maps to one map of the input's size."""
        coarser, *skips = reversed(features[1:])
        row = [coarser]  # maps of the previous level: outermost decoder first, encoder last
        for level, skip in enumerate(skips):
            maps = [skip]
            for start in range(level, -1, -1):
                maps.insert(0, self.blocks[f"x_{start}_{level}"](row[start], *maps))
            row = maps
        return self.blocks[f"x_0_{self.levels}"](row[0])

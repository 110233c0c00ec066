"""Layers that several decoders and heads share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smp3d_export.architectures.normalisation import BATCHNORM, Norm
from smp3d_export.encoders.spec import Triple
from smp3d_export.errors import UsageError, unknown

ActivationArgument = str | Callable[[], nn.Module] | None


class ConvBlock(nn.Sequential):
    """Convolution, normalisation (if none, a bias) and ReLU; "same" padding for odd kernels."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, *, norm: Norm = BATCHNORM, stride: int = 1) -> None:
        layer = norm.layer(outputs)
        bias = isinstance(layer, nn.Identity)
        super().__init__(
            nn.Conv3d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=bias),
            layer,
            nn.ReLU(inplace=True),
        )


def upsample(x: Tensor, stride: Triple, mode: str = "nearest", align_corners: bool | None = None) -> Tensor:
    """(N, C, H, W, D) with each volume axis upsampled by its `stride`; unchanged if all are 1."""
    if stride == (1, 1, 1):
        return x
    return F.interpolate(x, scale_factor=[float(s) for s in stride], mode=mode, align_corners=align_corners)


class SCSE(nn.Module):
    """Concurrent spatial and channel squeeze and excitation (Roy et al., arXiv:1803.02579)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        squeezed = channels // reduction
        if squeezed < 1:
            raise UsageError(
                f"scse attention divides its channels by {reduction}, but a decoder map has {channels}: "
                f"use decoder_channels of at least {reduction}"
            )
        self.cSE = nn.Sequential(
            nn.AdaptiveAvgPool3d(1),
            nn.Conv3d(channels, squeezed, 1),
            nn.ReLU(inplace=True),
            nn.Conv3d(squeezed, channels, 1),
            nn.Sigmoid(),
        )
        self.sSE = nn.Sequential(nn.Conv3d(channels, 1, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.cSE(x) + x * self.sSE(x)


class Attention(nn.Module):
    """The attention of a decoder block by name: `scse` or None."""

    def __init__(self, name: str | None, channels: int) -> None:
        super().__init__()
        if name is None:
            self.attention = nn.Identity()
        elif name == "scse":
            self.attention = SCSE(channels)
        else:
            raise unknown("decoder attention", name, ["scse"], "scse, or None")

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x)


class DecoderBlock(nn.Module):
    """Nearest upsampling by the stage's stride, concatenation with the skips, two convolutions.

    `skip` is the total number of channels of the skips.
    """

    def __init__(
        self, inputs: int, skip: int, outputs: int, stride: Triple, *, norm: Norm, attention: str | None = None
    ) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = ConvBlock(inputs + skip, outputs, norm=norm)
        self.attention1 = Attention(attention, inputs + skip)
        self.conv2 = ConvBlock(outputs, outputs, norm=norm)
        self.attention2 = Attention(attention, outputs)

    def forward(self, x: Tensor, *skips: Tensor) -> Tensor:
        x = upsample(x, self.stride)
        if skips:
            # A Mix Vision Transformer's first map has no channels.
            maps = [x, *(skip for skip in skips if skip.shape[1])]
            x = self.attention1(torch.cat(maps, dim=1) if len(maps) > 1 else x)
        return self.attention2(self.conv2(self.conv1(x)))


def center_block(channels: int, *, norm: Norm) -> nn.Sequential:
    """Two more convolutions between encoder and decoder, for families whose encoder ends with a pooling."""
    return nn.Sequential(ConvBlock(channels, channels, norm=norm), ConvBlock(channels, channels, norm=norm))


def check_decoder_channels(decoder_channels: Sequence[int], depth: int) -> None:
    """Refuse `decoder_channels` that do not have one number for each of the `depth` stages.

    Raises:
        UsageError: there are more or fewer numbers.
    """
    if len(decoder_channels) != depth:
        raise UsageError(
            f"decoder_channels has {len(decoder_channels)} numbers, but the encoder has {depth} stages: "
            "give one number per stage"
        )


def infer_blocks(shapes: Mapping[str, tuple[int, ...]], block: str) -> dict[str, Any]:
    """What a checkpoint's two-convolution decoder blocks show; `block` is the key of the first one without its 0.

    Raises:
        KeyError: there is no such block.
    """
    channels = [shapes[f"{block}0.conv1.0.weight"][0]]
    while (weight := shapes.get(f"{block}{len(channels)}.conv1.0.weight")) is not None:
        channels.append(weight[0])
    return {"encoder_depth": len(channels), "decoder_channels": tuple(channels)}


def infer_attention(shapes: Mapping[str, tuple[int, ...]], block: str) -> dict[str, str | None]:
    """The attention of a checkpoint's decoder block; `block` is its key."""
    return {"decoder_attention_type": "scse" if f"{block}.attention1.attention.sSE.0.weight" in shapes else None}


class ArgMax(nn.Module):
    """The class of every voxel, (N, C, ...) to (N, ...)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.argmax(x, dim=1)


class Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(x, 0, 1)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "sigmoid": nn.Sigmoid,
    "softmax": lambda: nn.Softmax(dim=1),
    "softmax2d": lambda: nn.Softmax(dim=1),
    "logsoftmax": lambda: nn.LogSoftmax(dim=1),
    "tanh": nn.Tanh,
    "argmax": ArgMax,
    "argmax2d": ArgMax,
    "clamp": Clamp,
}


class Activation(nn.Module):
    """The last layer of a head: a name in `ACTIVATIONS`, a callable that returns a module, or None for identity."""

    def __init__(self, activation: ActivationArgument) -> None:
        super().__init__()
        if activation is None:
            self.activation = nn.Identity()
        elif callable(activation):
            self.activation = activation()
        elif activation in ACTIVATIONS:
            self.activation = ACTIVATIONS[activation]()
        else:
            raise unknown("activation", activation, ACTIVATIONS, ", ".join(ACTIVATIONS))

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x)

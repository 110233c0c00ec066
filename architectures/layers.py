"""Layers that several decoders and heads share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from smp3d_export.errors import UsageError, unknown

ActivationArgument = str | Callable[[], nn.Module] | None


class ConvBlock(nn.Sequential):
    """Convolution, batch normalisation (or none, then with a bias) and ReLU; "same" padding for odd kernels."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, *, batchnorm: bool = True, stride: int = 1) -> None:
        super().__init__(
            nn.Conv3d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=not batchnorm),
            nn.BatchNorm3d(outputs) if batchnorm else nn.Identity(),
            nn.ReLU(inplace=True),
        )


class SCSE(nn.Module):
    """Concurrent spatial and channel squeeze and excitation (Roy et al., arXiv:1803.02579)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        squeezed = channels // reduction
        if squeezed < 1:
            raise UsageError(
                f"scse attention reduces its channels by {reduction}, but a decoder map has {channels}: "
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
    """The attention of a decoder block by name: `scse`, or none."""

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
    """The last layer of a head: a name of `ACTIVATIONS`, a callable that makes a module, or none."""

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

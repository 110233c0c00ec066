"""DenseNet encoders in 3D (Huang et al., arXiv:1608.06993)."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smp3d_export.encoders.base import Encoder, Stage
from smp3d_export.encoders.catalogue import DenseNetSpec
from smp3d_export.encoders.spec import Strides, Triple

BOTTLENECK = 4

STAGES = (
    ("conv0", "norm0", "relu0"),
    ("pool0", "denseblock1", "transition1.norm", "transition1.relu"),
    ("transition1.conv", "transition1.pool", "denseblock2", "transition2.norm", "transition2.relu"),
    ("transition2.conv", "transition2.pool", "denseblock3", "transition3.norm", "transition3.relu"),
    ("transition3.conv", "transition3.pool", "denseblock4", "norm5"),
)


class DenseNetEncoder(Encoder):
    """7³ convolution, 3³ max pooling, then four dense blocks with transitions between them.

    Each transition is split in two. A stage ends after the transition's ReLU; the convolution (which halves the
    channels) and the pooling start the next stage.
    """

    def __init__(self, spec: DenseNetSpec, *, in_channels: int, depth: int, strides: Strides) -> None:
        super().__init__(spec, in_channels=in_channels, depth=depth, strides=strides)
        width = spec.channels[0]
        self.features = nn.Sequential(
            OrderedDict(
                conv0=Conv3d(in_channels, width, 7, stride=strides[0], padding=3, bias=False),
                norm0=nn.BatchNorm3d(width),
                relu0=nn.ReLU(inplace=True),
                pool0=nn.MaxPool3d(3, stride=strides[1], padding=1),
            )
        )
        for number, repeats in enumerate(spec.layers, start=1):
            block: OrderedDict[str, nn.Module] = OrderedDict(
                (f"denselayer{layer + 1}", DenseLayer(width + layer * spec.growth, spec.growth))
                for layer in range(repeats)
            )
            self.features.add_module(f"denseblock{number}", nn.Sequential(block))
            width += repeats * spec.growth
            if number < len(spec.layers):
                self.features.add_module(f"transition{number}", transition(width, strides[number + 1]))
                width //= 2
        self.features.add_module("norm5", nn.BatchNorm3d(width))

    def stages(self) -> tuple[Stage, ...]:
        return tuple(tuple(self.features.get_submodule(name) for name in names) for names in STAGES)


class DenseLayer(nn.Module):
    """Appends `growth` channels, computed from all earlier channels of the block."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm3d(inputs)
        self.conv1 = Conv3d(inputs, BOTTLENECK * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm3d(BOTTLENECK * growth)
        self.conv2 = Conv3d(BOTTLENECK * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.norm1(x), inplace=True))
        out = self.conv2(F.relu(self.norm2(out), inplace=True))
        return torch.cat([x, out], dim=1)


def transition(channels: int, stride: Triple) -> nn.Sequential:
    """Halves the channels, then average-pools by `stride`."""
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm3d(channels),
            relu=nn.ReLU(inplace=True),
            conv=Conv3d(channels, channels // 2, 1, bias=False),
            pool=nn.AvgPool3d(stride, stride=stride),
        )
    )


class Conv3d(nn.Conv3d):
    """A convolution without bias, with He initialisation by fan-in, as in the published DenseNets."""

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")

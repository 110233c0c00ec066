"""ResNet and ResNeXt encoders in 3D (He et al., arXiv:1512.03385; Xie et al., arXiv:1611.05431)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from smp3d_export.encoders.base import Conv3d, Encoder, Stage
from smp3d_export.encoders.catalogue import ResNetSpec
from smp3d_export.encoders.spec import Strides, Triple

UNIT: Triple = (1, 1, 1)


class ResNetEncoder(Encoder):
    """7³ convolution, 3³ max pooling, then four layers of residual blocks: five stages with one stride each."""

    def __init__(self, spec: ResNetSpec, *, in_channels: int, depth: int, strides: Strides) -> None:
        super().__init__(spec, in_channels=in_channels, depth=depth, strides=strides)
        self.conv1 = Conv3d(in_channels, 64, 7, stride=strides[0], padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(3, stride=strides[1], padding=1)
        block = Bottleneck if spec.bottleneck else BasicBlock
        width = 64
        layers = []
        for repeats, planes, stride in zip(spec.layers, (64, 128, 256, 512), (UNIT, *strides[2:]), strict=True):
            blocks = [block(spec, width, planes, stride)]
            width = planes * block.expansion
            blocks += [block(spec, width, planes, UNIT) for _ in range(repeats - 1)]
            layers.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = layers

    def stages(self) -> tuple[Stage, ...]:
        return (
            (self.conv1, self.bn1, self.relu),
            (self.maxpool, self.layer1),
            (self.layer2,),
            (self.layer3,),
            (self.layer4,),
        )


class BasicBlock(nn.Module):
    """Two 3³ convolutions and a shortcut; the first has the stride."""

    expansion: ClassVar[int] = 1

    def __init__(self, spec: ResNetSpec, inputs: int, planes: int, stride: Triple) -> None:
        super().__init__()
        self.conv1 = Conv3d(inputs, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm3d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = Conv3d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(planes)
        self.downsample = shortcut(inputs, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1³, 3³ (strided; grouped in ResNeXt) and 1³ convolutions and a shortcut."""

    expansion: ClassVar[int] = 4

    def __init__(self, spec: ResNetSpec, inputs: int, planes: int, stride: Triple) -> None:
        super().__init__()
        width = planes * spec.width_per_group // 64 * spec.groups
        outputs = planes * self.expansion
        self.conv1 = Conv3d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = Conv3d(width, width, 3, stride=stride, padding=1, groups=spec.groups, bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = Conv3d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


def shortcut(inputs: int, outputs: int, stride: Triple) -> nn.Sequential | None:
    """A strided projection if the block changes the shape of its input, otherwise None."""
    if stride == UNIT and inputs == outputs:
        return None
    return nn.Sequential(Conv3d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm3d(outputs))

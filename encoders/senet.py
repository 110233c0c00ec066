"""SENet, SE-ResNet and SE-ResNeXt encoders in 3D (Hu et al., arXiv:1709.01507)."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smp3d_export.encoders.base import Encoder, Stage
from smp3d_export.encoders.catalogue import SENetSpec
from smp3d_export.encoders.spec import Strides, Triple

UNIT: Triple = (1, 1, 1)
EXPANSION = 4
REDUCTION = 16

# Stride of the stem's pooling -> voxels of padding before and after an axis.
BORDERS = {1: (1, 1), 2: (0, 1), 3: (0, 0), 4: (0, 0)}


class SENetEncoder(Encoder):
    """A stem, 3³ max pooling, then four layers of squeeze-and-excitation blocks: five stages with one stride each.

    The published package cannot construct these encoders because their layers are 2D; here all layers are 3D.
    """

    def __init__(self, spec: SENetSpec, *, in_channels: int, depth: int, strides: Strides) -> None:
        super().__init__(spec, in_channels=in_channels, depth=depth, strides=strides)
        inputs = spec.channels[0]
        self.layer0 = stem(spec, in_channels, strides[0])
        self.layer0.add_module("pool", stem_pool(strides[1]))
        layers = []
        for repeats, planes, stride in zip(spec.layers, (64, 128, 256, 512), (UNIT, *strides[2:]), strict=True):
            # The first layer always projects pointwise, because the stem's pooling already has the stride.
            kernel = spec.projection if layers else 1
            blocks = [Bottleneck(spec, inputs, planes, stride, projection=kernel)]
            inputs = planes * EXPANSION
            blocks += [Bottleneck(spec, inputs, planes, UNIT) for _ in range(repeats - 1)]
            layers.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = layers

    def stages(self) -> tuple[Stage, ...]:
        *entry, pool = self.layer0
        return (tuple(entry), (pool, self.layer1), (self.layer2,), (self.layer3,), (self.layer4,))


def stem(spec: SENetSpec, in_channels: int, stride: Triple) -> nn.Sequential:
    """The first stage: one 7³ or three 3³ convolutions with batch normalisation and ReLU; the first is strided."""
    kernel, widths = (3, (64, 64, spec.channels[0])) if spec.deep_stem else (7, (spec.channels[0],))
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = in_channels
    for number, outputs in enumerate(widths, start=1):
        layers[f"conv{number}"] = nn.Conv3d(
            inputs, outputs, kernel, stride=stride if number == 1 else UNIT, padding=kernel // 2, bias=False
        )
        layers[f"bn{number}"] = nn.BatchNorm3d(outputs)
        layers[f"relu{number}"] = nn.ReLU(inplace=True)
        inputs = outputs
    return nn.Sequential(layers)


def stem_pool(stride: Triple) -> nn.Sequential:
    """3³ max pooling whose window i starts at voxel `stride * i`, as in Caffe; at stride 1 it is centred there.

    At stride 2 the last window reaches one voxel past the end, so that voxel is padded. The published package rounds
    the size up instead. The map has the same size either way, but backends disagree on how to round.
    """
    h, w, d = (BORDERS[s] for s in stride)
    # After a ReLU no voxel is below zero, so zero padding never changes the maximum.
    return nn.Sequential(nn.ConstantPad3d((*d, *w, *h), 0.0), nn.MaxPool3d(3, stride=stride))


class Bottleneck(nn.Module):
    """1³, 3³ (grouped) and 1³ convolutions, squeeze and excitation, and a shortcut.

    Args:
        spec: the row; `widths`, `groups` and `stride_first` shape the convolutions.
        inputs: C of the input.
        planes: a quarter of the output's C.
        stride: stride of the second convolution, or of the first with `stride_first`.
        projection: kernel size of the shortcut's convolution; None if the block keeps the shape of its input.
    """

    def __init__(
        self, spec: SENetSpec, inputs: int, planes: int, stride: Triple, *, projection: int | None = None
    ) -> None:
        super().__init__()
        first, second = (planes * width for width in spec.widths)
        outputs = planes * EXPANSION
        strides = (stride, UNIT) if spec.stride_first else (UNIT, stride)
        self.conv1 = nn.Conv3d(inputs, first, 1, stride=strides[0], bias=False)
        self.bn1 = nn.BatchNorm3d(first)
        self.conv2 = nn.Conv3d(first, second, 3, stride=strides[1], padding=1, groups=spec.groups, bias=False)
        self.bn2 = nn.BatchNorm3d(second)
        self.conv3 = nn.Conv3d(second, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.se_module = SqueezeExcite(outputs)
        self.downsample = None
        if projection is not None:
            self.downsample = nn.Sequential(
                nn.Conv3d(inputs, outputs, projection, stride=stride, padding=projection // 2, bias=False),
                nn.BatchNorm3d(outputs),
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.se_module(self.bn3(self.conv3(out)))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from all channel means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv3d(channels, channels // REDUCTION, 1)
        self.fc2 = nn.Conv3d(channels // REDUCTION, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.relu(self.fc1(F.adaptive_avg_pool3d(x, 1)))
        return x * torch.sigmoid(self.fc2(gate))

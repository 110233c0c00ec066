"""EfficientNet encoders in 3D (Tan and Le, arXiv:1905.11946)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smp3d_export.encoders.base import Encoder, Stage, drop_path
from smp3d_export.encoders.catalogue import EfficientNetSpec
from smp3d_export.encoders.spec import Strides, Triple

UNIT: Triple = (1, 1, 1)
DROP_PATH = 0.2

# B0's seven groups of blocks: expansion, kernel, channels, repeats, and the index of the stride of the first block.
GROUPS: tuple[tuple[int, int, int, int, int | None], ...] = (
    (1, 3, 16, 1, None),
    (6, 3, 24, 2, 1),
    (6, 5, 40, 2, 2),
    (6, 3, 80, 3, 3),
    (6, 5, 112, 3, None),
    (6, 5, 192, 4, 4),
    (6, 3, 320, 1, None),
)
STEM = 32
HEAD = 1280


class EfficientNetEncoder(Encoder):
    """A strided stem and seven groups of inverted residual blocks: five stages in all.

    Whatever the size of the volume, the convolutions pad like TensorFlow's "SAME" at the resolution that the network
    was designed for. The published weights were converted that way, and the graph stays independent of the size.
    """

    def __init__(self, spec: EfficientNetSpec, *, in_channels: int, depth: int, strides: Strides) -> None:
        super().__init__(spec, in_channels=in_channels, depth=depth, strides=strides)
        self.ends = spec.stage_ends
        size: Triple = (spec.resolution, spec.resolution, spec.resolution)
        width = scaled_width(STEM, spec.width)
        self._conv_stem = SamePadConv3d(in_channels, width, 3, strides[0], size=size)
        size = shrunk(size, strides[0])
        self._bn0 = batch_norm(width)
        self._swish = nn.SiLU(inplace=True)
        self._blocks = nn.ModuleList()
        total = sum(math.ceil(repeats * spec.depth) for _, _, _, repeats, _ in GROUPS)
        for expansion, kernel, channels, repeats, stage in GROUPS:
            outputs = scaled_width(channels, spec.width)
            for repeat in range(math.ceil(repeats * spec.depth)):
                stride = UNIT if stage is None or repeat else strides[stage]
                rate = DROP_PATH * len(self._blocks) / total
                self._blocks.append(InvertedResidual(width, outputs, expansion, kernel, stride, size, rate))
                size = shrunk(size, stride)
                width = outputs
        head = scaled_width(HEAD, spec.width)
        # No feature map needs the classifier's last convolution, but it is part of the state dict.
        self._conv_head = nn.Conv3d(width, head, 1, bias=False)
        self._bn1 = batch_norm(head)

    def stages(self) -> tuple[Stage, ...]:
        starts = (0, *self.ends[:-1])
        groups = (tuple(self._blocks[start:end]) for start, end in zip(starts, self.ends, strict=True))
        return ((self._conv_stem, self._bn0, self._swish), *groups)


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, squeeze-and-excitation, projection; a shortcut if the shape stays the same."""

    def __init__(
        self, inputs: int, outputs: int, expansion: int, kernel: int, stride: Triple, size: Triple, drop_rate: float
    ) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        width = inputs * expansion
        self.expands = expansion != 1
        if self.expands:
            self._expand_conv = nn.Conv3d(inputs, width, 1, bias=False)
            self._bn0 = batch_norm(width)
        self._depthwise_conv = SamePadConv3d(width, width, kernel, stride, size=size, groups=width)
        self._bn1 = batch_norm(width)
        squeezed = max(1, inputs // 4)
        self._se_reduce = nn.Conv3d(width, squeezed, 1)
        self._se_expand = nn.Conv3d(squeezed, width, 1)
        self._project_conv = nn.Conv3d(width, outputs, 1, bias=False)
        self._bn2 = batch_norm(outputs)
        self.shortcut = stride == UNIT and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out = F.silu(self._bn0(self._expand_conv(x))) if self.expands else x
        out = F.silu(self._bn1(self._depthwise_conv(out)))
        gate = F.silu(self._se_reduce(F.adaptive_avg_pool3d(out, 1)))
        out = torch.sigmoid(self._se_expand(gate)) * out
        out = self._bn2(self._project_conv(out))
        return x + drop_path(out, self.drop_rate, self.training) if self.shortcut else out


class SamePadConv3d(nn.Conv3d):
    """A convolution without bias, padded unevenly so that n = `size` voxels give `ceil(n / stride)`."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: Triple, *, size: Triple, groups: int = 1
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, groups=groups, bias=False)
        totals = [max((math.ceil(n / s) - 1) * s + kernel - n, 0) for n, s in zip(size, stride, strict=True)]
        h, w, d = (total // 2 for total in totals)
        self.padding = (h, w, d)
        # The extra padding at the end of each axis. F.pad starts at the last axis.
        self.extra = [extra for total in reversed(totals) for extra in (0, total % 2)]

    def forward(self, input: Tensor) -> Tensor:
        uneven = any(self.extra) and self.dilation == (1, 1, 1)  # dilated convolutions are padded evenly
        return super().forward(F.pad(input, self.extra) if uneven else input)


def batch_norm(channels: int) -> nn.BatchNorm3d:
    """Batch normalisation with TensorFlow's constants, which the published weights were trained with."""
    return nn.BatchNorm3d(channels, eps=1e-3, momentum=0.01)


def scaled_width(channels: int, factor: float) -> int:
    """`channels * factor`, rounded to a multiple of 8 but never down by more than 10 %."""
    scaled = channels * factor
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def shrunk(size: Triple, stride: Triple) -> Triple:
    h, w, d = (math.ceil(n / s) for n, s in zip(size, stride, strict=True))
    return h, w, d

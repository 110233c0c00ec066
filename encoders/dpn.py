"""Dual path networks in 3D (Chen et al., arXiv:1707.01629)."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smp3d_export.encoders.base import Encoder, Stage
from smp3d_export.encoders.catalogue import DPNSpec
from smp3d_export.encoders.spec import Strides, Triple

UNIT: Triple = (1, 1, 1)

# The residual path has the same channels throughout a stage; every block appends channels to the dense path.
Paths = tuple[Tensor, Tensor]


class DPNEncoder(Encoder):
    """A strided convolution, 3³ max pooling, then four groups of dual path blocks: five stages with one stride each.

    Between stages the two paths are concatenated into one map; the next stage projects it onto its own two paths.
    """

    def __init__(self, spec: DPNSpec, *, in_channels: int, depth: int, strides: Strides) -> None:
        super().__init__(spec, in_channels=in_channels, depth=depth, strides=strides)
        self.features = nn.Sequential()
        self.features.add_module("conv1_1", stem(spec, in_channels, strides))
        self.join = Join()
        inputs = spec.channels[0]
        self.ends = [0]  # block index at which each group ends
        groups = zip(spec.layers, spec.growths, (UNIT, *strides[2:]), strict=True)
        for number, (repeats, growth, stride) in enumerate(groups):
            width = spec.width << number
            residual = spec.base << number
            # Checkpoints use another name for the first group's projection, which has stride 1 by default.
            projection = "c1x1_w_s2" if number else "c1x1_w_s1"
            for repeat in range(1, repeats + 1):
                block = DualPathBlock(spec, inputs, width, residual, growth, stride, projection=projection)
                self.features.add_module(f"conv{number + 2}_{repeat}", block)
                inputs = residual + (repeat + 2) * growth
                stride, projection = UNIT, ""
            self.ends.append(self.ends[-1] + repeats)
        self.features.add_module("conv5_bn_ac", NormAct(inputs))

    def stages(self) -> tuple[Stage, ...]:
        entry, *blocks, last = self.features
        conv, bn, act, pool = entry.children()
        two, three, four, five = (
            (*blocks[start:end], self.join) for start, end in zip(self.ends[:-1], self.ends[1:], strict=True)
        )
        return ((conv, bn, act), (pool, *two), three, four, (*five, last))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W, D) to `depth + 1` feature maps, starting with the input; the others are non-negative."""
        image, *maps = super().forward(x)
        # The first and the last stage already end with a ReLU.
        return [image, *maps[:1], *map(F.relu, maps[1:4]), *maps[4:]]


def stem(spec: DPNSpec, in_channels: int, strides: Strides) -> nn.Sequential:
    """The first stage, and the pooling that starts the second."""
    kernel, width = spec.stem_kernel, spec.channels[0]
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv3d(in_channels, width, kernel, stride=strides[0], padding=kernel // 2, bias=False),
            bn=batch_norm(width),
            act=nn.ReLU(inplace=True),
            pool=nn.MaxPool3d(3, stride=strides[1], padding=1),
        )
    )


class Join(nn.Module):
    """Concatenates the two paths into one map."""

    def forward(self, paths: Paths) -> Tensor:
        return torch.cat(paths, dim=1)


class DualPathBlock(nn.Module):
    """1³, 3³ (grouped, strided) and 1³ convolutions; the result is added to one path and appended to the other.

    Args:
        spec: the row; `groups` applies to the 3³ convolution, and `split` gives each path its own last convolution.
        inputs: C of the input, both paths together.
        width: C between the convolutions.
        residual: C of the residual path.
        growth: how many channels the dense path gains.
        stride: stride of the block.
        projection: name of the convolution that splits a single map into the two paths, in the first block of a group;
            empty in the others.
    """

    def __init__(
        self,
        spec: DPNSpec,
        inputs: int,
        width: int,
        residual: int,
        growth: int,
        stride: Triple,
        *,
        projection: str,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.projection = projection
        if projection:
            self.add_module(projection, NormActConv(inputs, residual + 2 * growth, 1, stride))
        self.c1x1_a = NormActConv(inputs, width, 1)
        self.c3x3_b = NormActConv(width, width, 3, stride, groups=spec.groups)
        self.split = spec.split
        if spec.split:
            self.c1x1_c = NormAct(width)
            self.c1x1_c1 = nn.Conv3d(width, residual, 1, bias=False)
            self.c1x1_c2 = nn.Conv3d(width, growth, 1, bias=False)
        else:
            self.c1x1_c = NormActConv(width, residual + growth, 1)

    def forward(self, x: Tensor | Paths) -> Paths:
        """To the two paths, from the previous stage's map if the block has a projection, otherwise from two paths."""
        if isinstance(x, Tensor):
            residual, dense = self.split_paths(self.get_submodule(self.projection)(x))
        else:
            residual, dense = x
            x = torch.cat(x, dim=1)
        out = self.c1x1_c(self.c3x3_b(self.c1x1_a(x)))
        added, appended = (self.c1x1_c1(out), self.c1x1_c2(out)) if self.split else self.split_paths(out)
        return residual + added, torch.cat([dense, appended], dim=1)

    def split_paths(self, x: Tensor) -> Paths:
        return x[:, : self.residual], x[:, self.residual :]


class NormAct(nn.Module):
    """Batch normalisation and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = batch_norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(x), inplace=True)


class NormActConv(NormAct):
    """Batch normalisation, ReLU and a convolution."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: Triple = UNIT, *, groups: int = 1) -> None:
        super().__init__(inputs)
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(super().forward(x))


def batch_norm(channels: int) -> nn.BatchNorm3d:
    """Batch normalisation with MXNet's epsilon, which the published weights were trained with."""
    return nn.BatchNorm3d(channels, eps=1e-3)

"""MobileOne encoders in 3D (Vasu et al., arXiv:2206.04040).

During training a block is a sum of branches. The optimiser merges them into one convolution: see
`smp3d_export/optimise/parallel_conv.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smp3d_export.encoders.base import Encoder, Stage
from smp3d_export.encoders.catalogue import MobileOneSpec
from smp3d_export.encoders.spec import Strides, Triple

UNIT: Triple = (1, 1, 1)

# Pairs of a depthwise and a pointwise block in stages 2 to 5, and how many of the last ones have squeeze-and-excitation
# if the spec asks for it.
PAIRS = (2, 8, 10, 1)
EXCITED = (0, 0, 5, 1)


class MobileOneEncoder(Encoder):
    """A strided block, then four stages of alternating depthwise and pointwise blocks."""

    def __init__(self, spec: MobileOneSpec, *, in_channels: int, depth: int, strides: Strides) -> None:
        super().__init__(spec, in_channels=in_channels, depth=depth, strides=strides)
        width = spec.channels[0]
        self.stage0 = Block(in_channels, width, 3, stride=strides[0], skip=False)
        stages = []
        for outputs, pairs, excited, stride in zip(spec.channels[1:], PAIRS, EXCITED, strides[1:], strict=True):
            blocks = []
            for pair in range(pairs):
                se = spec.excited and pair >= pairs - excited
                # The strided block has no skip branch even at stride 1, so the state dict does not depend on strides.
                blocks += [
                    Block(
                        width,
                        width,
                        3,
                        stride=UNIT if pair else stride,
                        groups=width,
                        branches=spec.branches,
                        excited=se,
                        skip=pair > 0,
                    ),
                    Block(width, outputs, 1, branches=spec.branches, excited=se, skip=width == outputs),
                ]
                width = outputs
            stages.append(nn.Sequential(*blocks))
        self.stage1, self.stage2, self.stage3, self.stage4 = stages

    def stages(self) -> tuple[Stage, ...]:
        return ((self.stage0,), (self.stage1,), (self.stage2,), (self.stage3,), (self.stage4,))


class Block(nn.Module):
    """A sum of branches, each a convolution (full kernel, kernel 1, or none) and batch normalisation; then ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: Triple = UNIT,
        groups: int = 1,
        branches: int = 1,
        excited: bool = False,
        skip: bool,
    ) -> None:
        super().__init__()
        self.se = SqueezeExcitation(outputs) if excited else nn.Identity()
        self.activation = nn.ReLU(inplace=True)
        self.rbr_skip = nn.BatchNorm3d(inputs) if skip else None
        self.rbr_conv = nn.ModuleList(Branch(inputs, outputs, kernel, stride, groups) for _ in range(branches))
        self.rbr_scale = Branch(inputs, outputs, 1, stride, groups) if kernel > 1 else None

    @property
    def branches(self) -> list[Branch]:
        """The branches that have a convolution, starting with the full kernel."""
        return [module for module in (*self.rbr_conv, self.rbr_scale) if isinstance(module, Branch)]

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.branches
        out = first(x)
        for branch in others:
            out = out + branch(x)
        if self.rbr_skip is not None:
            out = out + self.rbr_skip(x)
        return self.activation(self.se(out))


class Branch(nn.Module):
    """A convolution without bias, and batch normalisation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: Triple, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm3d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate computed from all channel means (Hu et al., arXiv:1709.01507)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.reduce = nn.Conv3d(channels, channels // reduction, 1)
        self.expand = nn.Conv3d(channels // reduction, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.relu(self.reduce(F.adaptive_avg_pool3d(x, 1)))
        return x * torch.sigmoid(self.expand(gate))

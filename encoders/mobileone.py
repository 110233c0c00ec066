"""MobileOne encoders in 3D (Vasu et al., arXiv:2206.04040), and the folding of their branches.

A block is a sum of branches while it is trained, and one convolution once they are folded:

    sum_i bn_i(conv(x, w_i)) = conv(x, sum_i a_i w_i) + sum_i (beta_i - a_i mean_i),    a = gamma / sqrt(var + eps)

A branch with kernel 1 is one whose kernel is zero but for its middle, and the bare normalisation one whose middle is
the identity. With stride or dilation all of them read the same voxels, so this is exact there too.
"""

from __future__ import annotations

from copy import deepcopy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smp3d_export.encoders.base import Encoder, Stage
from smp3d_export.encoders.catalogue import MobileOneSpec
from smp3d_export.encoders.spec import Strides, Triple

UNIT: Triple = (1, 1, 1)

# Pairs of a depthwise and a pointwise block in stages 2 to 5, and how many of them, from the end, are excited where
# the spec asks for it.
PAIRS = (2, 8, 10, 1)
EXCITED = (0, 0, 5, 1)


class MobileOneEncoder(Encoder):
    """A strided block, then four stages of depthwise and pointwise blocks in turn."""

    def __init__(self, spec: MobileOneSpec, *, in_channels: int, depth: int, strides: Strides) -> None:
        super().__init__(spec, in_channels=in_channels, depth=depth, strides=strides)
        width = spec.channels[0]
        self.stage0 = Block(in_channels, width, 3, stride=strides[0], skip=False)
        stages = []
        for outputs, pairs, excited, stride in zip(spec.channels[1:], PAIRS, EXCITED, strides[1:], strict=True):
            blocks = []
            for pair in range(pairs):
                se = spec.excited and pair >= pairs - excited
                # The strided block has no skip branch, whatever its stride: the state dict does not depend on strides.
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
    """A sum of branches, each a batch normalisation behind a convolution, one of kernel 1 or nothing; then ReLU."""

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
        """Those with a convolution, one of the full kernel first."""
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
    """A convolution without bias and its batch normalisation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: Triple, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm3d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class SqueezeExcitation(nn.Module):
    """Channels weighed by what all voxels hold (Hu et al., arXiv:1709.01507)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.reduce = nn.Conv3d(channels, channels // reduction, 1)
        self.expand = nn.Conv3d(channels // reduction, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.relu(self.reduce(F.adaptive_avg_pool3d(x, 1)))
        return x * torch.sigmoid(self.expand(gate))


def fuse(model: nn.Module) -> int:
    """Replace every block in `model` by its folded form, in place; returns how many there were."""
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, Block)
    ]
    for parent, name, block in places:
        setattr(parent, name, reparameterized(block))
    return len(places)


@torch.no_grad()
def reparameterized(block: Block) -> nn.Sequential:
    """The block with its branches folded into one convolution with bias; equal in eval mode. `block` stays as it is.

    The weights are summed in double precision and rounded once.
    """
    like = block.branches[0].conv
    weight = torch.zeros_like(like.weight, dtype=torch.float64)
    bias = weight.new_zeros(like.out_channels)
    for branch in block.branches:
        scale, shift = affine(branch.bn)
        margins = [(whole - own) // 2 for whole, own in zip(like.kernel_size, branch.conv.kernel_size, strict=True)]
        kernel = scale[:, None, None, None, None] * branch.conv.weight.double()
        weight += F.pad(kernel, [margin for margin in reversed(margins) for _ in range(2)])
        bias += shift
    if block.rbr_skip is not None:
        scale, shift = affine(block.rbr_skip)
        h, w, d = (size // 2 for size in like.kernel_size)
        outputs = torch.arange(like.out_channels, device=weight.device)
        weight[outputs, outputs % weight.shape[1], h, w, d] += scale
        bias += shift
    conv = deepcopy(like)  # stride, padding, dilation and groups stay
    conv.weight = nn.Parameter(weight.to(like.weight.dtype))
    conv.bias = nn.Parameter(bias.to(like.weight.dtype))
    return nn.Sequential(conv, block.se, block.activation).train(block.training)


def affine(norm: nn.BatchNorm3d) -> tuple[Tensor, Tensor]:
    """Scale and shift, in double precision, that a normalisation amounts to in eval mode."""
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    scale = norm.weight.double() / torch.sqrt(variance.double() + norm.eps)
    return scale, norm.bias.double() - mean.double() * scale

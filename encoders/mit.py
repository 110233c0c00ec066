"""Mix Vision Transformer encoders in 3D, from SegFormer (Xie et al., arXiv:2105.15203)."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from smp3d_export.encoders.base import Encoder, Stage, drop_path
from smp3d_export.encoders.catalogue import MixVisionTransformerSpec
from smp3d_export.encoders.spec import STAGES, Strides, Triple, product
from smp3d_export.errors import UsageError

DROP_PATH = 0.1
EXPANSION = 4

# For stages 2 to 5: attention heads, and by how much each axis shrinks for the keys and values.
HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)

# The published weights were trained with this epsilon in the norms before each branch and after the last block. The
# norms after a convolution (patch embedding, reduced map) use the default.
EPS = 1e-6


class MixVisionTransformerEncoder(Encoder):
    """Overlapping patch embeddings, each followed by transformer blocks; the first stage gives no feature map.

    The first embedding has the strides of stages 1 and 2 together. Inside a stage the axes are (N, H, W, D, C), so
    normalisations and linear layers need no reshaping and no size enters the graph.

    Raises:
        UsageError: the depth is 1; the first stage gives only an empty map.
    """

    def __init__(self, spec: MixVisionTransformerSpec, *, in_channels: int, depth: int, strides: Strides) -> None:
        super().__init__(spec, in_channels=in_channels, depth=depth, strides=strides)
        if depth < 2:
            raise UsageError(
                f"encoder_depth is {depth}, but {spec.name} gives no feature map from the first stage: "
                f"use 2 to {STAGES}"
            )
        first, *others = spec.channels[1:]
        self.patch_embed1 = PatchEmbedding(in_channels, first, 7, product(strides[:2]))
        self.patch_embed2, self.patch_embed3, self.patch_embed4 = (
            PatchEmbedding(inputs, outputs, 3, stride)
            for inputs, outputs, stride in zip(spec.channels[1:], others, strides[2:], strict=False)
        )
        rates = iter(DROP_PATH * number / (sum(spec.layers) - 1) for number in range(sum(spec.layers)))
        stages = []
        for width, repeats, heads, reduction in zip(spec.channels[1:], spec.layers, HEADS, REDUCTIONS, strict=True):
            blocks = (Block(width, heads, reduction, next(rates)) for _ in range(repeats))
            stages.append((nn.ModuleList(blocks), nn.LayerNorm(width, eps=EPS)))
        # Assigned in the order of the state dict: each stage's blocks, then its norm.
        self.block1, self.norm1 = stages[0]
        self.block2, self.norm2 = stages[1]
        self.block3, self.norm3 = stages[2]
        self.block4, self.norm4 = stages[3]

    @property
    def min_size(self) -> Triple:
        """The smallest volume (H, W, D): each stage's map must be at least as large as its attention's reduction."""
        total = self.total_stride
        minimum = list(total)
        for stage, reduction in zip(range(2, self.depth + 1), REDUCTIONS, strict=False):
            for axis, stride in enumerate(product(self.strides[:stage])):
                minimum[axis] = max(minimum[axis], math.ceil(reduction * stride / total[axis]) * total[axis])
        h, w, d = minimum
        return h, w, d

    def stages(self) -> tuple[Stage, ...]:
        blocks = (self.block1, self.block2, self.block3, self.block4)
        embeds = (self.patch_embed1, self.patch_embed2, self.patch_embed3, self.patch_embed4)
        norms = (self.norm1, self.norm2, self.norm3, self.norm4)
        return ((), *((embed, *block, norm) for embed, block, norm in zip(embeds, blocks, norms, strict=True)))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W, D) to `depth + 1` feature maps, starting with the input; the second has no channels."""
        h, w, d = self.strides[0]
        features = [x, x[:, :0, ::h, ::w, ::d]]
        for stage in self.stages()[1 : self.depth]:
            for layer in stage:
                x = layer(x)
            x = x.movedim(-1, 1).contiguous()
            features.append(x)
        return features


class PatchEmbedding(nn.Module):
    """A strided convolution with overlapping patches, (N, C, H, W, D) to (N, H', W', D', C')."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: Triple) -> None:
        super().__init__()
        self.proj = Conv3d(inputs, outputs, kernel, stride=stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).movedim(1, -1))


class Block(nn.Module):
    """Attention over all voxels, then a feed-forward layer that sees neighbours; each is added to its input."""

    def __init__(self, width: int, heads: int, reduction: int, drop_rate: float) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, heads, reduction)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = MixFeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + drop_path(self.attn(self.norm1(x)), self.drop_rate, self.training)
        return x + drop_path(self.mlp(self.norm2(x)), self.drop_rate, self.training)


class Attention(nn.Module):
    """Self-attention that keeps the shape (N, H, W, D, C); keys and values come from a map `reduction` times smaller.

    Voxels beyond the last multiple of `reduction` give no keys.
    """

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.reduces = reduction > 1
        self.q = Linear(width, width)
        self.kv = Linear(width, 2 * width)
        self.proj = Linear(width, width)
        if self.reduces:
            self.sr = Conv3d(width, width, reduction, stride=reduction)
            self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        source = self.norm(self.sr(x.movedim(-1, 1)).movedim(1, -1)) if self.reduces else x
        keys, values = self.kv(source).chunk(2, dim=-1)
        out = F.scaled_dot_product_attention(self.tokens(self.q(x)), self.tokens(keys), self.tokens(values))
        return self.proj(out.transpose(1, 2).reshape(x.shape))

    def tokens(self, x: Tensor) -> Tensor:
        """(N, H, W, D, C) to (N, heads, H * W * D, C / heads)."""
        return x.flatten(1, 3).unflatten(-1, (self.heads, -1)).transpose(1, 2)


class MixFeedForward(nn.Module):
    """Two linear layers with a depthwise convolution between them, which replaces a positional encoding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = EXPANSION * width
        self.fc1 = Linear(width, hidden)
        self.dwconv = nn.Sequential(OrderedDict(dwconv=Conv3d(hidden, hidden, 3, padding=1, groups=hidden)))
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dwconv(self.fc1(x).movedim(-1, 1)).movedim(1, -1)
        return self.fc2(F.gelu(x))


class Linear(nn.Linear):
    """A linear layer initialised with a truncated normal (std 0.02), as in transformers, and a zero bias."""

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)


class Conv3d(nn.Conv3d):
    """A convolution initialised by its fan-out per group, with a zero bias."""

    def reset_parameters(self) -> None:
        fan_out = math.prod(self.kernel_size) * self.out_channels // self.groups
        nn.init.normal_(self.weight, std=math.sqrt(2 / fan_out))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

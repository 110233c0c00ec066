"""The base class of all encoder families, and the layers that several of them share."""

from __future__ import annotations

import abc

import torch
from torch import Tensor, nn

from smp3d_export.encoders.spec import EncoderSpec, Strides, Triple, product
from smp3d_export.errors import UsageError

Stage = tuple[nn.Module, ...]

# Output stride -> {dilated stage: its dilation}.
DILATIONS = {16: {5: 2}, 8: {4: 2, 5: 4}}


class Encoder(nn.Module, abc.ABC):
    """A backbone that returns its feature maps, finest first.

    Args:
        spec: the row of the table.
        in_channels: C of the input.
        depth: how many stages run, 1 to 5. The layers of the other stages exist too, so the state dict always
            covers the whole backbone.
        strides: five (H, W, D) triples, one per stage.

    Attributes:
        out_channels: C of each feature map, starting with the input.
        strides: strides of the stages that run.
        total_stride: their product.
    """

    def __init__(self, spec: EncoderSpec, *, in_channels: int, depth: int, strides: Strides) -> None:
        super().__init__()
        self.spec = spec
        self.in_channels = in_channels
        self.depth = depth
        self.strides = strides[:depth]
        self.out_channels = (spec.entry_channels or in_channels, *spec.channels[:depth])

    @property
    def total_stride(self) -> Triple:
        """The product of the strides that are really applied, per volume axis."""
        return product(self.strides)

    @property
    def multiple(self) -> Triple:
        """What each volume axis of an input must be a multiple of."""
        return self.total_stride

    @property
    def min_size(self) -> Triple:
        """The smallest volume (H, W, D) that the encoder takes."""
        return self.total_stride

    @abc.abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """The layers of the five stages in order. Stage i maps feature map i to feature map i + 1."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W, D) to `depth + 1` feature maps, starting with the input."""
        features = [x]
        for stage in self.stages()[: self.depth]:
            for layer in stage:
                x = layer(x)
            features.append(x)
        return features

    def dilate(self, output_stride: int) -> None:
        """Stop downsampling at `output_stride` (8 or 16): stages 4 and 5, or only 5, trade their stride for dilation.

        Raises:
            UsageError: the family cannot be dilated, or `output_stride` is not 8, 16 or 32.
        """
        if output_stride == 32:
            return
        if output_stride not in DILATIONS:
            raise UsageError(f"encoder_output_stride is {output_stride}; it must be 8, 16 or 32")
        if self.spec.undilatable:
            raise UsageError(f"{self.spec.name} cannot be dilated: {self.spec.undilatable}")
        strides = list(self.strides)
        for number, dilation in DILATIONS[output_stride].items():
            if number > self.depth:
                continue
            strides[number - 1] = (1, 1, 1)
            for layer in self.stages()[number - 1]:
                for module in layer.modules():
                    if isinstance(module, nn.Conv3d):
                        dilate_conv(module, dilation)
        self.strides = tuple(strides)


def dilate_conv(conv: nn.Conv3d, dilation: int) -> None:
    """Set stride 1, the dilation, and the padding that keeps the size (for odd kernels)."""
    h, w, d = (size // 2 * dilation for size in conv.kernel_size)
    conv.stride = (1, 1, 1)
    conv.dilation = (dilation,) * 3
    conv.padding = (h, w, d)


class Conv3d(nn.Conv3d):
    """A convolution with He initialisation for ReLU by fan-out (He et al., arXiv:1502.01852) and zero biases."""

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth (Huang et al., arXiv:1603.09382): drops a sample's residual branch with probability `rate`."""
    if not training or rate == 0.0:
        return x
    keep = 1.0 - rate
    mask = torch.empty((x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device).bernoulli_(keep)
    return x * mask / keep

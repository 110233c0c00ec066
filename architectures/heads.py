"""What stands on a decoder (segmentation) or on the last feature map (classification)."""

from __future__ import annotations

from torch import nn

from smp3d_export.architectures.layers import Activation, ActivationArgument
from smp3d_export.errors import UsageError


class SegmentationHead(nn.Sequential):
    """(N, C, H, W, D) to (N, classes, H, W, D): a convolution and the activation."""

    def __init__(self, inputs: int, classes: int, *, kernel: int = 3, activation: ActivationArgument = None) -> None:
        super().__init__(
            nn.Conv3d(inputs, classes, kernel, padding=kernel // 2),
            nn.Identity(),
            Activation(activation),
        )


class ClassificationHead(nn.Sequential):
    """(N, C, H, W, D) to (N, classes): global pooling, dropout, a linear layer and the activation.

    Raises:
        UsageError: `pooling` is neither `avg` nor `max`.
    """

    def __init__(
        self,
        inputs: int,
        classes: int,
        pooling: str = "avg",
        dropout: float | None = 0.2,
        activation: ActivationArgument = None,
    ) -> None:
        if pooling not in ("avg", "max"):
            raise UsageError(f"pooling of aux_params is {pooling!r}; it must be avg or max")
        super().__init__(
            nn.AdaptiveAvgPool3d(1) if pooling == "avg" else nn.AdaptiveMaxPool3d(1),
            nn.Flatten(),
            nn.Dropout(dropout, inplace=True) if dropout else nn.Identity(),
            nn.Linear(inputs, classes),
            Activation(activation),
        )

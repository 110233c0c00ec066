"""The heads on the decoder (segmentation) and on the last feature map (classification)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from smp3d_export.architectures.layers import Activation, ActivationArgument
from smp3d_export.encoders.spec import Triple
from smp3d_export.errors import UsageError

UpsamplingArgument = int | Sequence[int] | None


class SegmentationHead(nn.Sequential):
    """(N, C, H, W, D) to (N, classes, H·s, W·s, D·s): a convolution, trilinear upsampling and the activation.

    `upsampling` has the factor s of each volume axis; if all are 1, nothing is upsampled.
    """

    def __init__(
        self,
        inputs: int,
        classes: int,
        *,
        kernel: int = 3,
        activation: ActivationArgument = None,
        upsampling: Triple = (1, 1, 1),
    ) -> None:
        h, w, d = (float(s) for s in upsampling)
        super().__init__(
            nn.Conv3d(inputs, classes, kernel, padding=kernel // 2),
            nn.Identity()
            if upsampling == (1, 1, 1)
            else nn.Upsample(scale_factor=(h, w, d), mode="trilinear", align_corners=False),
            Activation(activation),
        )


def as_upsampling(upsampling: UpsamplingArgument, missing: Triple) -> Triple:
    """The argument `upsampling` of an architecture as three factors for H, W and D.

    One number applies to all three axes. None gives `missing`, the factors that restore the input's size.

    Raises:
        UsageError: it is neither a positive whole number nor three of them.
    """
    if upsampling is None:
        return missing
    factors = tuple(upsampling) if isinstance(upsampling, Sequence) else (upsampling,) * 3
    if len(factors) != 3 or any(not isinstance(s, int) or s < 1 for s in factors):
        raise UsageError(
            f"upsampling is {upsampling}; it takes a positive whole number, three of them for H, W and D, "
            "or None for masks of the input's size"
        )
    return factors


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

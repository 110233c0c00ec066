"""VGG encoders in 3D (Simonyan and Zisserman, arXiv:1409.1556), with and without batch normalisation."""

from __future__ import annotations

from torch import Tensor, nn

from smp3d_export.encoders.base import Conv3d, Encoder, Stage
from smp3d_export.encoders.catalogue import VGGSpec
from smp3d_export.encoders.spec import Strides

WIDTHS = (64, 128, 256, 512, 512)


class VGGEncoder(Encoder):
    """Five groups of 3³ convolutions, each followed by max pooling; the first group gives the full-size feature map.

    A stage is a pooling and the group after it. The last stage is a pooling alone.
    """

    def __init__(self, spec: VGGSpec, *, in_channels: int, depth: int, strides: Strides) -> None:
        super().__init__(spec, in_channels=in_channels, depth=depth, strides=strides)
        layers: list[nn.Module] = []
        inputs = in_channels
        for repeats, outputs, stride in zip(spec.layers, WIDTHS, strides, strict=True):
            for _ in range(repeats):
                layers.append(Conv3d(inputs, outputs, 3, padding=1))
                if spec.batchnorm:
                    layers.append(nn.BatchNorm3d(outputs))
                layers.append(nn.ReLU(inplace=True))
                inputs = outputs
            layers.append(nn.MaxPool3d(stride, stride=stride))
        self.features = nn.Sequential(*layers)
        self.pools = [number for number, layer in enumerate(layers) if isinstance(layer, nn.MaxPool3d)]

    def stages(self) -> tuple[Stage, ...]:
        layers = tuple(self.features)
        ends = (*self.pools[1:], len(layers))
        return tuple(layers[start:end] for start, end in zip(self.pools, ends, strict=True))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W, D) to `depth + 1` feature maps, the first at full size."""
        for layer in tuple(self.features)[: self.pools[0]]:
            x = layer(x)
        return super().forward(x)

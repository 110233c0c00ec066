"""Networks of a user's, as `file.py:name` names them. The file imports nothing of this package."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Net(nn.Module):
    """One encoder stage and its decoder; it needs multiples of 4."""

    def __init__(self, channels: int = 1, classes: int = 2, width: int = 4) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv3d(channels, width, 3, padding=1), nn.InstanceNorm3d(width, affine=True))
        self.down = nn.Conv3d(width, width, 4, stride=4)
        self.up = nn.ConvTranspose3d(width, width, 4, stride=4)
        self.head = nn.Conv3d(2 * width, classes, 1)

    def features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        skip = F.leaky_relu(self.first(image))
        return skip, self.down(skip)

    def forward(self, image: Tensor) -> Any:
        skip, deep = self.features(image)
        return self.head(torch.cat([skip, self.up(deep)], 1))


class PadsOddSizes(Net):
    """Control flow on shapes: any size runs, and what it runs depends on the size."""

    def forward(self, image: Tensor) -> Tensor:
        skip, deep = self.features(image)
        up = self.up(deep)
        missing = [skip.shape[axis] - up.shape[axis] for axis in (4, 3, 2)]
        if any(size != 0 for size in missing):
            up = F.pad(up, [size for more in missing for size in (0, more)])
        return self.head(torch.cat([skip, up], 1))


class Named(NamedTuple):
    masks: Tensor
    deep: Tensor


class TwoOutputs(Net):
    def forward(self, image: Tensor) -> Named:
        skip, deep = self.features(image)
        return Named(self.head(torch.cat([skip, self.up(deep)], 1)), deep)


class Nested(Net):
    """A dict with a list in it, and something that is no tensor."""

    def forward(self, image: Tensor) -> dict[str, Any]:
        skip, deep = self.features(image)
        masks = self.head(torch.cat([skip, self.up(deep)], 1))
        return {"masks": masks, "heads": [deep, deep.mean((2, 3, 4))], "loss": None, "kind": "net"}


class BufferInForward(Net):
    """Coordinates made anew for each size."""

    def forward(self, image: Tensor) -> Tensor:
        ramp = torch.arange(image.shape[2], device=image.device) / image.shape[2]
        skip, deep = self.features(image + ramp[None, None, :, None, None])
        return self.head(torch.cat([skip, self.up(deep)], 1))


class UpsampleBySize(Net):
    def forward(self, image: Tensor) -> Tensor:
        skip, deep = self.features(image)
        up = nn.Upsample(size=skip.shape[2:], mode="trilinear", align_corners=False)(deep)
        return self.head(torch.cat([skip, up], 1))


class FixedSize(Net):
    """A position embedding for 8×8×8 voxels."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.linspace(-1, 1, 512).reshape(1, 1, 8, 8, 8))

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image + self.position)


class LooksAtValues(Net):
    def forward(self, image: Tensor) -> Tensor:
        if image.sum() > 0:
            image = image * 2
        return super().forward(image)


class FixesItsSize(Net):
    """`linspace` takes plain numbers alone."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image + torch.linspace(0, 1, image.shape[2])[None, None, :, None, None])


class TwoInputs(Net):
    def forward(self, image: Tensor, mask: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(image * mask)


class Probability(Net):
    """One class, as a probability."""

    def __init__(self) -> None:
        super().__init__(classes=1)

    def forward(self, image: Tensor) -> Tensor:
        return torch.sigmoid(super().forward(image))


class Flat(nn.Module):
    """A network for images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.conv(image)


class ReturnsNothing(Net):
    def forward(self, image: Tensor) -> None:
        return None


def build(classes: int, channels: int = 1) -> Net:
    return Net(channels, classes)


def raises() -> Net:
    raise RuntimeError("no licence")


def returns_a_number() -> int:
    return 3


SETTINGS = {"classes": 3}
ready = Net()

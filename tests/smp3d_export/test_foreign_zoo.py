"""Networks of MONAI: the sizes that are found for them, and the range in which one graph of them is right."""

from __future__ import annotations

import foreign
import pytest
from monai.networks.nets.unet import UNet
from monai.networks.nets.unetr import UNETR
from torch import Tensor, nn

from smp3d_export.program.outputs import named
from smp3d_export.progress import Reporter
from smp3d_export.sources.foreign import UserModule
from smp3d_export.sources.request import Request
from smp3d_export.sources.sizes import find, trial

SHAPE = (1, 1, 32, 32, 32)

# Network -> what H, W and D must be multiples of, the smallest that it runs at, and whether it takes one size only.
FOUND: dict[str, tuple[nn.Module, int, int, bool]] = {
    "instance norm needs two voxels": (UNet(3, 1, 2, (4, 8, 8), (2, 2)), 4, 8, False),
    "one size": (UNETR(1, 2, (32, 32, 32), 4, 12, 24, 2), 32, 32, True),
}


@pytest.mark.parametrize("name", FOUND)
def test_the_sizes_that_are_found(name: str) -> None:
    model, multiple, smallest, fixed = FOUND[name]
    model.eval()

    def run(image: Tensor) -> tuple[Tensor, ...]:
        return tuple(named(model(image)).values())

    needs = find(trial(run, SHAPE), SHAPE)
    assert (needs.multiple, needs.min_size) == ((multiple,) * 3, (smallest,) * 3)
    assert needs.fixed == (fixed,) * 3


class OtherwiseIfSmall(foreign.Net):
    """One graph is right for multiples of 4 from 8 up. Multiples of 8 would do too, but would leave out 12."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image) * (2 if image.shape[2] < 8 else 1)


def test_the_smallest_size_grows_before_multiples_do() -> None:
    request = Request(source=UserModule(module=OtherwiseIfSmall()), device="cpu", shape=(1, 1, 8, 8, 8))
    contract = request.source.open(request, Reporter()).contract
    assert contract.min == (1, 1, 8, 8, 8)
    assert contract.multiple == (4, 4, 4)

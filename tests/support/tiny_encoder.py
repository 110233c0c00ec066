"""An encoder of a few channels, for tests that export a network many times: its Unet takes two seconds."""

from __future__ import annotations

import pytest

from smp3d_export import encoders
from smp3d_export.encoders import catalogue, index, vgg

WIDTHS = (4, 4, 8, 8, 8)
SPEC = catalogue.VGGSpec(
    name="tiny", channels=(*WIDTHS[1:], WIDTHS[-1]), parameters=5_520, layers=(1, 1, 1, 1, 1), batchnorm=True
)
TINY = ("unet", SPEC.name, "--encoder-depth", "2", "--decoder-channels", "8,4", "--shape", "1,1,16,12,8")


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the encoder into the registry."""
    monkeypatch.setattr(vgg, "WIDTHS", WIDTHS)
    monkeypatch.setattr(encoders, "ENCODERS", index((*catalogue.SPECS, SPEC)))

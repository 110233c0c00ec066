"""Follows the page on adding an encoder: its row is registered like those of the table, built, run and exported."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from smp3d_export import encoders
from smp3d_export.architectures import create_model
from smp3d_export.encoders import EncoderSpec, catalogue, get_encoder_names, index
from smp3d_export.errors import UsageError

PAGE = Path(__file__).parents[2] / "docs/adding-an-encoder.md"


@pytest.fixture
def row(monkeypatch: pytest.MonkeyPatch) -> EncoderSpec:
    """The row from the page, added to the registry."""
    text = re.search(r"```python\n(.+?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert text is not None
    spec = eval(text[1], vars(catalogue).copy())
    monkeypatch.setattr(encoders, "ENCODERS", index((*catalogue.SPECS, spec)))
    return spec


def test_there_is_no_such_encoder_yet(row: EncoderSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(UsageError, match=f"no encoder '{row.name}'"):
        create_model("unet", row.name, None)


def test_the_row_is_all_it_takes(row: EncoderSpec) -> None:
    assert row.name in get_encoder_names()
    model = create_model("unet", row.name, None, in_channels=1, strides=[(2, 2, 1), *[(2, 2, 2)] * 4]).eval()
    assert sum(p.numel() for p in model.encoder.parameters()) == row.parameters
    image = torch.randn(1, 1, *model.min_size)
    with torch.inference_mode():
        assert tuple(m.shape[1] for m in model.encoder(image)) == (1, *row.channels)
        assert model(image).shape == image.shape


def test_it_exports_like_any_other(row: EncoderSpec, cli, tmp_path: Path) -> None:
    network = ("unet", row.name, "--encoder-depth", "3", "--decoder-channels", "16,8,8")
    result = cli(*network, "--shape", "1,1,32,24,16", "--no-bench", "-o", tmp_path / "artifact")
    assert result.exit_code == 0, result.output

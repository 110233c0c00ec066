"""Networks beside figures of the published package: state-dict keys in order, parameters, outputs, feature maps."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
import torch
from reference import disagreement, fill, reference, reference_input

from smp3d_export import create_model
from smp3d_export.architectures import ARCHITECTURES
from smp3d_export.encoders import ENCODERS

CASES = [case for case in reference("golden.json") if case["arch"] in ARCHITECTURES and case["encoder"] in ENCODERS]

# Over 2 GB and half a minute each; the same code with other columns as smaller cases.
LARGE = {"resnext101_32x16d"}


def title(case: dict[str, Any]) -> str:
    return f"{case['arch']}-{case['encoder']}-{'-'.join(case['kwargs'])}"


@pytest.mark.parametrize("case", [case for case in CASES if case["encoder"] not in LARGE], ids=title)
def test_agrees_with_the_published_package(case: dict[str, Any]) -> None:
    model = create_model(
        case["arch"], case["encoder"], None, case["in_channels"], case["classes"], **case["kwargs"]
    ).eval()
    listing = "\n".join(f"{key}:{','.join(map(str, value.shape))}" for key, value in model.state_dict().items())
    assert sum(p.numel() for p in model.parameters()) == case["params"]
    assert zlib.crc32(listing.encode()) == case["keys_crc"]

    fill(model)
    image = reference_input(case["input"])
    with torch.inference_mode():
        outputs = model(image)
        maps = model.encoder(image) if "features" in case else []
    masks, *labels = outputs if isinstance(outputs, tuple) else (outputs,)
    pairs = [(masks, case["output"]), *zip(labels, [case["labels"]] if "labels" in case else [], strict=True)]
    pairs += [(m, f) for m, f in zip(maps, case.get("features", []), strict=True) if m.numel()]
    assert max(disagreement(tensor, summary) for tensor, summary in pairs) <= 1e-4

"""Networks against figures of the published package: state-dict keys in order, parameters, outputs, feature maps.

By default one case per family and one or two per architecture with its arguments; the others with `pytest -m slow`.
"""

from __future__ import annotations

import zlib
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from reference import disagreement, fill, reference, reference_input

from smp3d_export import create_model
from smp3d_export.encoders.spec import TIMM_PREFIX

TIMM = pytest.mark.skipif(find_spec("timm_3d") is None, reason="timm_3d is not installed")

# Of the Unets without arguments, those with these encoders always run. The others are the same code with other columns.
QUICK = {"resnet18", "se_resnext50_32x4d", "densenet121", "efficientnet-b0", "dpn68", "mit_b0", "mobileone_s1"}

# Larger cases of what smaller ones have.
LARGE = {
    ("Unet", "resnet50"), ("MAnet", "densenet121"), ("Linknet", "resnet18"), ("FPN", "resnet34"),
    ("PSPNet", "resnet34"), ("DeepLabV3", "resnext50_32x4d"), ("DeepLabV3Plus", "resnet18"),
    ("UPerNet", "densenet121"), ("Segformer", "resnet34"),
}  # fmt: skip


def cases() -> list[Any]:
    params = []
    for case in reference("golden.json"):
        family_case = case["arch"] == "Unet" and not case["kwargs"]
        slow = (family_case and case["encoder"] not in QUICK) or (case["arch"], case["encoder"]) in LARGE
        marks = [pytest.mark.slow] if slow else []
        if case["encoder"].startswith(TIMM_PREFIX):
            marks = [TIMM]
        params.append(pytest.param(case, marks=marks, id="-".join([case["arch"], case["encoder"], *case["kwargs"]])))
    return params


@pytest.mark.parametrize("case", cases())
def test_agrees_with_the_published_package(case: dict[str, Any]) -> None:
    with torch.device("meta"):  # the weights are filled in below
        model = create_model(
            case["arch"], case["encoder"], None, case["in_channels"], case["classes"], **case["kwargs"]
        ).eval()
    listing = "\n".join(f"{key}:{','.join(map(str, value.shape))}" for key, value in model.state_dict().items())
    assert sum(p.numel() for p in model.parameters()) == case["params"]
    assert zlib.crc32(listing.encode()) == case["keys_crc"]

    model.to_empty(device="cpu")
    fill(model)
    image = reference_input(case["input"])
    maps: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, inputs: Any, features: Any) -> None:
        maps.extend(features)

    model.encoder.register_forward_hook(keep)
    with torch.inference_mode():
        outputs = model(image)
    masks, *labels = outputs if isinstance(outputs, tuple) else (outputs,)
    pairs = [(masks, case["output"]), *zip(labels, [case["labels"]] if "labels" in case else [], strict=True)]
    if "features" in case:
        pairs += zip(maps, case["features"], strict=True)
    assert max(disagreement(tensor, summary) for tensor, summary in pairs) <= 1e-4

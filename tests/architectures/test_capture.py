"""A network captured once with dynamic axes, rewritten and exported to ONNX agrees at shapes not traced.

So it does in an operator set that is older than the exporter's.

A sample: every architecture, every family and uneven strides. Deeper networks and further strides by `pytest -m slow`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from families import FAMILIES, STRIDES
from making import export, load, manifest
from onnx import helper

from smp3d_export.architectures import ARCHITECTURES
from smp3d_export.arrays import volume
from smp3d_export.contract import ShapeContract
from smp3d_export.encoders import encoder_spec
from smp3d_export.onnxgraph.opset import EXPORTED, OLDEST, lower_opset, opset_of
from smp3d_export.onnxgraph.session import outputs_of, session_of
from smp3d_export.optimise import optimise
from smp3d_export.program.capture import capture
from smp3d_export.settings import Settings
from smp3d_export.sources.named import NamedNetwork, build
from smp3d_export.sources.network import Network
from smp3d_export.validators.parity import Case, Reference, compare
from smp3d_export.validators.tolerances import tolerance

SHALLOW = ((2, 2, 2), (2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1))
GELU = "mit"
MAX_POOLED = {"classes": 2, "pooling": "max"}

# An encoder, or a family, whose smallest is meant. In few layers: tracing takes time for every operator.
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("Unet", "mit", {"encoder_depth": 2, "decoder_channels": (16, 8), "aux_params": {"classes": 2}}),
    ("Unet", "mobileone", {"encoder_depth": 2, "decoder_channels": (16, 8)}),
    ("UnetPlusPlus", "densenet", {"encoder_depth": 2, "decoder_channels": (16, 8), "activation": "argmax"}),
    ("MAnet", "dpn", {"encoder_depth": 2, "decoder_channels": (16, 8), "decoder_pab_channels": 8}),
    ("Linknet", "senet", {"encoder_depth": 2}),
    ("FPN", "vgg", {"encoder_depth": 3, "decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32}),
    ("PSPNet", "efficientnet", {"encoder_depth": 2, "psp_out_channels": 16, "aux_params": MAX_POOLED}),
    ("PAN", "vgg", {"decoder_channels": 16, "encoder_output_stride": 32, "strides": SHALLOW}),
    ("DeepLabV3", "resnet18", {"encoder_depth": 4, "decoder_channels": 16}),
    ("DeepLabV3Plus", "resnet18", {"encoder_depth": 3, "decoder_channels": 16}),
    ("UPerNet", "vgg", {"encoder_depth": 3, "decoder_channels": 16}),
    ("Segformer", "vgg", {"encoder_depth": 3, "decoder_segmentation_channels": 16}),
]
# More layers.
DEEPER: list[tuple[str, str, dict[str, Any]]] = [
    ("Unet", "mit", {"encoder_depth": 3, "decoder_channels": (16, 8, 8), "aux_params": {"classes": 2}}),
    ("UnetPlusPlus", "densenet", {"encoder_depth": 3, "decoder_channels": (32, 16, 8), "activation": "argmax"}),
    ("Linknet", "vgg", {"encoder_depth": 3}),
    ("FPN", "mobileone", {"encoder_depth": 3, "decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32}),
    ("PSPNet", "efficientnet", {"psp_out_channels": 16, "aux_params": MAX_POOLED}),
    ("PAN", "resnet", {"decoder_channels": 16, "strides": SHALLOW}),
    ("DeepLabV3", "efficientnet", {"encoder_depth": 4, "decoder_channels": 16}),
    ("DeepLabV3Plus", "senet", {"encoder_depth": 3, "decoder_channels": 16}),
    ("UPerNet", "mit", {"encoder_depth": 3, "decoder_channels": 16}),
]


def strided(family: str, which: str) -> tuple[str, str, dict[str, Any]]:
    """A Unet with a set of strides, cut to three stages."""
    return "Unet", family, {"encoder_depth": 3, "decoder_channels": (16, 8, 8), "strides": STRIDES[which][:3]}


CASES.append(strided("vgg", "with-4"))
# The sets in turn.
SLOW = [*DEEPER, *(strided(family, [*STRIDES][n % 3]) for n, family in enumerate(FAMILIES))]


def title(case: tuple[str, str, dict[str, Any]]) -> str:
    name, encoder, arguments = case
    return "-".join([name, encoder, *(key for key in arguments if key in ("strides", "aux_params"))])


PARAMS = [pytest.param(case, marks=pytest.mark.slow if case in SLOW else [], id=title(case)) for case in CASES + SLOW]


@dataclass(frozen=True)
class Made:
    network: Network
    contract: ShapeContract
    folder: Path


@pytest.fixture(scope="module")
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A network of the table, captured, rewritten and exported to ONNX once for all tests."""
    case: tuple[str, str, dict[str, Any]] = request.param
    name, encoder, arguments = case
    arguments = {"in_channels": 1, "classes": 2, **arguments}
    network = build(NamedNetwork(architecture=name, encoder=FAMILIES.get(encoder, encoder), arguments=arguments))
    min_size, multiple = network.model.min_size, network.model.multiple
    # From the smallest volume to one step beyond the traced size on each axis.
    middle = [size + step * k for step, size, k in zip((2, 1, 0), min_size, multiple, strict=True)]
    contract = ShapeContract.of(
        (1, 1, *middle),
        multiple=multiple,
        min_size=min_size,
        max=(2, 1, *(size + 2 * k for size, k in zip(min_size, multiple, strict=True))),
    )
    captured = optimise(capture(network.model, contract)).captured
    folder = tmp_path_factory.mktemp("made")
    # The oldest operator set of the exporter, which can be lowered further; the usual one for what it has of its own.
    export("onnx", captured, folder, Settings() if encoder == GELU else Settings(opset=EXPORTED[0]))
    return Made(network, contract, folder)


def test_the_sample_has_every_architecture_and_every_family() -> None:
    assert {name for name, _, _ in CASES} == set(ARCHITECTURES)
    assert {encoder_spec(FAMILIES.get(encoder, encoder)).family for _, encoder, _ in CASES} == set(FAMILIES)


@pytest.mark.parametrize("made", PARAMS, indirect=True)
def test_onnx_agrees_at_shapes_that_were_not_traced(made: Made) -> None:
    contract = made.contract
    runner = load(made.folder, manifest("onnx", contract))
    shapes = {shape for shape in contract.parity_shapes().values() if shape != contract.max}
    assert contract.example() not in shapes
    reference = Reference(made.network, [Case(str(shape), shape, partial(volume, shape, 0)) for shape in shapes])
    parity = compare(runner, reference, tolerance("fp32", "onnx"))
    assert parity.passed, parity.measurements
    assert all(m.range > 0 for m in parity.measurements)


@pytest.mark.parametrize("made", [param for param in PARAMS if GELU not in str(param.id)], indirect=True)
def test_an_old_operator_set_computes_the_same(made: Made) -> None:
    newest = onnx.load(made.folder / "model.onnx")
    image = volume(made.contract.opt, 0)
    expected = outputs_of(session_of(newest, 1), image)
    for opset in (17, OLDEST):
        model = onnx.ModelProto()
        model.CopyFrom(newest)
        lower_opset(model, opset)
        assert opset_of(model) == opset
        assert model.ir_version == helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
        onnx.checker.check_model(model, full_check=True)
        found = outputs_of(session_of(model, 1), image)
        for output, values in expected.items():
            assert np.abs(found[output] - values).max() <= 1e-5 * np.ptp(values)

"""The CPU rewrites: exact if they fire, and a stated reason if they must not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny import Tiny, check, conv, must_not_fire
from torch import Tensor, nn

import smp3d_export as smp
from smp3d_export.contract import ShapeContract
from smp3d_export.optimise import for_cpu, optimise
from smp3d_export.optimise.packed_conv import PackedConv
from smp3d_export.optimise.winograd import Winograd
from smp3d_export.precision import Precision
from smp3d_export.program.capture import capture
from smp3d_export.sources.network import randomise_normalisations

# Sizes along H and W that are multiples of four, and of two.
BY_FOUR = ShapeContract.of((1, 32, 8, 12, 3), multiple=(4, 4, 1))
BY_TWO = ShapeContract.of((1, 8, 6, 4, 3), multiple=(2, 2, 1))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(
    ("contract", "classes", "kernel"),
    [(BY_FOUR, 1, (6, 6, 3)), (BY_FOUR, 3, (4, 4, 3)), (BY_TWO, 1, (4, 4, 3)), (BY_TWO, 4, (4, 4, 3))],
)
def test_packed_conv(contract: ShapeContract, classes: int, kernel: tuple[int, ...], bias: bool) -> None:
    layer = conv(contract.opt[1], classes, bias=bias)
    module = check(PackedConv(), Tiny(lambda x, c: c(x).sigmoid(), layer), contract=contract)
    weights = [p.shape for name, p in module.named_parameters() if "weight__" in name]
    assert [tuple(shape[2:]) for shape in weights] == [kernel]


PACKED_MISSES = {
    "odd sizes": (Tiny(lambda x, c: c(x), conv(8, 1)), "not multiples of 2", (1, 1, 1)),
    "few inputs": (Tiny(lambda x, c: c(x[:, :4]), conv(4, 1)), "few input channels", (4, 4, 1)),
    "stride": (Tiny(lambda x, c: c(x), conv(8, 1, stride=(2, 2, 1))), "are not all 1", (4, 4, 1)),
    "kernel 1": (Tiny(lambda x, c: c(x), conv(8, 1, kernel=1)), "the kernel is (1, 1, 1), not 3", (4, 4, 1)),
    "five classes": (Tiny(lambda x, c: c(x), conv(8, 5)), None, (4, 4, 1)),
}


@pytest.mark.parametrize("case", PACKED_MISSES)
def test_packed_conv_must_not_fire(case: str) -> None:
    model, reason, multiple = PACKED_MISSES[case]
    must_not_fire(PackedConv(), model, reason, ShapeContract.of((1, 8, 8, 12, 3), multiple=multiple))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_winograd(static: bool, bias: bool) -> None:
    """Also with a single tile, the contract's minimum."""
    contract = ShapeContract.of((2, 32, 4, 5, 3), multiple=(4, 1, 1), static=static)
    module = check(Winograd(), Tiny(lambda x, c: c(x), conv(32, 40, bias=bias)), contract=contract)
    weights = [p.shape for name, p in module.named_parameters() if "weight__" in name]
    assert [tuple(shape) for shape in weights] == 6 * [(40, 32, 1, 3, 3)]


@pytest.mark.parametrize("inplace", [False, True], ids=["copies", "in place"])
def test_winograd_keeps_phases_split_in_a_residual_block(inplace: bool) -> None:
    """The map is split once, on entry, and merged for operators that read all of it."""

    def block(x: Tensor, *layers: nn.Module) -> Tensor:
        a, b, c = layers
        y = F.relu(b(F.relu(a(x), inplace=inplace)).add(x), inplace=inplace)
        return c(y) + y.mean((2, 3, 4), keepdim=True)

    contract = ShapeContract.of((2, 32, 4, 5, 3), multiple=(4, 1, 1))
    module = check(Winograd(), Tiny(block, *(conv(32, 32) for _ in range(3))), 3, contract)
    cuts = [node for node in module.graph.nodes if "slice" in str(node.target) and len(node.args) == 5]
    assert len(cuts) == 4
    # One merge for the mean and one for the result: no sum or activation is computed twice.
    assert sum("stack" in str(node.target) for node in module.graph.nodes) == 2
    assert sum("relu" in str(node.target) for node in module.graph.nodes) == 8


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_winograd_of_a_dilated_stage(static: bool) -> None:
    """Planes two apart, also with a single tile. They stay split only for a convolution with the same dilation."""

    def stage(x: Tensor, *layers: nn.Module) -> Tensor:
        a, b, c = layers
        return c(F.relu(b(F.relu(a(x))) + x))

    contract = ShapeContract.of((2, 32, 16, 5, 3), multiple=(8, 1, 1), static=static)
    layers = (conv(32, 32, dilation=2, padding=2), conv(32, 32, dilation=2, padding=2), conv(32, 32))
    module = check(Winograd(), Tiny(stage, *layers), 3, contract)
    # Four on entry, which the sum reads again, and four for the plain convolution.
    cuts = [node for node in module.graph.nodes if "slice" in str(node.target)]
    assert len(cuts) == 8


@pytest.mark.parametrize("inplace", [False, True], ids=["copies", "in place"])
def test_winograd_splits_the_other_operand_of_a_sum(inplace: bool) -> None:
    """Split phases are not merged for a sum, unless the sum overwrites its operand in place."""

    def block(x: Tensor, *layers: nn.Module) -> Tensor:
        a, b = layers
        u = x.sin()
        y = a(x)
        return b(u.add_(y) if inplace else y + u)

    contract = ShapeContract.of((2, 32, 4, 5, 3), multiple=(4, 1, 1))
    module = check(Winograd(), Tiny(block, conv(32, 32), conv(32, 32)), 2, contract)
    assert sum("stack" in str(node.target) for node in module.graph.nodes) == (2 if inplace else 1)


def test_winograd_reads_a_map_again_that_was_changed_in_place() -> None:
    def block(x: Tensor, *layers: nn.Module) -> Tensor:
        a, b = layers
        u = x.sin()
        return b(u.add_(a(u)))

    contract = ShapeContract.of((2, 32, 4, 5, 3), multiple=(4, 1, 1))
    check(Winograd(), Tiny(block, conv(32, 32), conv(32, 32)), 2, contract)


WINOGRAD_MISSES = {
    "odd sizes": (Tiny(lambda x, c: c(x), conv(32, 32)), "H of the map is not a multiple of 4", (2, 4, 4)),
    "few channels": (Tiny(lambda x, c: c(x), conv(32, 16)), "fewer than 32 channels", (4, 4, 4)),
    "dilation": (Tiny(lambda x, c: c(x), conv(32, 32, dilation=2, padding=2)), "not a multiple of 8", (4, 4, 4)),
    "valid": (Tiny(lambda x, c: c(x), conv(32, 32, dilation=2)), "are not all 1", (4, 4, 4)),
    "groups": (Tiny(lambda x, c: c(x), conv(32, 32, groups=2)), "are not all 1", (4, 4, 4)),
    "kernel 1": (Tiny(lambda x, c: c(x), conv(32, 32, kernel=1)), "the kernel is (1, 1, 1), not 3", (4, 4, 4)),
}


@pytest.mark.parametrize("case", WINOGRAD_MISSES)
def test_winograd_must_not_fire(case: str) -> None:
    model, reason, multiple = WINOGRAD_MISSES[case]
    must_not_fire(Winograd(), model, reason, ShapeContract.of((1, 32, 4, 4, 4), multiple=multiple))


def test_the_cpu_variant_is_rewritten_further() -> None:
    torch.manual_seed(0)
    model = smp.FPN("resnet18", encoder_depth=3, encoder_weights=None, in_channels=1, decoder_segmentation_channels=32)
    randomise_normalisations(model.eval())
    portable = optimise(capture(model, ShapeContract.of((1, 1, 32, 32, 32), multiple=model.multiple)))
    further = for_cpu(portable.captured, Precision.FP32)
    assert further.captured.rewrites == {
        **portable.captured.rewrites,
        "winograd": further.captured.rewrites["winograd"],
    }
    assert further.gflop_after < 0.75 * portable.gflop_after
    assert further.captured.for_cpu
    assert not portable.captured.for_cpu
    assert "winograd" not in for_cpu(portable.captured, Precision.BF16).captured.rewrites

"""Rewrites on tiny graphs: equal where they fire, silent with their reason where they must not, and idempotent."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

import smp3d_export as smp
from smp3d_export.capture import capture
from smp3d_export.contract import ShapeContract
from smp3d_export.network import randomise_normalisations
from smp3d_export.optimise import (
    FOR_CPU,
    FOR_CPU_IN_FP32,
    REWRITES,
    for_cpu,
    graph_module,
    note_largest_sizes,
    optimise,
    upsample_conv,
)
from smp3d_export.optimise.concat_conv import ConcatConv
from smp3d_export.optimise.dilated_taps import DilatedTaps
from smp3d_export.optimise.fold_batch_norm import FoldBatchNorm
from smp3d_export.optimise.packed_conv import PackedConv
from smp3d_export.optimise.parallel_conv import ParallelConv
from smp3d_export.optimise.rewrite import Miss, Rewrite
from smp3d_export.optimise.upsample_conv import UpsampleConv
from smp3d_export.optimise.winograd import Winograd
from smp3d_export.targets import Precision

CONTRACT = ShapeContract.of((1, 4, 5, 6, 7), multiple=(1, 1, 1))
# Sizes along H and W that are multiples of four, and of two.
FOURS = ShapeContract.of((1, 32, 8, 12, 3), multiple=(4, 4, 1))
TWOS = ShapeContract.of((1, 8, 6, 4, 3), multiple=(2, 2, 1))


class Tiny(nn.Module):
    """A function of one input and of layers."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.layers)


def conv(inputs: int = 4, outputs: int = 3, kernel: int = 3, **options) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, kernel, **{"padding": kernel // 2, **options})


def module_of(model: nn.Module, contract: ShapeContract = CONTRACT) -> GraphModule:
    torch.manual_seed(0)
    randomise_normalisations(model)
    module = graph_module(capture(model.eval(), contract))
    note_largest_sizes(module, contract.max)
    return module


def misses(rewrite: Rewrite, module: GraphModule) -> list[str]:
    found = [rewrite.match(module, node) for node in module.graph.nodes]
    return [match.reason for match in found if isinstance(match, Miss)]


def check(rewrite: Rewrite, model: nn.Module, times: int = 1, contract: ShapeContract = CONTRACT) -> GraphModule:
    """It fires so often, the result is equal at several shapes, and a second run does nothing."""
    module = module_of(model, contract)
    assert rewrite.run(module) == times
    assert rewrite.run(module) == 0
    with torch.no_grad():
        for shape in contract.parity_shapes().values():
            x = torch.randn(shape)
            expected = model(x)
            assert float((module(x) - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    return module


def must_not_fire(rewrite: Rewrite, model: nn.Module, reason: str | None, contract: ShapeContract = CONTRACT) -> None:
    """It nearly fits, for a reason that is said, or, without one, is of another kind."""
    module = module_of(model, contract)
    found = misses(rewrite, module)
    assert all(reason is not None and reason in text for text in found)
    assert bool(found) == (reason is not None)
    assert rewrite.run(module) == 0


def up(x: Tensor, scale, mode: str = "nearest") -> Tensor:
    return F.interpolate(x, scale_factor=tuple(map(float, scale)), mode=mode)


TWICE = (2, 2, 2)
SCALES = [*product((1, 2), repeat=3), (3, 3, 3), (4, 4, 4), (1, 3, 4), (4, 2, 1)]


@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_upsample_conv(scale, bias: bool) -> None:
    module = check(UpsampleConv(), Tiny(lambda x, c: c(up(x, scale)), conv(bias=bias)))
    assert "upsample" not in str(module.graph)


UPSAMPLE_MISSES = {
    "kernel 5": (Tiny(lambda x, c: c(up(x, (2, 2, 2))), conv(kernel=5)), "the kernel is (5, 5, 5), not 3"),
    "no padding": (Tiny(lambda x, c: c(up(x, (4, 4, 4))), conv(padding=0)), "padding, stride, dilation and groups"),
    "stride": (Tiny(lambda x, c: c(up(x, (2, 2, 2))), conv(stride=2)), "padding, stride, dilation and groups"),
    "groups": (Tiny(lambda x, c: c(up(x, (2, 2, 2))), conv(4, 4, groups=2)), "padding, stride, dilation and groups"),
    "dilation": (
        Tiny(lambda x, c: c(up(x, (2, 2, 2))), conv(dilation=2, padding=2)),
        "padding, stride, dilation and groups",
    ),
    "second user": (
        Tiny(lambda x, c: (lambda u: c(u) + u[:, :3])(up(x, (2, 2, 2))), conv()),
        "the upsampled map has a second user",
    ),
    "to a size": (Tiny(lambda x, c: c(F.interpolate(x, size=(8, 8, 8))), conv()), "it upsamples to a size"),
    "factor 1.5": (Tiny(lambda x, c: c(up(x, (1.5, 2, 2))), conv()), "are not whole"),
    "trilinear": (Tiny(lambda x, c: c(up(x, (2, 2, 2), "trilinear")), conv()), None),
    "attention between": (Tiny(lambda x, c: c(up(x, (2, 2, 2)).sigmoid()), conv()), None),
}


@pytest.mark.parametrize("case", UPSAMPLE_MISSES)
def test_upsample_conv_must_not_fire(case: str) -> None:
    model, reason = UPSAMPLE_MISSES[case]
    must_not_fire(UpsampleConv(), model, reason)


def halves(function, layer: nn.Module) -> tuple[nn.Module, GraphModule]:
    """A function of an even volume and of its half, and its graph."""
    model = Tiny(function, nn.AvgPool3d(2), layer).eval()
    contract = ShapeContract.of((1, 4, 8, 8, 8), multiple=TWICE)
    return model, graph_module(capture(model, contract))


def test_concat_conv_and_then_upsample_conv() -> None:
    model, module = halves(lambda x, pool, c: c(torch.cat([up(pool(x), TWICE), up(pool(x * x), TWICE)], 1)), conv(8, 3))
    assert ConcatConv().run(module) == 1
    assert UpsampleConv().run(module) == 2
    x = torch.randn(2, 4, 6, 4, 10)
    with torch.no_grad():
        assert torch.allclose(module(x), model(x), atol=1e-5)


def test_concat_conv_keeps_the_other_parts_together() -> None:
    model, module = halves(lambda x, pool, c: c(torch.cat([x[:, :1], up(pool(x), TWICE), x], 1)), conv(9, 3))
    assert ConcatConv().run(module) == 1
    assert ConcatConv().run(module) == 0
    assert str(module.graph).count("aten.conv3d") == 2
    x = torch.randn(1, 4, 4, 6, 2)
    with torch.no_grad():
        assert torch.allclose(module(x), model(x), atol=1e-5)


CONCAT_MISSES = {
    "kernel 5": (lambda x, c: c(torch.cat([up(x, TWICE), up(x, TWICE)], 1)), conv(8, 3, 5), "no upsampled part"),
    "attention between": (lambda x, c: c(torch.cat([up(x, TWICE).sigmoid(), up(x, TWICE).tanh()], 1)), conv(8), None),
    "trilinear": (lambda x, c: c(torch.cat([up(x, TWICE, "trilinear")] * 2, 1)), conv(8), None),
    "other axis": (lambda x, c: c(torch.cat([up(x, TWICE), up(x, TWICE)], 2)), conv(4), "another axis"),
    "second user": (
        lambda x, c: (lambda j: c(j) + j[:, :3])(torch.cat([up(x, TWICE), up(x, TWICE)], 1)),
        conv(8),
        "the concatenation has a second user",
    ),
}


@pytest.mark.parametrize("case", CONCAT_MISSES)
def test_concat_conv_must_not_fire(case: str) -> None:
    function, layer, reason = CONCAT_MISSES[case]
    module = module_of(Tiny(function, layer))
    found = misses(ConcatConv(), module)
    assert (reason is None) == (not found)
    assert all(reason in text for text in found)
    assert ConcatConv().run(module) == 0


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_fold_batch_norm(bias: bool, affine: bool) -> None:
    module = check(FoldBatchNorm(), Tiny(lambda x, c, n: n(c(x)), conv(bias=bias), nn.BatchNorm3d(3, affine=affine)))
    assert "batch_norm" not in str(module.graph)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_fold_batch_norm_into_a_transposed_convolution(groups: int, bias: bool) -> None:
    """Of as many inputs as outputs, so that scaling the wrong ones would show by values alone."""
    layer = nn.ConvTranspose3d(4, 4, 4, stride=2, padding=1, groups=groups, bias=bias)
    module = check(FoldBatchNorm(), Tiny(lambda x, c, n: n(c(x)), layer, nn.BatchNorm3d(4)))
    assert "batch_norm" not in str(module.graph)


BATCH_NORM_MISSES = {
    "no convolution": (Tiny(lambda x, n: n(x.relu()), nn.BatchNorm3d(4)), "it does not follow a convolution"),
    "second user": (Tiny(lambda x, c, n: (lambda y: n(y) + y)(c(x)), conv(), nn.BatchNorm3d(3)), "second user"),
}


@pytest.mark.parametrize("case", BATCH_NORM_MISSES)
def test_fold_batch_norm_must_not_fire(case: str) -> None:
    model, reason = BATCH_NORM_MISSES[case]
    module = module_of(model)
    assert [reason in text for text in misses(FoldBatchNorm(), module)] == [True]
    assert FoldBatchNorm().run(module) == 0


PARALLEL = {
    "two kernels": (Tiny(lambda x, a, b: a(x) + b(x), conv(), conv(kernel=1)), 1),
    "the smaller first": (Tiny(lambda x, a, b: a(x) + b(x), conv(kernel=1, bias=False), conv()), 1),
    "unequal kernels": (
        Tiny(lambda x, a, b: a(x) + b(x), nn.Conv3d(4, 3, (5, 3, 1), padding=(2, 1, 0)), conv(kernel=1)),
        1,
    ),
    "dilated": (Tiny(lambda x, a, b: a(x) + b(x), conv(dilation=2, padding=2), conv(kernel=1)), 1),
    "a normalisation": (Tiny(lambda x, a, n: a(x) + n(x), conv(4, 4), nn.BatchNorm3d(4)), 1),
    "plain, in groups": (
        Tiny(lambda x, a, n: n(x) + a(x), conv(4, 4, groups=2), nn.BatchNorm3d(4, affine=False)),
        1,
    ),
    "a chain": (
        Tiny(
            lambda x, a, b, c, n: (a(x) + b(x) + c(x) + n(x)).relu(),
            *(conv(4, 4, groups=4), conv(4, 4, groups=4), conv(4, 4, 1, groups=4), nn.BatchNorm3d(4)),
        ),
        3,
    ),
}


@pytest.mark.parametrize("case", PARALLEL)
def test_parallel_conv(case: str) -> None:
    model, times = PARALLEL[case]
    module = check(ParallelConv(), model, times)
    assert str(module.graph).count("aten.conv3d") == 1


def test_parallel_conv_with_stride() -> None:
    """On even sizes, for of others torch.export cannot tell that the two maps are alike."""
    model = Tiny(lambda x, a, b: a(x) + b(x), conv(stride=2), conv(kernel=1, stride=2)).eval()
    module = graph_module(capture(model, ShapeContract.of((1, 4, 8, 8, 8), multiple=TWICE)))
    assert ParallelConv().run(module) == 1
    x = torch.randn(2, 4, 6, 4, 10)
    with torch.no_grad():
        assert torch.allclose(module(x), model(x), atol=1e-5)


PARALLEL_MISSES = {
    "other maps": (Tiny(lambda x, a, b: a(x) + b(x.relu()), conv(), conv()), "different maps"),
    "other groups": (Tiny(lambda x, a, b: a(x) + b(x), conv(4, 4), conv(4, 4, groups=2)), "groups"),
    "other dilations": (
        Tiny(lambda x, a, b: a(x) + b(x), conv(dilation=2, padding=2), conv()),
        "dilations",
    ),
    "second user": (Tiny(lambda x, a, b: (lambda y: y + b(x) + y)(a(x)), conv(), conv()), "a second user"),
    "other channels": (Tiny(lambda x, a, n: a(x[:, :2]) + n(x), conv(2, 4), nn.BatchNorm3d(4)), "of another map"),
    "between": (Tiny(lambda x, a, b: a(x) + b(x).relu(), conv(), conv()), None),
    "twice the same": (Tiny(lambda x, a: (lambda y: y + y)(a(x)), conv()), None),
    "a number": (Tiny(lambda x, a: a(x) + 1, conv()), None),
    "weighed": (Tiny(lambda x, a, b: torch.add(a(x), b(x), alpha=2), conv(), conv()), None),
}


@pytest.mark.parametrize("case", PARALLEL_MISSES)
def test_parallel_conv_must_not_fire(case: str) -> None:
    model, reason = PARALLEL_MISSES[case]
    must_not_fire(ParallelConv(), model, reason)


def test_mobileone_becomes_a_chain_of_single_convolutions() -> None:
    torch.manual_seed(0)
    model = smp.Unet("mobileone_s0", encoder_weights=None, in_channels=1, encoder_depth=3, decoder_channels=(8, 8, 8))
    randomise_normalisations(model.eval())
    contract = ShapeContract.of((1, 1, 16, 16, 16), multiple=(8, 8, 8))
    optimised = optimise(capture(model, contract))
    blocks = sum(type(module).__name__ == "Block" and hasattr(module, "rbr_conv") for module in model.modules())
    assert optimised.captured.rewrites["parallel-conv"] > blocks
    graph = optimised.captured.program.graph
    assert not any("batch_norm" in str(node.target) for node in graph.nodes)
    # Those of the blocks and of the decoder, in which a concatenation's is split.
    assert str(graph).count("aten.conv3d") <= blocks + 10


def test_dilated_taps_go_along_the_axes_that_are_too_short_at_the_maximum() -> None:
    """The maximum is (10, 12, 14): a dilation of 12 keeps the taps of D alone."""
    layer = conv(dilation=12, padding=12)
    module = check(DilatedTaps(), Tiny(lambda x, c: c(x), layer))
    weights = [p for name, p in module.named_parameters() if "__" in name]
    assert [tuple(w.shape[2:]) for w in weights] == [(1, 1, 3)]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dilation": 9, "padding": 9}, "its taps reach into the map"),
        ({"dilation": 2, "padding": 0, "kernel": 1}, "its taps reach into the map"),
    ],
)
def test_dilated_taps_must_not_fire(options, reason: str) -> None:
    module = module_of(Tiny(lambda x, c: c(x), conv(**options)))
    assert [reason in text for text in misses(DilatedTaps(), module)] == [True]
    assert DilatedTaps().run(module) == 0


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(
    ("contract", "classes", "kernel"),
    [(FOURS, 1, (6, 6, 3)), (FOURS, 3, (4, 4, 3)), (TWOS, 1, (4, 4, 3)), (TWOS, 4, (4, 4, 3))],
)
def test_packed_conv(contract: ShapeContract, classes: int, kernel: tuple[int, ...], bias: bool) -> None:
    layer = conv(contract.opt[1], classes, bias=bias)
    module = check(PackedConv(), Tiny(lambda x, c: c(x).sigmoid(), layer), contract=contract)
    weights = [p.shape for name, p in module.named_parameters() if "weight__" in name]
    assert [tuple(shape[2:]) for shape in weights] == [kernel]


PACKED_MISSES = {
    "odd sizes": (Tiny(lambda x, c: c(x), conv(8, 1)), "no multiples of 2", (1, 1, 1)),
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
    """At one tile too, the contract's minimum."""
    contract = ShapeContract.of((2, 32, 4, 5, 3), multiple=(4, 1, 1), static=static)
    module = check(Winograd(), Tiny(lambda x, c: c(x), conv(32, 40, bias=bias)), contract=contract)
    weights = [p.shape for name, p in module.named_parameters() if "weight__" in name]
    assert [tuple(shape) for shape in weights] == 6 * [(40, 32, 1, 3, 3)]


@pytest.mark.parametrize("inplace", [False, True], ids=["copies", "in place"])
def test_winograd_keeps_planes_apart_in_a_residual_block(inplace: bool) -> None:
    """The map is cut once, at the entry, and put together for what reads it whole."""

    def block(x: Tensor, *layers: nn.Module) -> Tensor:
        a, b, c = layers
        y = F.relu(b(F.relu(a(x), inplace=inplace)).add(x), inplace=inplace)
        return c(y) + y.mean((2, 3, 4), keepdim=True)

    contract = ShapeContract.of((2, 32, 4, 5, 3), multiple=(4, 1, 1))
    module = check(Winograd(), Tiny(block, *(conv(32, 32) for _ in range(3))), 3, contract)
    cuts = [node for node in module.graph.nodes if "slice" in str(node.target) and len(node.args) == 5]
    assert len(cuts) == 4
    # What the mean reads, and what is returned: no sum or activation is computed twice.
    assert sum("stack" in str(node.target) for node in module.graph.nodes) == 2
    assert sum("relu" in str(node.target) for node in module.graph.nodes) == 8


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_winograd_of_a_dilated_stage(static: bool) -> None:
    """Planes two apart, at one tile too; they stay apart for the next convolution of the same dilation alone."""

    def stage(x: Tensor, *layers: nn.Module) -> Tensor:
        a, b, c = layers
        return c(F.relu(b(F.relu(a(x))) + x))

    contract = ShapeContract.of((2, 32, 16, 5, 3), multiple=(8, 1, 1), static=static)
    layers = (conv(32, 32, dilation=2, padding=2), conv(32, 32, dilation=2, padding=2), conv(32, 32))
    module = check(Winograd(), Tiny(stage, *layers), 3, contract)
    # Four at the entry, which the sum reads again, and four for the plain convolution.
    cuts = [node for node in module.graph.nodes if "slice" in str(node.target)]
    assert len(cuts) == 8


@pytest.mark.parametrize("inplace", [False, True], ids=["copies", "in place"])
def test_winograd_cuts_what_is_added_to_planes_that_are_apart(inplace: bool) -> None:
    """A map that is there in fours already is not put together for a sum; what a sum changes in place is not kept."""

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
    "odd sizes": (Tiny(lambda x, c: c(x), conv(32, 32)), "H of the map is no multiple of 4", (2, 4, 4)),
    "few channels": (Tiny(lambda x, c: c(x), conv(32, 16)), "fewer than 32 channels", (4, 4, 4)),
    "dilation": (Tiny(lambda x, c: c(x), conv(32, 32, dilation=2, padding=2)), "no multiple of 8", (4, 4, 4)),
    "valid": (Tiny(lambda x, c: c(x), conv(32, 32, dilation=2)), "are not all 1", (4, 4, 4)),
    "groups": (Tiny(lambda x, c: c(x), conv(32, 32, groups=2)), "are not all 1", (4, 4, 4)),
    "kernel 1": (Tiny(lambda x, c: c(x), conv(32, 32, kernel=1)), "the kernel is (1, 1, 1), not 3", (4, 4, 4)),
}


@pytest.mark.parametrize("case", WINOGRAD_MISSES)
def test_winograd_must_not_fire(case: str) -> None:
    model, reason, multiple = WINOGRAD_MISSES[case]
    must_not_fire(Winograd(), model, reason, ShapeContract.of((1, 32, 4, 4, 4), multiple=multiple))


def test_the_form_for_processors_is_rewritten_further() -> None:
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


def test_a_whole_network_keeps_its_function_and_does_less_work() -> None:
    torch.manual_seed(0)
    model = smp.Unet(
        "resnet18", encoder_depth=3, decoder_channels=(16, 8, 8), encoder_weights=None, in_channels=1
    ).eval()
    randomise_normalisations(model)
    contract = ShapeContract.of((1, 1, 32, 32, 32), multiple=model.multiple)
    optimised = optimise(capture(model, contract))
    assert optimised.captured.rewrites == {"fold-batch-norm": 16, "concat-conv": 2, "upsample-conv": 3}
    assert optimised.gflop_after < 0.9 * optimised.gflop_before
    again = optimise(optimised.captured)
    assert again.captured is optimised.captured
    run = graph_module(optimised.captured)
    for shape in contract.parity_shapes().values():
        x = torch.randn(shape)
        with torch.no_grad():
            expected = model(x)
            assert float((run(x) - expected).abs().max()) <= 1e-5 * float(expected.max() - expected.min())


def test_a_rewrite_that_is_wrong_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    transposed = upsample_conv.transposed_kernel
    monkeypatch.setattr(upsample_conv, "transposed_kernel", lambda weight, scale: transposed(weight, scale) * 1.01)
    captured = capture(Tiny(lambda x, c: c(up(x, (2, 2, 2))), conv()).eval(), CONTRACT)
    optimised = optimise(captured)
    assert optimised.captured.rewrites == {}
    assert optimised.captured is captured


def test_names_are_told_apart() -> None:
    rewrites = (*REWRITES, *FOR_CPU, *FOR_CPU_IN_FP32)
    assert len({rewrite.name for rewrite in rewrites}) == len(rewrites)

"""Rewrites on tiny graphs: exact if they fire, a stated reason if they must not, and idempotent."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny import CONTRACT, Tiny, check, conv, misses, module_of, must_not_fire
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

import smp3d_export as smp
from smp3d_export.contract import ShapeContract
from smp3d_export.optimise import (
    FOR_CPU,
    FOR_CPU_IN_FP32,
    REWRITES,
    graph_module,
    optimise,
    upsample_conv,
)
from smp3d_export.optimise.concat_conv import ConcatConv
from smp3d_export.optimise.dilated_taps import DilatedTaps, TapsUpToMax
from smp3d_export.optimise.fold_batch_norm import FoldBatchNorm
from smp3d_export.optimise.parallel_conv import ParallelConv
from smp3d_export.optimise.rewrite import Rewrite
from smp3d_export.optimise.upsample_conv import UpsampleConv
from smp3d_export.program.capture import capture
from smp3d_export.program.graph import is_call
from smp3d_export.sources.network import randomise_normalisations


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
    """A function of an even volume and its average pool, and its graph."""
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
    "other axis": (lambda x, c: c(torch.cat([up(x, TWICE), up(x, TWICE)], 2)), conv(4), "not along the channels"),
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
    """With as many inputs as outputs, scaling the wrong ones changes values but not shapes."""
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
    """On even sizes; for others torch.export cannot know that the two maps have the same size."""
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
    "other channels": (Tiny(lambda x, a, n: a(x[:, :2]) + n(x), conv(2, 4), nn.BatchNorm3d(4)), "has another map"),
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
    model = smp.Unet("mobileone_s0", encoder_weights=None, in_channels=1, encoder_depth=2, decoder_channels=(8, 8))
    randomise_normalisations(model.eval())
    contract = ShapeContract.of((1, 1, 16, 16, 16), multiple=(4, 4, 4))
    optimised = optimise(capture(model, contract))
    used: set[nn.Module] = set()
    for module in model.modules():
        if hasattr(module, "rbr_conv"):
            module.register_forward_hook(lambda block, *_: used.add(block))
    model(torch.zeros(contract.opt))
    assert optimised.captured.rewrites["parallel-conv"] > len(used) > 0
    graph = optimised.captured.program.graph
    assert not any("batch_norm" in str(node.target) for node in graph.nodes)
    # The convolutions of the blocks and of the decoder, where those over a concatenation are split.
    assert str(graph).count("aten.conv3d") <= len(used) + 10


def test_taps_go_along_the_axes_that_are_too_short_at_the_maximum() -> None:
    """The maximum is (10, 12, 14): a dilation of 12 keeps the taps of D alone."""
    layer = conv(dilation=12, padding=12)
    module = check(TapsUpToMax(), Tiny(lambda x, c: c(x), layer))
    weights = [p for name, p in module.named_parameters() if "__" in name]
    assert [tuple(w.shape[2:]) for w in weights] == [(1, 1, 3)]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dilation": 9, "padding": 9}, "its taps reach into the map"),
        ({"dilation": 2, "padding": 0, "kernel": 1}, "its taps reach into the map"),
    ],
)
def test_taps_up_to_max_must_not_fire(options, reason: str) -> None:
    module = module_of(Tiny(lambda x, c: c(x), conv(**options)))
    assert [reason in text for text in misses(TapsUpToMax(), module)] == [True]
    assert TapsUpToMax().run(module) == 0


def test_dilated_taps_go_along_frozen_axes_alone() -> None:
    """H is frozen, W is too short at its maximum, and the taps of D reach into the map."""
    contract = ShapeContract.of((1, 4, 5, 6, 7), multiple=(1, 1, 1), min=(1, 4, 5, 1, 7), max=(1, 4, 5, 12, 7))
    model = Tiny(lambda x, c: c(x), conv(dilation=(12, 12, 6), padding=(12, 12, 6)))
    module = check(DilatedTaps(), model, contract=contract)
    assert [tuple(p.shape[2:]) for name, p in module.named_parameters() if "__" in name] == [(1, 3, 3)]
    module = module_of(Tiny(lambda x, c: c(x), conv(dilation=12, padding=12)))
    assert misses(DilatedTaps(), module) == ["its taps reach into the map, or its size is not frozen"]


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


class Wrong(Rewrite):
    """Changes every ReLU, by what it is told."""

    name = "wrong"

    def __init__(self, change: Callable[[Graph, Node], Node]) -> None:
        self.change = change

    def match(self, module: GraphModule, node: Node) -> bool | None:
        return True if is_call(node, torch.ops.aten.relu.default) and "changed" not in node.meta else None

    def apply(self, module: GraphModule, node: Node, match: bool) -> None:
        node.meta["changed"] = True
        with module.graph.inserting_after(node):
            new = self.change(module.graph, node)
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)


def times(factor: float) -> Callable[[Graph, Node], Node]:
    return lambda graph, node: graph.call_function(torch.ops.aten.mul.Tensor, (node, factor))


WRONG = {
    "by a percent": (times(1.01), "it changes outputs by 1e-02 of their range, 1e-05 is allowed"),
    "infinite": (times(float("inf")), "its outputs are not finite, or not of the same shape"),
    "no number": (times(float("nan")), "its outputs are not finite, or not of the same shape"),
    "another shape": (
        lambda graph, node: graph.call_function(torch.ops.aten.slice.Tensor, (node, 2, 1)),
        "its outputs are not finite, or not of the same shape",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_rewrite_that_is_wrong_is_named_and_the_others_are_kept(case: str) -> None:
    change, reason = WRONG[case]
    captured = capture(Tiny(lambda x, c: c(up(x, (2, 2, 2))).relu(), conv()).eval(), CONTRACT)
    optimised = optimise(captured, (Wrong(change), UpsampleConv()))
    assert optimised.captured.rewrites == optimised.fired == {"upsample-conv": 1}
    assert optimised.captured.rejected == optimised.rejected == {"wrong": reason}
    assert str(optimised).startswith(f"1 upsample-conv, wrong rejected: {reason}, ")
    again = optimise(optimised.captured, ())
    assert again.captured.rejected == {"wrong": reason}


def test_an_infinite_output_is_not_agreement() -> None:
    """Its range is infinite, so that any error is within a part of it."""
    captured = capture(Tiny(lambda x, c: (1e38 * c(x)).relu() * 1e38, conv()).eval(), CONTRACT)
    optimised = optimise(captured, (Wrong(times(0)),))
    assert optimised.fired == {}
    assert [*optimised.rejected] == ["wrong"]
    assert optimised.captured.program is captured.program


def test_the_manifest_and_the_stage_name_a_rewrite_that_is_wrong(
    cli, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    transposed = upsample_conv.transposed_kernel
    monkeypatch.setattr(upsample_conv, "transposed_kernel", lambda weight, scale: transposed(weight, scale) * 1.01)
    result = cli(*tiny, "--static", "--no-bench", "-o", "net")
    assert result.exit_code == 0, result.output
    assert "upsample-conv rejected: it changes outputs by" in " ".join(result.stderr.split())
    manifest = json.loads(Path("net/manifest.json").read_text())
    assert [*manifest["optimisations"]] == ["fold-batch-norm", "concat-conv"]
    assert [*manifest["rejected_optimisations"]] == ["upsample-conv"]


def test_names_are_unique() -> None:
    rewrites = (*REWRITES, *FOR_CPU, *FOR_CPU_IN_FP32)
    assert len({rewrite.name for rewrite in rewrites}) == len(rewrites)

"""The shape contract: what it accepts, what it says of what it refuses, what backends get of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smp3d_export.contract import ShapeContract, check_multiples
from smp3d_export.errors import ShapeError

OPT = (1, 1, 128, 128, 64)
MULTIPLE = (32, 32, 32)

volume_axes = st.tuples(
    st.sampled_from([1, 2, 8, 12, 32]), st.lists(st.integers(1, 6), min_size=3, max_size=3).map(sorted)
)


@st.composite
def contracts(draw: st.DrawFn) -> ShapeContract:
    """Any contract: for each volume axis a multiple and three numbers of steps in order, and a batch."""
    axes = [draw(volume_axes) for _ in range(3)]
    low, opt, high = ([k * steps[which] for k, steps in axes] for which in range(3))
    batch = draw(st.integers(1, 4))
    return ShapeContract.of(
        (batch, 2, *opt), multiple=[k for k, _ in axes], min=(1, 2, *low), max=(batch + 1, 2, *high)
    )


def test_defaults_reach_from_one_stride_to_twice_the_optimum() -> None:
    contract = ShapeContract.of(OPT, multiple=MULTIPLE)
    assert (contract.min, contract.opt, contract.max) == ((1, 1, 32, 32, 32), OPT, (2, 1, 256, 256, 128))
    assert str(contract) == "N 1–2 · C 1 · H 32–256 by 32 · W 32–256 by 32 · D 32–128 by 32"


def test_it_can_be_held_to_coarser_multiples() -> None:
    contract = ShapeContract.of(OPT, multiple=MULTIPLE, min_size=(32, 96, 32), requested_multiple=(64, 64, 32))
    assert str(contract) == "N 1–2 · C 1 · H 64–256 by 64 · W 128–256 by 64 · D 32–128 by 32"


def test_static_freezes_every_axis() -> None:
    contract = ShapeContract.of(OPT, multiple=MULTIPLE, static=True)
    assert contract.min == contract.max == OPT
    assert not contract.dynamic
    assert contract.torch_dims() == {}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"opt": (1, 1, 100, 128, 64)}, "H is 100, but unet/x needs a multiple of 32: use 96 or 128."),
        ({"opt": (1, 1, 20, 128, 64)}, "H is 20, but unet/x needs a multiple of 32: use 32."),
        ({"opt": (1, 1, 128, 128)}, "five positive numbers"),
        ({"opt": OPT, "min_size": (32, 160, 32)}, "W is 128, but unet/x needs at least 160."),
        ({"opt": OPT, "min": (1, 1, 32, 160, 32)}, "W has minimum 160, optimum 128 and maximum 256"),
        ({"opt": OPT, "max": (1, 1, 128, 128, 32)}, "D has minimum 32, optimum 64 and maximum 32"),
        ({"opt": OPT, "min": (1, 3, 32, 32, 32)}, "--min has C 3"),
        ({"opt": OPT, "min": (1, 1, 33, 32, 32)}, "H of --min is 33"),
        ({"opt": OPT, "min": (1, 1, 32, 32, 32), "static": True}, "--static freezes every axis"),
        ({"opt": OPT, "requested_multiple": (64, 64, 64), "static": True}, "--static freezes every axis"),
        (
            {"opt": OPT, "requested_multiple": (64, 48, 32)},
            "--multiple is 48 for W, but unet/x needs a multiple of 32: use 32 or 64.",
        ),
        ({"opt": OPT, "requested_multiple": (64,)}, "--multiple is 64; it takes three numbers, H,W,D"),
        (
            {"opt": OPT, "requested_multiple": (64, 0, 32)},
            "--multiple is 0 for W, but unet/x needs a multiple of 32: use 32.",
        ),
        (
            {"opt": OPT, "requested_multiple": (64, 16, 32)},
            "--multiple is 16 for W, but unet/x needs a multiple of 32: use 32.",
        ),
        (
            {"opt": (1, 1, 96, 96, 64), "requested_multiple": (64, 32, 32)},
            "H is 96, but the contract asks, by --multiple, for a",
        ),
        (
            {"opt": (1, 1, 64, 100, 64), "requested_multiple": (64, 32, 32)},
            "W is 100, but unet/x needs a multiple of 32: use 96 or",
        ),
    ],
)
def test_contracts_that_cannot_be(arguments, says: str) -> None:
    opt = arguments.pop("opt")
    with pytest.raises(ShapeError) as error:
        ShapeContract.of(opt, multiple=MULTIPLE, network="unet/x", **arguments)
    assert says in str(error.value)


@given(contracts())
def test_every_shape_it_gives_is_one_that_it_accepts(contract: ShapeContract) -> None:
    shapes = contract.parity_shapes()
    for shape in (*shapes.values(), contract.example()):
        contract.check(shape)
    assert len(set(shapes.values())) == len(shapes)


@given(contracts())
def test_it_survives_the_manifest(contract: ShapeContract) -> None:
    assert ShapeContract.from_dict(contract.to_dict()) == contract


@given(contracts(), st.integers(0, 4), st.integers(1, 300))
def test_it_accepts_the_multiples_in_range_and_names_the_nearest_of_others(contract, number: int, size: int) -> None:
    axis = contract.axes[number]
    shape = [*contract.opt]
    shape[number] = size
    if size % axis.multiple == 0 and axis.min <= size <= axis.max:
        contract.check(shape)
        return
    with pytest.raises(ShapeError, match=rf"^{axis.name} is {size}, outside the contract"):
        contract.check(shape)
    near = contract.nearest(axis, size)
    assert all(axis.accepts(n) for n in near)
    everything = [n for n in range(axis.min, axis.max + 1) if axis.accepts(n)]
    assert min(abs(n - size) for n in near) == min(abs(n - size) for n in everything)


@given(contracts())
def test_nothing_is_traced_at_a_size_that_would_be_specialised(contract: ShapeContract) -> None:
    for axis, size in zip(contract.axes, contract.example(), strict=True):
        assert not axis.dynamic or size // axis.multiple >= 2


def test_an_input_of_other_axes_is_refused() -> None:
    with pytest.raises(ShapeError, match="4 axes"):
        ShapeContract.of(OPT, multiple=MULTIPLE).check((1, 128, 128, 64))


def test_multiples_are_checked_on_the_eager_model_too() -> None:
    check_multiples((64, 32, 96), MULTIPLE)
    with pytest.raises(ShapeError, match="W is 33, but the network needs a multiple of 32: use 32 or 64"):
        check_multiples((64, 33, 96), MULTIPLE)

"""The command line's texts: what is written is read back, and whatever cannot be read is one clear error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smp3d_export.cli import parsing
from smp3d_export.errors import UsageError
from smp3d_export.sources.named import NamedNetwork
from smp3d_export.sources.request import Request

sizes = st.lists(st.integers(1, 10**6), min_size=5, max_size=5)


@given(sizes)
def test_shapes(values: list[int]) -> None:
    assert parsing.shape("--shape", ",".join(map(str, values))) == tuple(values)
    assert parsing.shape("--shape", "x".join(map(str, values))) == tuple(values)


@given(st.lists(st.tuples(*[st.integers(0, 9)] * 3), min_size=1, max_size=6))
def test_strides(triples) -> None:
    assert parsing.strides("/".join(",".join(map(str, triple)) for triple in triples)) == tuple(triples)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_normalisation(mean: float, std: float) -> None:
    read = parsing.normalisation(f"{mean},{std}")
    assert read is not None
    assert (read.mean, read.std) == (mean, std)


def test_pairs() -> None:
    assert parsing.pairs("--aux-params", "classes=4,pooling=max,dropout=0.5,activation=none") == {
        "classes": 4,
        "pooling": "max",
        "dropout": 0.5,
        "activation": None,
    }


def test_one_multiple_is_that_of_all_axes() -> None:
    assert parsing.multiple("64,32,16") == (64, 32, 16)
    assert parsing.multiple("64") == (64, 64, 64)


def test_arguments() -> None:
    texts = ["decoder-atrous-rates=6,12,18", "decoder_channels=16,", "decoder_use_norm=layernorm", "psp_dropout=0.5"]
    assert parsing.arguments({"classes": 3, "activation": None}, texts) == {
        "classes": 3,
        "decoder_atrous_rates": (6, 12, 18),
        "decoder_channels": (16,),
        "decoder_use_norm": "layernorm",
        "psp_dropout": 0.5,
    }


@pytest.mark.parametrize("texts", [["x"], ["=3"], [""], ["x=1", "x=2"], ["classes=2"]])
def test_an_argument_is_a_pair_and_given_once(texts: list[str]) -> None:
    with pytest.raises(UsageError, match="--arg"):
        parsing.arguments({"classes": 3}, texts)


@given(st.text())
def test_any_text_is_read_or_refused_in_words(text: str) -> None:
    for parse in (
        lambda: parsing.shape("--shape", text),
        lambda: parsing.strides(text),
        lambda: parsing.multiple(text),
        lambda: parsing.normalisation(text),
        lambda: parsing.pairs("--aux-params", text),
        lambda: parsing.arguments({}, [text]),
    ):
        try:
            parse()
        except UsageError as error:
            assert str(error).startswith("--")


@pytest.mark.parametrize("text", ["", "1,1,64,64", "1,1,0,64,64", "1,1,64,64,-64", "1,1,64,64,64.5", "a,b,c,d,e"])
def test_a_shape_is_five_numbers(text: str) -> None:
    with pytest.raises(UsageError, match="for example 1,1,128,128,64"):
        parsing.shape("--shape", text)


@pytest.mark.parametrize("text", ["1", "1,0", "1,-2", "nan,1", "1,inf", "z-score", "1,2,3"])
def test_a_normalisation_has_a_mean_and_a_deviation(text: str) -> None:
    with pytest.raises(UsageError, match="--normalize is"):
        parsing.normalisation(text)


@pytest.mark.parametrize(
    ("device", "targets", "cuda", "placed"),
    [
        ("auto", ("trt",), True, "cuda"),
        ("auto", ("trt", "trt-rtx"), True, "cuda"),
        ("auto", ("trt", "onnx"), True, "cpu"),  # ONNX Runtime here may be one for processors
        ("auto", ("trt-rtx",), False, "cpu"),
        ("cpu", ("trt",), True, "cpu"),
        ("cuda:1", ("onnx",), False, "cuda:1"),
    ],
)
def test_the_device_is_the_gpu_where_that_alone_runs_the_targets(device: str, targets, cuda: bool, placed: str) -> None:
    network = NamedNetwork(architecture="unet", encoder="resnet18")
    assert Request(source=network, targets=targets, device=device).placed(cuda).device == placed

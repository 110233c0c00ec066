"""The command line's manners: help, lists, doctor, and one clear line for every wrong input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small import SMALL

ARCH, ENCODER, *REST = SMALL


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["unet", "resnet35"], "there is no encoder 'resnet35'. Nearest: resnet"),
        (["unett", "resnet18"], "there is no architecture or job 'unett'. Nearest architecture: Unet"),
        ([*SMALL, "--to", "onxx"], "there is no target 'onxx'. Nearest: onnx"),
        (
            ["unet", "resnet34", "--shape", "1,1,100,128,64"],
            "H is 100, but unet/resnet34 needs a multiple of 32: use 96 or 128",
        ),
        ([*SMALL, "--shape", "1,1,32,32"], "--shape is '1,1,32,32'; it takes five numbers"),
        ([*SMALL, "--min", "1,1,64,24,16"], "H has minimum 64, optimum 32"),
        ([*SMALL, "--max", "1,1,32,16,16"], "optimum 24 and maximum 16"),
        ([*SMALL, "--multiple", "8,8"], "--multiple is '8,8'; it takes one number from 1 up, or three for H,W,D"),
        ([*SMALL, "--multiple", "12"], "--multiple is 12 for H, but unet/resnet18 needs a multiple of 8: use 8 or 16"),
        ([*SMALL, "--multiple", "16"], "W is 24, but the contract asks, by --multiple, for a multiple of 16: use 16"),
        ([*SMALL, "--in-channels", "2"], "C of --shape is 1, but the network has 2"),
        ([*SMALL, "--encoder-depth", "4"], "decoder_channels has 3 numbers, but the encoder has 4 stages"),
        ([*SMALL, "--strides", "2,2,2/2,2,2"], "strides has 2 triples"),
        ([*SMALL, "--strides", "2,2,2/2,2/2,2,2"], "stride (2, 2) of stage 2"),
        ([*SMALL, "--activation", "sigmoidd"], "there is no activation 'sigmoidd'. Nearest: sigmoid"),
        ([*SMALL, "--decoder-attention-type", "cbam"], "there is no decoder attention 'cbam'"),
        ([*SMALL, "--aux-params", "klasses=2"], "aux_params has klasses; it takes classes"),
        ([*SMALL, "--encoder-weights", "moon"], "'moon'"),
        ([*SMALL, "--classes", "0"], "classes of Unet is 0; it takes a whole number from 1 up"),
        ([*SMALL, "--arg", "depth=3"], "there is no Unet argument 'depth'. Nearest: encoder_depth"),
        ([*SMALL, "--arg", "activation=3"], "activation of Unet is 3; it takes a name"),
        ([*SMALL, "--arg", "activation"], "--arg is 'activation'; it takes KEY=VALUE"),
        ([*SMALL, "--arg", "encoder-depth=3"], "encoder_depth is given twice, as 3 and by --arg encoder-depth=3"),
        ([*SMALL, "--arg", "encoder_name=vgg11"], "encoder_name is given twice"),
        ([*SMALL, "--checkpoint", "none.pth", "--arg", "x=3"], "there is no Unet argument 'x'"),
        (["fpn", "resnet18", "--decoder-attention-type", "scse"], "there is no FPN argument 'decoder_attention_type'"),
        (["fpn", "resnet18", "--arg", "decoder_pyramid_channels=wide"], "decoder_pyramid_channels of FPN is 'wide'"),
        ([*SMALL, "--optimise", "maybe"], "--optimise is 'maybe'; it is on, off, cpu or auto"),
        (
            [*SMALL, "--optimise", "cpu", "--precision", "int8", "--calibration", "."],
            "--optimise cpu is for fp32, fp16, bf16, not for int8: use --optimise on",
        ),
        (
            [*SMALL, "--optimise", "cpu", "--to", "onnx,trt-rtx"],
            "--optimise cpu is for CPUs, not for trt-rtx: use on, or auto",
        ),
        ([*SMALL, "--opset", "12"], "--opset is 12; it must be 13 to"),
        ([*SMALL, "--normalize", "1"], "--normalize is '1'; it takes MEAN,STD"),
        ([*SMALL, "--sample", "none.npy"], "there is no file 'none.npy'"),
        ([*SMALL, "--sample", "small.npy"], "D of the sample is 4, outside the contract"),
        ([*SMALL, "--checkpoint", "none.pth"], "there is no checkpoint 'none.pth'"),
        ([*SMALL, "--checkpoint", "cut.pth", "--encoder-weights", "imagenet"], "give one of the two"),
        ([*SMALL, "--checkpoint", "cut.pth"], "'cut.pth' is cut short, damaged or still being written"),
        ([*SMALL, "-o", "small.npy/net"], "'small.npy/net' cannot be written"),
        ([*SMALL, "-o", "kept"], "is not overwritten"),
        ([*SMALL, "-o", "small.npy"], "is a file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_input_is_one_line_and_leaves_no_files(cli, arguments, says: str) -> None:
    np.save("small.npy", np.zeros((32, 24, 4)))
    Path("cut.pth").write_bytes(b"PK\x03\x04 and no more")
    Path("kept").mkdir()
    Path("kept/thesis.tex").write_text("years")
    before = sorted(map(str, Path().rglob("*")))
    result = cli(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    error = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert says in error[0]
    assert result.stderr.rstrip().endswith(error[0]), "the error is the last line"
    assert sorted(map(str, Path().rglob("*"))) == before


def test_errors_are_json_for_scripts(cli) -> None:
    result = cli("unet", "resnet35", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["exit_code"] == 2
    assert "resnet35" in json.loads(result.stdout)["error"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["list", "encoders"],
        ["list", "architectures"],
        ["doctor"],
        ["unet", "resnet35"],
        ["from", "--help"],
    ],
)
def test_small_jobs_do_not_import_torch(arguments) -> None:
    code = (
        "import sys; sys.argv = ['smp3d-export', *sys.argv[1:]]; from smp3d_export.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'onnx' not in sys.modules, 'imported'"
    )
    subprocess.run([sys.executable, "-P", "-c", code, *arguments], check=True, capture_output=True)


def test_importing_the_package_imports_neither_torch_nor_numpy() -> None:
    code = "import sys, smp3d_export; assert not {'torch', 'numpy', 'typer'} & set(sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_lists(cli) -> None:
    rows = json.loads(cli("list", "encoders", "--family", "resnet", "--json").stdout)
    assert {"name": "resnet34", "family": "resnet"}.items() <= rows[1].items()
    assert all(row["family"] == "resnet" for row in rows)
    assert "efficientnet-b7" in cli("list", "encoders").stdout
    assert "Unet" in cli("list", "architectures").stdout
    assert "onnx" in cli("list", "targets").stdout
    for wrong, says in (
        (["list", "models"], "there is no list 'models'"),
        (["list", "--family", "resnets"], "Nearest: resnet"),
    ):
        result = cli(*wrong)
        assert result.exit_code == 2
        assert says in result.stderr


def test_the_list_of_encoders_has_weights_and_who_refuses_them(cli) -> None:
    rows = {row["name"]: row for row in json.loads(cli("list", "encoders", "--json").stdout)}
    assert rows["resnet18"]["weights"] == ["imagenet", "ssl", "swsl"]
    assert rows["resnet18"]["parameters"] == 33_160_000
    assert not rows["resnet18"]["refused_by"]
    assert list(rows["vgg11"]["refused_by"]) == ["DeepLabV3", "DeepLabV3Plus"]
    assert "max pooling" in rows["vgg11"]["refused_by"]["DeepLabV3"]
    assert rows["mit_b0"]["needed_by"] == {"FPN": {"encoder_depth": 5}, "PAN": {"encoder_output_stride": 32}}


def test_the_list_of_architectures_has_arguments_and_whom_they_refuse(cli) -> None:
    rows = {row["name"]: row for row in json.loads(cli("list", "architectures", "--json").stdout)}
    assert rows["PSPNet"]["arguments"]["encoder_depth"] == 3
    assert rows["DeepLabV3Plus"]["paper"] == "arXiv:1802.02611"
    assert list(rows["Linknet"]["refuses"]) == ["mit"]
    assert rows["PAN"]["needs"]["vgg"] == {"encoder_output_stride": 32}


@pytest.mark.parametrize("what", ["architectures", "encoders", "targets"])
def test_lists_fit_into_80_columns_of_plain_text(cli, what: str) -> None:
    result = cli("list", what)
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "\x1b" not in result.stdout


def test_version(cli) -> None:
    assert cli("--version").stdout.startswith("smp3d-export 0.")

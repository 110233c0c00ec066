"""int8: really 8 bits where it should be, the rest left out with its reason, and the ranges from the user's volumes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import making
import numpy as np
import onnx
import openvino
import pytest
from kernels import arithmetic_of
from onnx import numpy_helper
from small import SMALL
from typer.testing import CliRunner

from smp3d_export import backends, runtime
from smp3d_export.arrays import volume
from smp3d_export.backends.openvino import exporter as openvino_target
from smp3d_export.cli.main import app
from smp3d_export.contract import ShapeContract
from smp3d_export.errors import UsageError
from smp3d_export.precision import Precision
from smp3d_export.runtime.calibration import Calibration
from smp3d_export.sources.named import NamedNetwork
from smp3d_export.sources.request import Program, Request
from smp3d_export.validators.cases import reference_for
from smp3d_export.validators.parity import Case

pytest.importorskip("nncf")

# With these random weights every class has its part of the volume, so that a Dice coefficient says something.
DEPTHWISE = ("unet", "efficientnet-b0", *SMALL[2:], "--classes", "3", "--seed", "1")
NETWORKS = {"plain": (*SMALL, "--classes", "2"), "depthwise": DEPTHWISE}

TARGETS = ["openvino", "onnx"]

Make = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to calibrate on: a volume that is larger than the optimum, and one that is smaller along an axis."""
    folder = tmp_path_factory.mktemp("scans")
    for seed, sizes in ((7, (48, 40, 32)), (8, (40, 16, 24))):
        np.save(folder / f"scan{seed}.npy", volume((1, 1, *sizes), seed)[0, 0])
    return folder


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory, scans: Path) -> Make:
    """Exports a network of the table to all targets, once, by the command line."""
    folder = tmp_path_factory.mktemp("int8")

    def make(target: str, network: str) -> Path:
        place = folder / network
        if not place.exists():
            arguments = [*NETWORKS[network], "--to", ",".join(TARGETS), "--precision", "int8"]
            arguments += ["--calibration", str(scans), "--no-bench", "-o", str(place)]
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, result.output
            assert "━" not in result.output, "a progress bar of another's"
        return place / target

    return make


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


@pytest.mark.parametrize("target", TARGETS)
def test_the_manifest_says_what_is_in_int8_and_from_which_volumes(artifact: Make, target: str) -> None:
    manifest = manifest_of(artifact(target, "plain"))
    assert manifest["precision"] == "int8"
    assert manifest["calibration"]["files"] == ["scan7.npy", "scan8.npy"]
    quantisation = manifest["quantisation"]
    assert quantisation["layers"] == 19
    # ONNX Runtime has no kernel for the transposed ones; OpenVINO's may be wrong on this processor.
    assert quantisation["int8"] == {"openvino": 19, "onnx": 16}[target] - len(manifest.get("kept_fp32", ()))
    # Not a higher precision under another name.
    assert 1e-3 < manifest["parity"]["relative"] < 5e-2


@pytest.mark.parametrize("target", TARGETS)
def test_depthwise_convolutions_stay_out_and_the_regions_stay_where_they_are(artifact: Make, target: str) -> None:
    folder = artifact(target, "depthwise")
    manifest = manifest_of(folder)
    out = {row["reason"]: row["count"] for row in manifest["quantisation"]["left_out"].values()}
    assert [count for reason, count in out.items() if "depthwise" in reason] == [5]
    assert manifest["quantisation"]["int8"] == manifest["quantisation"]["layers"] - sum(out.values())
    shares = np.bincount(np.load(folder / "golden.npz")["masks"].argmax(1).ravel(), minlength=3) / 8**3
    assert shares.min() > 0.05, "a Dice coefficient of nothing"
    assert manifest["parity"]["dice"] > 0.97


@pytest.mark.parametrize("target", TARGETS)
def test_the_golden_input_is_none_of_the_volumes_and_proves_the_artifact_again(
    artifact: Make, cli, target: str
) -> None:
    folder = artifact(target, "plain")
    golden = np.load(folder / "golden.npz")
    assert np.array_equal(golden["image"], volume((1, 1, 8, 8, 8), 0))
    assert np.array_equal(golden["masks"], runtime.load(folder)(golden["image"])["masks"])
    assert cli("verify", folder).exit_code == 0


def cases_of(contract: ShapeContract, calibration: Calibration) -> dict[str, Case]:
    request = Request(
        source=NamedNetwork(architecture="Unet", encoder="resnet18"),
        precision=Precision.INT8,
        calibration=calibration,
    )
    opened: Any = SimpleNamespace(contract=contract, label_threshold=0.0)
    reference = reference_for(opened, Program(making.manifest("onnx", contract), (), 0), {}, request)
    return {case.name: case for case in reference.cases}


def stored(scans: Path) -> list[np.ndarray]:
    return [np.load(path) for path in sorted(scans.glob("*.npy"))]


def is_in(patch: np.ndarray, scan: np.ndarray) -> bool:
    """Whether a patch (H, W, D) was cut out of a scan, whose values are all different."""
    found = np.argwhere(scan == patch[0, 0, 0])
    return any(np.array_equal(scan[tuple(map(slice, at, at + patch.shape))], patch) for at in found)


def test_what_is_compared_is_of_the_volumes_at_places_of_its_own(scans: Path) -> None:
    contract = ShapeContract.of((2, 1, 32, 24, 16), multiple=(8, 8, 8), min_size=(8, 8, 8), max=(2, 1, 48, 40, 32))
    calibration = Calibration(scans)
    cases = cases_of(contract, calibration)
    assert {name: case.shape for name, case in cases.items()} == contract.parity_shapes()
    calibrated = list(calibration.patches(contract))
    for case in cases.values():
        images = case.make()
        assert images.shape == case.shape
        assert case.made_up is None
        assert all(any(is_in(image[0], scan) for scan in stored(scans)) for image in images)
        assert not any(np.array_equal(image, patch[0]) for image in images for patch in calibrated)


# Optimum, minimum, maximum and multiples; then what is compared, and what proves its shape alone.
CONTRACTS = {
    "a maximum beyond them, in two": (
        ((1, 1, 32, 24, 16), (1, 1, 8, 8, 8), (2, 1, 64, 48, 32), (8, 8, 8)),
        {"real part of the maximum": (2, 1, 48, 40, 32)},
        {"maximum": (2, 1, 64, 48, 32)},
    ),
    "an optimum beyond them": (
        ((1, 1, 64, 40, 16), (1, 1, 16, 8, 16), (1, 1, 64, 40, 16), (16, 8, 16)),
        {"real part of the optimum": (1, 1, 48, 40, 16)},
        {"optimum": (1, 1, 64, 40, 16)},
    ),
}


@pytest.mark.parametrize("name", CONTRACTS)
def test_no_value_is_compared_on_voxels_that_are_made_up(scans: Path, name: str) -> None:
    (opt, low, high, multiple), compared, made_up = CONTRACTS[name]
    contract = ShapeContract.of(opt, multiple=multiple, min_size=multiple, min=low, max=high)
    cases = cases_of(contract, Calibration(scans))
    assert {name: case.shape for name, case in cases.items() if "real part" in name} == compared
    assert {name: case.shape for name, case in cases.items() if case.made_up is not None} == made_up
    assert {*contract.parity_shapes()} <= {*cases} | {"maximum"}
    for case in cases.values():
        images = case.make()
        assert images.shape == case.shape
        if case.made_up is None:
            assert all(any(is_in(image[0], scan) for scan in stored(scans)) for image in images)


def test_volumes_below_the_minimum_are_compared_where_they_are_real(tmp_path: Path) -> None:
    """Along D they have 11 voxels, and the network needs at least 16."""
    scan = volume((1, 1, 40, 24, 11), 3)[0, 0]
    np.save(tmp_path / "scan.npy", scan)
    contract = ShapeContract.of((1, 1, 32, 32, 32), multiple=(16, 16, 16), min_size=(16, 16, 16))
    cases = cases_of(contract, Calibration(tmp_path))
    compared = {name: case for name, case in cases.items() if case.made_up is None}
    assert {name: case.shape for name, case in compared.items()} == {
        "real part of the optimum": (1, 1, 32, 16, 16),
        "real part of the minimum": (1, 1, 16, 16, 16),
        "real part of the maximum": (2, 1, 32, 16, 16),
    }
    for case in compared.values():
        assert case.real is not None
        for image in case.make():
            real = image[0][case.real]
            assert real.shape == (*case.shape[2:4], 11)
            assert is_in(real, scan)


def test_openvino_computes_in_int8(artifact: Make) -> None:
    run: Any = runtime.load(artifact("openvino", "plain"))
    manifest = manifest_of(artifact("openvino", "plain"))
    assert arithmetic_of(run.model, manifest) == {"i8"}
    assert run.arithmetic == manifest["arithmetic"] == "f32"
    model = openvino.Core().read_model(artifact("openvino", "plain") / "model.xml")
    types = [operation.get_type_name() for operation in model.get_ops()]
    assert types.count("FakeQuantize") >= 19
    weights = sum(tensor.stat().st_size for tensor in artifact("openvino", "plain").glob("model.bin"))
    # A quarter of what it takes in fp32, and a little more if this processor has to keep a convolution in fp32.
    assert weights < 0.35 * 8.9e6


def test_openvino_rounds_nothing_that_it_computes_in_fp32(artifact: Make) -> None:
    model = openvino.Core().read_model(artifact("openvino", "depthwise") / "model.xml")
    grouped = [operation for operation in model.get_ops() if operation.get_type_name() == "GroupConvolution"]
    read = {value.get_node().get_type_name() for layer in grouped for value in layer.input_values()}
    assert len(grouped) == 5
    assert "FakeQuantize" not in read


def test_onnx_has_its_layers_in_int8_and_its_interface_in_fp32(artifact: Make) -> None:
    model = onnx.load(artifact("onnx", "plain") / "model.onnx")
    graph = model.graph
    made_by = {name: node for node in graph.node for name in node.output}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for layer in graph.node:
        if layer.op_type == "Conv":
            image, weight = (made_by[name] for name in layer.input[:2])
            assert (image.op_type, weight.op_type) == ("DequantizeLinear", "DequantizeLinear")
            assert made_by[image.input[0]].op_type == "QuantizeLinear"
            assert weights[weight.input[0]].data_type == onnx.TensorProto.INT8
            assert len(weights[weight.input[1]].dims) == 1, "a scale for each channel"
            assert not numpy_helper.to_array(weights[image.input[2]]).any(), "no zero point"
    assert {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}
    axes = [dim.dim_param for dim in graph.input[0].type.tensor_type.shape.dim]
    assert axes == ["N", "", "H", "W", "D"]
    rounded = [made_by.get(node.input[0]) for node in graph.node if node.op_type == "QuantizeLinear"]
    assert not any(node is not None and node.op_type == "Conv" for node in rounded), "sums go through in full"
    assert runtime.load(artifact("onnx", "plain"))(np.zeros((2, 1, 8, 40, 32), np.float32))["masks"].shape[2:] == (
        (8, 40, 32)
    )


def test_an_onnx_file_in_int8_needs_no_volumes_again(artifact: Make, cli) -> None:
    file = artifact("onnx", "depthwise") / "model.onnx"
    result = cli("from", file, "--to", "openvino", "--no-bench", "-o", "net")
    assert result.exit_code == 0, result.output
    first, second = manifest_of(file.parent), manifest_of(Path("net"))
    assert (second["precision"], second["arithmetic"]) == ("int8", "f32")
    for name in ("quantisation", "calibration"):
        assert second[name] == first[name]
    result = cli("from", file, "--to", "openvino", "--calibration", ".", "-o", "other")
    assert result.exit_code == 2
    assert "is calibrated already" in result.stderr


def test_from_an_onnx_file_without_torch(exported: Path, scans: Path, tmp_path: Path) -> None:
    """NNCF would import torch, and report its use, where it can."""
    code = (
        "import sys; sys.argv[0] = 'smp3d-export'; from smp3d_export.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules\n"
        "from nncf.telemetry.wrapper import telemetry\n"
        "assert type(telemetry).__name__ != 'NNCFTelemetry'"
    )
    arguments = ["from", str(exported / "model.onnx"), "--to", "openvino", "--no-bench", "--json"]
    arguments += ["--precision", "int8", "--calibration", str(scans), "-o", str(tmp_path / "net")]
    done = subprocess.run([sys.executable, "-P", "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdicts"][0]["parity"]["passed"], "and nothing else on stdout"
    assert manifest_of(tmp_path / "net")["weights"] == "i8"


def test_without_nncf_there_is_a_way_out(cli, scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_target, "find_spec", lambda name: None if name == "nncf" else find_spec(name))
    assert backends.find("openvino").support(Precision.FP32).ready
    result = cli(*SMALL, "--to", "openvino", "--precision", "int8", "--calibration", scans)
    assert result.exit_code == 3
    assert "pip install 'smp3d-export[openvino]'" in " ".join(result.stderr.split())
    assert not list(Path().iterdir())


@pytest.mark.parametrize("target", TARGETS)
def test_without_volumes_there_is_no_int8(cli, target: str) -> None:
    result = cli(*SMALL, "--to", target, "--precision", "int8")
    assert result.exit_code == 2
    assert "--calibration" in result.stderr


def npy(array: np.ndarray) -> bytes:
    file = BytesIO()
    np.save(file, array)
    return file.getvalue()


GOOD = npy(np.random.default_rng(0).random((32, 24, 16), np.float32))
# A file beside a good one, and what is said of it, before the network is built or before it is captured.
BAD_VOLUMES = {
    "other channels": (npy(np.zeros((2, 32, 24, 16))), "bad.npy' has 2 channels, but the network takes 1", True),
    "channels last": (npy(np.zeros((32, 24, 16, 1))), "its last axis looks like the channels", True),
    "no volume": (b"nothing", "bad.npy' cannot be read as a volume", True),
    "two axes": (npy(np.zeros((32, 24))), "bad.npy' holds an array (32, 24)", True),
    "truncated": (GOOD[:-99], "bad.npy' cannot be read as a volume", False),
    "not finite": (npy(np.full((32, 24, 16), np.inf)), "bad.npy' has voxels that are not finite numbers", False),
    "constant": (npy(np.ones((32, 24, 16))), "bad.npy': a volume whose voxels are all equal cannot be z-scored", False),
}


@pytest.mark.parametrize("option", ["--calibration", "--sample"])
@pytest.mark.parametrize("case", BAD_VOLUMES)
def test_volumes_are_checked_before_any_work(cli, option: str, case: str) -> None:
    content, says, before_the_network = BAD_VOLUMES[case]
    Path("scans").mkdir()
    Path("scans/all_good.npy").write_bytes(GOOD)
    Path("scans/bad.npy").write_bytes(content)
    given = ["--calibration", "scans"] if option == "--calibration" else ["--sample", "scans/bad.npy"]
    given += ["--precision", "int8"] if option == "--calibration" else []
    encoder = ["--encoder-weights", "nowhere.pth"] if before_the_network else []
    result = cli(*SMALL, *given, *encoder, "--normalize", "zscore", "-o", "net")
    assert result.exit_code == 2
    output = " ".join(result.output.split())
    assert says in output
    assert "capture" not in output
    assert not Path("net").exists()


def test_batches_have_the_optimum_of_a_frozen_contract(scans: Path) -> None:
    contract = ShapeContract.of((3, 1, 32, 24, 16), multiple=(8, 8, 8), min_size=(8, 8, 8), static=True)
    batches = Calibration(scans, count=7).batches(contract)
    first, again = list(batches), list(batches)
    assert [batch.shape for batch in first] == [(3, 1, 32, 24, 16)] * len(batches) == [contract.opt] * 2
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    (filled,) = Calibration(scans, count=2).batches(contract)
    assert np.array_equal(filled[0], filled[2])
    assert not np.array_equal(filled[0], filled[1])


def test_a_small_volume_is_mirrored_and_a_folder_without_one_refused(scans: Path, tmp_path: Path) -> None:
    contract = ShapeContract.of((1, 1, 64, 32, 32), multiple=(8, 8, 8), min_size=(8, 8, 8))
    assert {patch.shape for patch in Calibration(scans, count=4).patches(contract)} == {(1, 1, 64, 32, 32)}
    with pytest.raises(UsageError, match="holds no volumes"):
        Calibration(tmp_path).files()

"""Targets that run in PyTorch."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

import making
import numpy as np
import pytest
import tiny_encoder
import torch
from layouts import check_layouts, check_refused
from making import export, load
from small import SMALL
from tiny_encoder import SPEC
from torch._inductor.sizevars import SizeVarAllocator

import smp3d_export as smp
from smp3d_export import backends as targets
from smp3d_export import hardware, runtime
from smp3d_export.artifact import manifest as manifests
from smp3d_export.artifact.folder import describe_files
from smp3d_export.backends import inductor
from smp3d_export.backends.compile import exporter as compile
from smp3d_export.backends.first_run import signal_of
from smp3d_export.contract import ShapeContract
from smp3d_export.errors import ShapeError, TargetUnavailableError, UsageError
from smp3d_export.precision import Precision
from smp3d_export.program.capture import capture
from smp3d_export.settings import Settings

# A network for the compiler, which takes seconds for every layer: a stage of the tiny encoder and one of a decoder.
NETWORK = ("unet", SPEC.name)
ARGUMENTS: dict[str, Any] = {"encoder_depth": 1, "decoder_channels": (4,)}
SHAPES: dict[str, Any] = {"shape": (1, 1, 32, 24, 16), "multiple": (8, 8, 8)}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_torchscript_is_dynamic_and_agrees(cli, precision: str) -> None:
    result = cli(*SMALL, "--to", "torchscript", "--precision", precision, "--aux-params", "classes=2", "--no-bench")
    assert result.exit_code == 0, result.output
    manifest = json.loads(Path("unet-resnet18/manifest.json").read_text())
    assert {case["output"] for case in manifest["parity"]["cases"]} == {"masks", "labels"}
    assert manifest["parity"]["relative"] < {"fp32": 1e-5, "bf16": 3e-2}[precision]
    run = runtime.load("unet-resnet18")
    assert run(np.zeros((2, 1, 8, 40, 32), np.float32))["masks"].shape == (2, 1, 8, 40, 32)
    with pytest.raises(ShapeError, match="W is 44, outside the contract"):
        run(np.zeros((1, 1, 8, 44, 32), np.float32))


def test_torchscript_carries_its_description_and_runs_without_this_package(cli, tiny: tuple[str, ...]) -> None:
    assert cli(*tiny, "--static", "--to", "torchscript", "--no-bench", "-o", "net").exit_code == 0
    extra = {"smp3d-export.contract": ""}
    program = torch.jit.load("net/model.ts", _extra_files=extra)
    assert json.loads(extra["smp3d-export.contract"])[2]["name"] == "H"
    golden = dict(np.load("net/golden.npz"))
    found = program(torch.from_numpy(golden["image"]))
    assert found.is_contiguous()
    assert np.abs(found.numpy() - golden["masks"]).max() < 1e-5 * np.ptp(golden["masks"]) + 1e-6


@pytest.mark.usefixtures("tiny")
def test_torchscript_makes_what_it_needs_where_its_image_is(tmp_path: Path) -> None:
    """The bins of a pyramid, which would else be on the device that the network was captured on."""
    model = smp.create_model("PSPNet", SPEC.name, encoder_weights=None, in_channels=1, encoder_depth=2).eval()
    contract = ShapeContract.of((1, 1, 32, 32, 32), multiple=model.multiple, min_size=model.min_size)
    export("torchscript", capture(model, contract), tmp_path)
    graph = torch.jit.load(str(tmp_path / "model.ts")).graph
    made = list(graph.findAllNodes("aten::arange"))
    assert len(made) > 3
    assert {node.inputsAt(node.inputsSize() - 2).node().kind() for node in made} == {"prim::device"}


def test_torchscript_has_no_int8(cli) -> None:
    np.save("scan.npy", np.zeros((32, 32, 32), np.float32))
    result = cli(*SMALL, "--to", "torchscript", "--precision", "int8", "--calibration", ".")
    assert result.exit_code == 3
    assert "torchscript does not have int8: use --precision fp32, fp16 or bf16" in result.stderr


AOTI = targets.find("aoti").support(Precision.FP32, "cpu")
needs_compiler = pytest.mark.skipif(not AOTI.ready, reason=AOTI.reason)


@pytest.fixture(scope="module")
def aoti(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export to AOTInductor with two outputs, which takes a quarter of a minute."""
    folder = tmp_path_factory.mktemp("aoti") / "net"
    arguments = {**ARGUMENTS, "aux_params": {"classes": 2}}
    with pytest.MonkeyPatch.context() as patch:
        tiny_encoder.register(patch)
        report = smp.export(*NETWORK, **SHAPES, to="aoti", arguments=arguments, output=folder, bench=False)
    report.raise_for_failure()
    return folder


@needs_compiler
def test_aoti_is_dynamic_and_agrees(aoti: Path) -> None:
    manifest = json.loads((aoti / "manifest.json").read_text())
    assert {case["output"] for case in manifest["parity"]["cases"]} == {"masks", "labels"}
    assert manifest["parity"]["relative"] < 1e-5
    assert sorted(manifest["files"]) == ["golden.npz", "model.pt2"]
    masks = runtime.load(aoti)(np.zeros((2, 1, 8, 40, 32), np.float32))["masks"]
    assert masks.shape == (2, 1, 8, 40, 32)
    assert masks.dtype == np.float32
    assert masks.flags.c_contiguous


@needs_compiler
@pytest.mark.parametrize(
    "shape", [(1, 1, 8, 44, 32), (1, 1, 8, 104, 32), (3, 1, 8, 40, 32), (1, 2, 8, 40, 32), (1, 40, 32)]
)
def test_aoti_refuses_a_shape_outside_the_contract(aoti: Path, shape: tuple[int, ...]) -> None:
    """The package itself would run some of them, and return something of a wrong size."""
    with pytest.raises(ShapeError):
        runtime.load(aoti)(np.zeros(shape, np.float32))


@needs_compiler
def test_aoti_runs_in_a_process_without_this_package(aoti: Path) -> None:
    script = """
import sys, numpy as np, torch
from torch._inductor import aoti_load_package
program, golden = aoti_load_package("model.pt2"), np.load("golden.npz")
masks, labels = program(torch.from_numpy(golden["image"]))
assert program.get_metadata()["smp3d-export.target"] == '"aoti"'
assert masks.is_contiguous() and not any(name.startswith("smp3d_export") for name in sys.modules)
print(abs(masks.numpy() - golden["masks"]).max() / np.ptp(golden["masks"]))
"""
    done = subprocess.run([sys.executable, "-P", "-c", script], cwd=aoti, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-5


@needs_compiler
def test_aoti_takes_the_threads_that_it_is_given(aoti: Path) -> None:
    with zipfile.ZipFile(aoti / "model.pt2") as package:
        code = "".join(package.read(name).decode() for name in package.namelist() if name.endswith(".cpp"))
    assert "#pragma omp parallel" in code
    assert "omp parallel num_threads" not in code
    threads = torch.get_num_threads()
    try:
        runtime.load(aoti, threads=threads + 1)
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)


@needs_compiler
@pytest.mark.parametrize(
    ("compiled_for", "error"),
    [
        ({"machine": platform.machine(), "features": ["amx_future"]}, "with amx_future, which this processor lacks"),
        ({"machine": "riscv64", "features": []}, "with the instructions of riscv64, which this processor lacks"),
    ],
)
def test_aoti_does_not_run_on_a_processor_that_it_was_not_compiled_for(
    aoti: Path, compiled_for: dict, error: str
) -> None:
    manifest = manifests.read(aoti)
    manifest = replace(manifest, facts={**manifest.facts, "compiled_for": compiled_for})
    with pytest.raises(TargetUnavailableError, match=error):
        load(aoti, manifest)


@needs_compiler
def test_aoti_records_everything_that_the_processor_has(aoti: Path) -> None:
    compiled_for = json.loads((aoti / "manifest.json").read_text())["compiled_for"]
    assert compiled_for["processor"] == hardware.processor()
    assert compiled_for["features"] == hardware.cpu_flags()


def crashing(package: Path, folder: Path) -> None:
    """Put code into a package that ends its process by SIGILL when it is loaded, as a wrong instruction would."""
    source = "#include <signal.h>\n__attribute__((constructor)) static void stop(void) { raise(SIGILL); }\n"
    (folder / "crash.c").write_text(source)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "crash.so", "crash.c"], cwd=folder, check=True)
    with zipfile.ZipFile(package) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(package, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, (folder / "crash.so").read_bytes() if name.endswith(".so") else content)


def made_elsewhere(artifact: Path) -> None:
    """Have an artifact say that another model of processor made it, which has nothing that this one lacks."""
    content = json.loads((artifact / "manifest.json").read_text())
    content["compiled_for"]["processor"] = "another"
    content["files"] = describe_files(artifact)
    (artifact / "manifest.json").write_text(json.dumps(content))


@needs_compiler
@pytest.mark.skipif(sys.platform == "win32" or not shutil.which("cc"), reason="it compiles a library for POSIX")
def test_machine_code_that_crashes_on_this_processor_is_an_error(
    aoti: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own: without the error it would be this one that ends."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    net = shutil.copytree(aoti, tmp_path / "net")
    crashing(net / "model.pt2", tmp_path)
    made_elsewhere(net)
    command = [sys.executable, "-P", "-m", "smp3d_export", "verify", str(net)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    said = " ".join((done.stdout + done.stderr).split())
    assert "crashed with SIGILL in its first run on this processor" in said
    assert "export it on this machine" in said
    assert "Traceback" not in said


@needs_compiler
def test_machine_code_runs_in_a_process_of_its_own_once_and_not_at_home(
    aoti: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    net = shutil.copytree(aoti, tmp_path / "net")
    made_elsewhere(net)
    python = sys.executable
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    runtime.load(aoti)
    with pytest.raises(FileNotFoundError):
        runtime.load(net)
    monkeypatch.setattr(sys, "executable", python)
    runtime.load(net)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    image = np.zeros((1, 1, 8, 8, 8), np.float32)
    assert np.array_equal(runtime.load(net)(image)["masks"], runtime.load(aoti)(image)["masks"])


@pytest.mark.parametrize(
    ("status", "name"), [(0, None), (1, None), (-4, "SIGILL"), (-99, "signal 99"), (0xC000001D, "0xC000001D")]
)
@pytest.mark.skipif(sys.platform == "win32", reason="signals have numbers of their own there")
def test_the_exit_status_tells_the_signal(status: int, name: str | None) -> None:
    assert signal_of(status) == name


CPUINFO = {
    "x86": "model name\t: A Processor\nflags\t\t: fpu sse2 ssse3 avx avx2 sha_ni hypervisor md_clear\n",
    "arm": "processor\t: 0\nFeatures\t: fp asimd evtstrm aes sve cpuid bf16\n",
}


@pytest.mark.skipif(sys.platform != "linux", reason="the flags are read as Linux lists them")
@pytest.mark.parametrize(
    ("kind", "features", "lacks"),
    [
        ("x86", ["fpu", "avx2", "sha_ni"], []),
        ("x86", ["avx2", "avx512bw", "avx512f", "fma"], ["avx512bw", "avx512f", "fma"]),
        ("x86", ["avx10_2", "apxf"], ["avx10_2", "apxf"]),  # of a processor to come
        ("x86", ["avx2", "ibrs_enhanced", "constant_tsc", "vmx"], []),  # of another kernel, or no virtual machine
        ("x86", ["avx2", "avx_vnni"], ["avx_vnni"]),  # as earlier versions recorded them: nine at the most
        ("x86", [], []),
        ("arm", ["asimd", "sve", "bf16"], []),
        ("arm", ["asimd", "sve2", "i8mm", "atomics"], ["sve2", "i8mm", "atomics"]),
        ("arm", ["asimd", "ssbs"], []),
    ],
)
def test_instructions_that_this_processor_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, features: list[str], lacks: list[str]
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(CPUINFO[kind])
    monkeypatch.setattr(hardware, "ROOT", tmp_path)
    compiled_for = {"machine": platform.machine(), "processor": hardware.processor(), "features": features}
    assert inductor.lacking(compiled_for) == lacks
    assert inductor.at_home(compiled_for) == (not lacks)
    assert not inductor.at_home(compiled_for | {"processor": "another"})


def earlier(made_on: dict[str, Any], **facts: Any) -> manifests.Manifest:
    contract = ShapeContract.of((1, 1, 8, 8, 8), multiple=(8, 8, 8))
    return making.manifest("aoti", contract, made_on=made_on, facts=facts)


def test_an_artifact_of_earlier_versions_was_compiled_for_the_machine_in_its_manifest() -> None:
    made_on = {"processor": "A", "features": ["avx2"], "system": "Linux x86_64"}
    known = {"machine": "x86_64", "processor": "A", "features": ["avx2"]}
    assert inductor.compiled_for(earlier(made_on)) == known  # torch.compile's
    own = {"machine": "x86_64", "features": ["avx2", "avx512f"]}
    assert inductor.compiled_for(earlier(made_on, compiled_for=own)) == known | own
    assert not inductor.at_home(inductor.compiled_for(earlier({})))


@needs_compiler
def test_aoti_runs_on_the_kind_of_device_that_it_was_compiled_for(aoti: Path) -> None:
    with pytest.raises(UsageError, match="compiled for cpu, and cannot run on cuda:1: export it with --device cuda:1"):
        runtime.load(aoti, device="cuda:1")


@needs_compiler
@pytest.mark.slow
def test_aoti_in_bf16(cli) -> None:
    result = cli(*SMALL, "--to", "aoti", "--precision", "bf16", "--aux-params", "classes=2", "--no-bench", "-o", "net")
    assert result.exit_code == 0, result.output
    manifest = json.loads(Path("net/manifest.json").read_text())
    assert 1e-5 < manifest["parity"]["relative"] < 3e-2
    assert manifest["kept_fp32"]
    assert runtime.load("net")(np.zeros((2, 1, 8, 40, 32), np.float32))["masks"].dtype == np.float32


def test_an_interrupted_compilation_leaves_nothing(
    cli, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        build = Path(os.environ[inductor.CACHE])
        assert build.is_relative_to(tmp_path)
        (build / "half.cpp").write_text("")
        raise KeyboardInterrupt

    monkeypatch.setattr(inductor.shutil, "which", lambda name: name)
    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", interrupted)
    monkeypatch.setenv(inductor.CACHE, "the user's")
    assert cli(*tiny, "--static", "--to", "aoti", "--no-bench", "-o", "net").exit_code == 130
    assert list(tmp_path.iterdir()) == []
    assert os.environ[inductor.CACHE] == "the user's"


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(TargetUnavailableError, match=r"no-such-compiler is not found: apt install g\+\+"):
        targets.ready("aoti")


def test_fp16_of_the_compiler_is_for_gpus() -> None:
    with pytest.raises(
        TargetUnavailableError, match=r"it has fp16 on an NVIDIA GPU only: use --precision fp32 or bf16"
    ):
        targets.ready("aoti", Precision.FP16)


@pytest.mark.parametrize("source", [(1, 2, 5), (6, 6, 6)])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (7, 1, 4), (3, 9, 2)])
def test_interpolation_for_the_compiler_is_that_of_pytorch(source: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *source, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(x, sizes, mode="trilinear", align_corners=True)
    assert torch.allclose(inductor.aligned(x, sizes), expected, atol=1e-6)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(("architecture", "wrong"), [("Linknet", "batch_norm"), ("PSPNet", "upsample_trilinear3d")])
def test_the_compiler_is_not_given_what_it_gets_wrong(architecture: str, wrong: str) -> None:
    """It folds batch normalisations into transposed convolutions wrongly, and divides by 0 where an axis is 1."""
    model = smp.create_model(architecture, SPEC.name, encoder_weights=None, in_channels=1, encoder_depth=2).eval()
    captured = capture(model, ShapeContract.of((1, 1, 32, 32, 32), multiple=model.multiple, min_size=model.min_size))
    program, _ = inductor.program(captured, Settings())
    named = [str(node.target) for node in captured.program.graph.nodes if wrong in str(node.target)]
    left = [str(node.target) for node in program.graph.nodes if wrong in str(node.target)]
    assert len(named) > len(left) == (1 if architecture == "PSPNet" else 0)  # PSPNet's last has no corners on corners


def test_the_compiler_says_no_if_it_cannot_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    def undecided(self: object, expression: object) -> bool:
        raise ValueError("Exponent must be non-negative.")

    monkeypatch.setattr(SizeVarAllocator, "guard_or_false", undecided, raising=False)
    inductor.decide_undecided()
    decided = SizeVarAllocator.guard_or_false
    assert decided(SizeVarAllocator(), True) is False
    inductor.decide_undecided()
    assert SizeVarAllocator.guard_or_false is decided


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "encoder"), [("linknet", "resnet18"), ("pspnet", "resnet18"), ("unet", "efficientnet-b0")]
)
def test_aoti_of_what_the_compiler_gets_wrong(cli, architecture: str, encoder: str) -> None:
    arguments = ("--shape", "1,1,32,32,32", "--to", "aoti", "--optimise", "off", "--no-bench", "-o", "net")
    result = cli(architecture, encoder, *arguments)
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export to torch.compile, which takes half a minute.

    In a process of its own: the compiler knows a graph again by the bytes of its pickle, in which the strings that a
    test session has interned stand otherwise.
    """
    folder = tmp_path_factory.mktemp("compiled") / "net"
    script = f"""
import sys, pytest, tiny_encoder, smp3d_export as smp
tiny_encoder.register(pytest.MonkeyPatch())
report = smp.export(*{NETWORK}, **{SHAPES}, to="compile", arguments={ARGUMENTS}, output=sys.argv[1], bench=False)
report.raise_for_failure()
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(tiny_encoder.__file__).parent)}
    command = [sys.executable, "-P", "-c", script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return folder


@needs_compiler
def test_compile_is_dynamic_and_agrees(compiled: Path) -> None:
    manifest = json.loads((compiled / "manifest.json").read_text())
    assert manifest["parity"]["relative"] < 1e-5
    assert manifest["cold_seconds"] > 0
    assert sorted(manifest["files"]) == ["golden.npz", "model.cache", "program.pt2"]
    run = runtime.load(compiled)
    image = np.random.default_rng(0).standard_normal((2, 1, 16, 40, 32), np.float32)
    masks = run(image)["masks"]
    assert masks.dtype == np.float32
    assert masks.flags.c_contiguous
    with pytest.raises(ShapeError, match="W is 44, outside the contract"):
        run(np.zeros((1, 1, 8, 44, 32), np.float32))


@needs_compiler
def test_compile_starts_warm_in_another_process(compiled: Path, tmp_path: Path) -> None:
    """Nothing is compiled for kinds of shapes that were met, and one program serves all sizes of a kind."""
    script = """
import sys, numpy as np
from pathlib import Path
from torch._dynamo.utils import counters
from smp3d_export import runtime
run = runtime.load(sys.argv[1])
code = lambda: sorted(path.name for path in Path(run.cache.name).rglob("*.so"))
before = code()
for shape in ((1, 1, 32, 24, 16), (1, 1, 64, 16, 32), (2, 1, 24, 48, 16), (2, 1, 16, 16, 16)):
    run(np.zeros(shape, np.float32))
assert code() == before and before, set(code()) - set(before)
print(counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"])
graphs = counters["stats"]["unique_graphs"]
run(np.zeros((2, 1, 64, 48, 32), np.float32))
assert counters["stats"]["unique_graphs"] == graphs == 2
"""
    environment = {**os.environ, inductor.CACHE: str(tmp_path)}
    command = [sys.executable, "-P", "-c", script, str(compiled)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", "0"]
    assert list(tmp_path.iterdir()) == []


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("target", ["aoti", "compile"])
def test_a_network_of_more_layers_agrees(cli, target: str) -> None:
    result = cli(*SMALL, "--to", target, "--no-bench", "-o", "net")
    assert result.exit_code == 0, result.output
    manifest = json.loads(Path("net/manifest.json").read_text())
    assert manifest["parity"]["relative"] < 1e-5


def test_compile_has_a_shape_for_each_kind_that_the_compiler_tells_apart() -> None:
    contract = ShapeContract.of((1, 1, 64, 64, 32), multiple=(32, 32, 32))
    assert compile.kinds(contract) == [contract.opt, contract.example(), contract.min]
    batches = ShapeContract.of((2, 1, 64, 64, 64), multiple=(32, 32, 32))
    assert compile.kinds(batches) == [batches.opt, batches.min]  # the example is of the optimum's kind
    static = ShapeContract.of((1, 1, 64, 64, 32), multiple=(32, 32, 32), static=True)
    assert compile.kinds(static) == [static.opt]


@needs_compiler
@pytest.mark.slow
def test_compile_in_bf16_with_static_axes(cli) -> None:
    result = cli(
        *SMALL, "--to", "compile", "--precision", "bf16", "--static", "--aux-params", "classes=2", "--no-bench"
    )
    assert result.exit_code == 0, result.output
    parity = json.loads(Path("unet-resnet18/manifest.json").read_text())["parity"]
    assert {case["output"] for case in parity["cases"]} == {"masks", "labels"}
    assert 1e-5 < parity["relative"] < 3e-2


@needs_compiler
@pytest.mark.parametrize("artifact", ["aoti", "compiled"])
def test_compiled_code_is_given_volumes_alone_in_its_own_layout(request: pytest.FixtureRequest, artifact: str) -> None:
    """The package itself reads any bytes as float32."""
    run = runtime.load(request.getfixturevalue(artifact))
    check_layouts(run)
    check_refused(run)


@pytest.mark.parametrize("other", [{"processor": "another"}, {"features": ["avx_future"]}, {"machine": "riscv64"}])
def test_compile_does_not_use_machine_code_of_another_processor(compiled: Path, other: dict) -> None:
    manifest = manifests.read(compiled)
    here: Any = load(compiled, manifest)
    assert list(Path(here.cache.name).rglob("*.so"))
    compiled_for = {**manifest.facts["compiled_for"], **other}
    elsewhere: Any = load(compiled, replace(manifest, facts={**manifest.facts, "compiled_for": compiled_for}))
    assert list(Path(elsewhere.cache.name).iterdir()) == []


@needs_compiler
def test_threads_may_share_a_runner_of_compile(compiled: Path) -> None:
    """The compiler is at work in one thread at a time, and nothing of what it is told stays behind.

    In a process of its own, whose compiler knows the program again.
    """
    script = """
import os, sys, numpy as np, torch
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from torch._inductor import config
from smp3d_export import runtime
from smp3d_export.backends import inductor
run = runtime.load(sys.argv[1])
program = torch.export.load(Path(sys.argv[1]) / "program.pt2").module(check_guards=False)
shapes = [(1, 1, 32, 24, 16), (2, 1, 24, 48, 16), (1, 1, 64, 16, 32), (2, 1, 16, 16, 16)]
images = [np.random.default_rng(n).standard_normal(shape, np.float32) for n, shape in enumerate(shapes)] * 4
with ThreadPoolExecutor(4) as pool:
    found = list(pool.map(lambda image: run(image)["masks"], images))
for image, masks in zip(images, found, strict=True):
    with torch.no_grad():
        expected = program(torch.from_numpy(image))
    expected = (expected[0] if isinstance(expected, tuple) else expected).numpy()
    assert np.abs(masks - expected).max() < 1e-4 * np.ptp(expected)
assert os.environ.get(inductor.CACHE) != run.cache.name and not config.freezing
"""
    command = [sys.executable, "-P", "-c", script, str(compiled)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@needs_compiler
def test_what_the_compiler_is_told_is_taken_back_when_threads_overlap(
    compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second call begins before the first has ended, if it can, and ends after it."""
    run: Any = runtime.load(compiled)
    monkeypatch.delenv(inductor.CACHE, raising=False)
    decide = SizeVarAllocator.guard_or_false
    began, both, ended = Event(), Event(), Event()

    def compiling(blocks: torch.Tensor) -> torch.Tensor:
        if len(blocks) == 1:
            began.set()
            both.wait(1)
        else:
            both.set()
            ended.wait()
        return blocks

    run.program.function = compiling
    first, second = (Thread(target=run, args=(np.zeros((n, 1, 8, 8, 8), np.float32),)) for n in (1, 2))
    first.start()
    began.wait()
    second.start()
    first.join()
    ended.set()
    second.join()
    assert SizeVarAllocator.guard_or_false is decide
    assert inductor.CACHE not in os.environ


@needs_compiler
def test_compile_says_which_file_it_cannot_load(compiled: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="PyTorch cannot load the program in"):
        load(tmp_path, manifests.read(compiled))

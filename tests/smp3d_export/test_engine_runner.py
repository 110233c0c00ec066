"""What the runner of engines does on a GPU, in what order: on a device of our own, for tests run where there is none.

The device keeps its memory in this process, and its engine doubles the image. What it cannot show is that NVIDIA's
libraries do as they say; that is for the tests marked `gpu`.
"""

# ruff: noqa: N802, N815 (CUDA's own names)
from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import making
import numpy as np
import pytest
from layouts import check_layouts, check_refused

from smp3d_export import backends
from smp3d_export.contract import Shape, ShapeContract
from smp3d_export.errors import ShapeError, Smp3dExportError, TargetUnavailableError, UsageError

api = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
CONTRACT = ShapeContract.of((1, 1, 8, 8, 8), multiple=(4, 4, 4))
ENGINES = [row.name for row in backends.ROWS if row.gpu]
SMALL, LARGE = (1, 1, 4, 4, 4), (2, 1, 16, 8, 4)
# What the device takes, by its own clock.
ENQUEUED, REPLAYED = 3.0, 1.0


class Device:
    """Functions of CUDA's runtime by their names, which return what NVIDIA's Python bindings do."""

    cudaMemcpyKind = api.cudaMemcpyKind
    cudaStreamCaptureMode = api.cudaStreamCaptureMode

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.recording: list[Callable[[], None]] | None = None
        self.milliseconds = 0.0
        self.alive: list[str] = []
        self.fails: set[str] = set()
        self.count = 2

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("cuda"):
            assert hasattr(api, name)
            if name in super().__getattribute__("fails"):
                return lambda *args: (api.cudaError_t.cudaErrorMemoryAllocation, None)
        return super().__getattribute__(name)

    def submit(self, work: Callable[[], None], milliseconds: float) -> None:
        if self.recording is not None:
            self.recording.append(work)
        else:
            work()
            self.milliseconds += milliseconds

    def cudaGetDeviceCount(self):
        return 0, self.count

    def cudaGetErrorString(self, status):
        return 0, b"out of memory"

    def cudaSetDevice(self, number):
        self.current = number
        return (0,)

    def cudaStreamCreate(self):
        self.alive.append("stream")
        return 0, api.cudaStream_t(7)

    def cudaStreamDestroy(self, stream):
        self.alive.remove("stream")
        return (0,)

    def cudaStreamSynchronize(self, stream):
        assert self.recording is None  # which would end the capture
        return (0,)

    def cudaMalloc(self, size):
        room = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(room)] = room
        return 0, ctypes.addressof(room)

    def cudaFree(self, address):
        del self.memory[address]
        return (0,)

    def cudaMemcpyAsync(self, to, source, size, kind, stream):
        on_device = source if kind == self.cudaMemcpyKind.cudaMemcpyDeviceToHost else to
        assert size <= len(self.memory[on_device])
        ctypes.memmove(to, source, size)
        return (0,)

    def cudaEventCreate(self):
        self.alive.append("event")
        return 0, SimpleNamespace()

    def cudaEventRecord(self, event, stream):
        event.at = self.milliseconds
        return (0,)

    def cudaEventSynchronize(self, event):
        return (0,)

    def cudaEventElapsedTime(self, start, end):
        return 0, end.at - start.at

    def cudaEventDestroy(self, event):
        self.alive.remove("event")
        return (0,)

    def cudaStreamBeginCapture(self, stream, mode):
        self.recording = []
        return (0,)

    def cudaStreamEndCapture(self, stream):
        recorded, self.recording = self.recording, None
        self.alive.append("graph")
        return 0, recorded

    def cudaGraphInstantiate(self, graph, flags):
        self.alive.append("executable")
        return 0, list(graph)

    def cudaGraphDestroy(self, graph):
        self.alive.remove("graph")
        return (0,)

    def cudaGraphExecDestroy(self, executable):
        self.alive.remove("executable")
        return (0,)

    def cudaGraphLaunch(self, executable, stream):
        for work in executable:
            self.submit(work, 0)
        self.milliseconds += REPLAYED
        return (0,)


class Engine:
    """Engine and context in one, with an input and an output of one shape. TensorRT's has `get_runtime_config` too."""

    num_io_tensors = 2

    def __init__(self, device: Device) -> None:
        self.device = device
        self.names = ["image", "masks"]
        self.profile = [CONTRACT.min, CONTRACT.opt, CONTRACT.max]
        self.config = None
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()
        self.loads = self.fits = self.works = True

    def get_tensor_name(self, number: int) -> str:
        return self.names[number]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[Shape]:
        return self.profile

    def create_runtime_config(self) -> SimpleNamespace:
        return SimpleNamespace()

    def create_execution_context(self, config: Any = None) -> Engine | None:
        self.config = config
        return self if self.fits else None

    def get_runtime_config(self) -> Any:
        return self.config

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        self.shape = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 7
        places, size = dict(self.addresses), int(np.prod(self.shape))

        def work() -> None:
            image, masks = (np.frombuffer(self.device.memory[places[name]], np.float32, size) for name in self.names)
            masks[:] = 2 * image

        if self.works:
            self.device.submit(work, ENQUEUED)
        return self.works


class Logger:
    INTERNAL_ERROR, ERROR, WARNING = range(3)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", device)
    return device


@pytest.fixture
def load(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    (tmp_path / "model.engine").write_bytes(b"engine")

    def loaded(target: str = "trt", on: str = "cpu", **changed: Any) -> Any:
        engine = Engine(device)
        vars(engine).update(changed)
        module = ModuleType(backends.find(target).library)
        module.__spec__ = ModuleSpec(module.__name__, None)
        module.__dict__.update(__version__="11", ILogger=Logger)
        if target == "trt-rtx":
            module.__dict__.update(CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole"))

        def runtime(log: Any) -> SimpleNamespace:
            if not engine.loads:
                log.log(Logger.ERROR, "made by another version")
            return SimpleNamespace(deserialize_cuda_engine=lambda content: engine if engine.loads else None)

        module.__dict__["Runtime"] = runtime
        monkeypatch.setitem(sys.modules, module.__name__, module)
        facts = {"engine": {"gpus": ["8.6"]}}
        return making.load(tmp_path, making.manifest(target, CONTRACT, versions={"tensorrt": "10"}, facts=facts), on)

    return loaded


def image_of(shape: Shape) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@pytest.mark.parametrize("target", ENGINES)
def test_runs_of_several_shapes_share_buffers_that_grow(device: Device, load, target: str) -> None:
    run = load(target)
    for shape in (SMALL, LARGE, SMALL, CONTRACT.opt):
        image = image_of(shape)
        assert np.array_equal(run(image)["masks"], 2 * image)
    assert sorted(map(len, device.memory.values())) == 2 * [4 * int(np.prod(LARGE))]
    with pytest.raises(ShapeError, match="H is 5"):
        run(image_of((1, 1, 5, 4, 4)))
    del run
    gc.collect()
    assert not device.memory
    assert not device.alive


@pytest.mark.parametrize("target", ENGINES)
def test_an_engine_is_given_volumes_alone_in_its_own_layout(load, target: str) -> None:
    run = load(target)
    check_layouts(run)
    check_refused(run)


def test_tensorrt_replays_a_graph_where_that_is_faster(device: Device, load) -> None:
    run = load("trt")
    assert run.seconds(image_of(SMALL)) == REPLAYED / 1e3
    assert run.seconds(image_of(LARGE)) == REPLAYED / 1e3
    assert len(run.launches) == 1  # that of the small shape had addresses of buffers that are gone
    assert run.seconds(image_of(SMALL)) == REPLAYED / 1e3
    image = image_of(LARGE)
    assert run.seconds(image) == REPLAYED / 1e3
    masks = np.empty(LARGE, np.float32)
    ctypes.memmove(masks.ctypes.data, run.buffers["masks"][0], masks.nbytes)
    assert np.array_equal(masks, 2 * image)
    assert device.alive.count("executable") == 2
    del run
    gc.collect()
    assert not device.alive


def test_tensorrt_launches_itself_where_nothing_can_be_captured(device: Device, load) -> None:
    device.fails.add("cudaGraphInstantiate")
    run = load("trt")
    assert run.seconds(image_of(SMALL)) == ENQUEUED / 1e3
    assert device.alive == ["stream"]


def test_tensorrt_rtx_is_told_to_capture_graphs_itself(device: Device, load) -> None:
    run = load("trt-rtx")
    assert run.engine.config.cuda_graph_strategy == "whole"
    assert run.seconds(image_of(SMALL)) == ENQUEUED / 1e3
    assert "executable" not in device.alive


def test_the_device_is_that_asked_for_in_every_thread(device: Device, load) -> None:
    run = load("trt", on="cuda:1")
    device.current = 0  # as another thread has it
    run(image_of(SMALL))
    assert device.current == 1


@pytest.mark.parametrize(
    ("changed", "error", "says"),
    [
        ({"loads": False}, TargetUnavailableError, r"tensorrt 11 cannot load .* built by 10 for 8.6: made by another"),
        (
            {"fits": False},
            TargetUnavailableError,
            "tensorrt cannot create an execution context for .*: it does not say why",
        ),
        ({"names": ["image", "mask"]}, UsageError, r"has the bindings \['image', 'mask'\], but its manifest"),
        ({"profile": [SMALL, SMALL, SMALL]}, UsageError, "has the profile"),
        ({"on": "cuda:2"}, TargetUnavailableError, "there is no GPU 2: this machine has 2, numbered from 0"),
    ],
)
def test_an_engine_that_cannot_be_had_says_why(load, changed: dict[str, Any], error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        load(**changed)


def test_errors_of_the_device_and_of_the_engine_are_said(device: Device, load) -> None:
    with pytest.raises(Smp3dExportError, match="the engine failed: it does not say why"):
        load(works=False)(image_of(SMALL))
    run = load()
    run(image_of(SMALL))
    device.fails.add("cudaMalloc")
    with pytest.raises(Smp3dExportError, match="CUDA: out of memory"):
        run(image_of(LARGE))
    device.fails.clear()
    image = image_of(SMALL)
    assert np.array_equal(run(image)["masks"], 2 * image)
    device.count = 0
    with pytest.raises(TargetUnavailableError, match="no NVIDIA GPU with a driver"):
        load()

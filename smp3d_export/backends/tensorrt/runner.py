"""Runs a TensorRT or TensorRT-RTX engine on an NVIDIA GPU, through NVIDIA's Python bindings.

Buffers on the device are kept from one run to the next. For each shape, TensorRT's launches are captured into a CUDA
graph if that is faster; TensorRT-RTX does that itself.
"""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np

from smp3d_export.arrays import Outputs, Volume
from smp3d_export.backends import runner
from smp3d_export.backends.runner import Artifact
from smp3d_export.backends.tensorrt.cuda import Cuda, logger
from smp3d_export.contract import INPUT
from smp3d_export.device import gpu_number
from smp3d_export.errors import Smp3dExportError, TargetUnavailableError, UsageError

TRIALS = 5


class Runner(runner.Runner):
    """A deserialised `model.engine` with its buffers, on the GPU that `device` names; for `cpu`, on the first."""

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact)
        row, manifest, path = artifact.row, artifact.manifest, artifact.file
        name = row.library
        self.cuda = Cuda(gpu_number(artifact.device))
        trt = importlib.import_module(name)
        self.log = logger(trt)
        self.runtime = trt.Runtime(self.log)
        self.engine = self.runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            raise TargetUnavailableError(
                f"{name} {trt.__version__} cannot load {str(path)!r}, built by "
                f"{manifest.versions.get(name.replace('_', '-'), 'another')} for "
                f"{', '.join(manifest.fact('engine', Mapping).get('gpus', ()))}: {self.why()}"
            )
        bindings = {self.engine.get_tensor_name(number) for number in range(self.engine.num_io_tensors)}
        self.outputs = list(manifest.outputs)
        if bindings != {INPUT, *self.outputs}:
            raise UsageError(f"{str(path)!r} has the bindings {sorted(bindings)}, but its manifest lists others")
        profile = [tuple(shape) for shape in self.engine.get_tensor_profile_shape(INPUT, 0)]
        if profile != [self.contract.min, self.contract.opt, self.contract.max]:
            raise UsageError(f"{str(path)!r} has the profile {profile}, but its manifest lists another")
        # TensorRT-RTX captures CUDA graphs itself if this is set; TensorRT does not.
        self.captures = hasattr(trt, "CudaGraphStrategy")
        self.context = self.new_context(trt)
        if self.context is None:
            raise TargetUnavailableError(f"{name} cannot create an execution context for {str(path)!r}: {self.why()}")
        self.stream = self.cuda(self.cuda.api.cudaStreamCreate())
        self.buffers: dict[str, tuple[int, int]] = {}
        self.graphs: list[Any] = []
        self.launches: dict[tuple[int, ...], Callable[[], None]] = {}
        weakref.finalize(self, release, self.cuda, self.stream, self.buffers, self.graphs)

    def new_context(self, trt: Any) -> Any:
        if not self.captures:
            return self.engine.create_execution_context()
        config = self.engine.create_runtime_config()
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return self.engine.create_execution_context(config)

    def _run(self, image: Volume) -> Outputs:
        self.place(image)
        self.enqueue()
        outputs = {}
        for name in self.outputs:
            output = np.empty(tuple(self.context.get_tensor_shape(name)), np.float32)
            self.cuda.copy(output.ctypes.data, self.buffers[name][0], output.nbytes, self.stream, to_host=True)
            outputs[name] = output
        self.cuda(self.cuda.api.cudaStreamSynchronize(self.stream))
        return outputs

    def _timed(self, image: Volume) -> float:
        """Run, and return the seconds it took by CUDA events, without the copies to and from the device."""
        self.place(image)
        if image.shape not in self.launches:
            self.launches[image.shape] = self.fastest_launch()
        return self.clocked(self.launches[image.shape])

    def clocked(self, launch: Callable[[], None]) -> float:
        start, end = self.cuda(self.cuda.api.cudaEventCreate()), self.cuda(self.cuda.api.cudaEventCreate())
        self.cuda(self.cuda.api.cudaEventRecord(start, self.stream))
        launch()
        self.cuda(self.cuda.api.cudaEventRecord(end, self.stream))
        self.cuda(self.cuda.api.cudaEventSynchronize(end))
        milliseconds = self.cuda(self.cuda.api.cudaEventElapsedTime(start, end))
        for event in (start, end):
            self.cuda(self.cuda.api.cudaEventDestroy(event))
        return milliseconds / 1e3

    def place(self, image: Volume) -> None:
        """Copy an image to the device, and give the context its shape and its buffers. Buffers only grow."""
        self.cuda.select()  # CUDA's device is set per thread, and this may not be the thread that loaded the engine
        if not self.context.set_input_shape(INPUT, image.shape):
            raise UsageError(f"the engine does not take the shape {image.shape}")
        for name in (INPUT, *self.outputs):
            size = 4 * prod(self.context.get_tensor_shape(name))
            _, room = self.buffers.get(name, (0, 0))
            if size > room:
                self.launches.clear()  # a captured graph holds addresses
                destroy(self.cuda, self.graphs)
                if name in self.buffers:
                    self.cuda(self.cuda.api.cudaFree(self.buffers.pop(name)[0]))
                self.buffers[name] = (self.cuda(self.cuda.api.cudaMalloc(size)), size)
            self.context.set_tensor_address(name, self.buffers[name][0])
        self.cuda.copy(self.buffers[INPUT][0], image.ctypes.data, image.nbytes, self.stream)
        self.cuda(self.cuda.api.cudaStreamSynchronize(self.stream))

    def enqueue(self) -> None:
        if not self.context.execute_async_v3(int(self.stream)):
            raise Smp3dExportError(f"the engine failed: {self.why()}")

    def why(self) -> str:
        return self.log.errors[-1] if self.log.errors else "it does not say why"

    def fastest_launch(self) -> Callable[[], None]:
        """The faster way to launch the engine for the current shape: directly, or by a captured CUDA graph."""
        self.enqueue()  # the set-up at the first run for a shape cannot be captured
        graph = self.captured()
        if graph is None:
            return self.enqueue
        ways = (self.enqueue, lambda: self.cuda(self.cuda.api.cudaGraphLaunch(graph, self.stream)))
        times = [min(self.clocked(way) for _ in range(TRIALS)) for way in ways]
        return ways[times.index(min(times))]

    def captured(self) -> Any | None:
        """The launches for the current shape as a CUDA graph; None if they cannot be captured, or already are."""
        api = self.cuda.api
        if self.captures:
            return None
        self.cuda(api.cudaStreamSynchronize(self.stream))
        self.cuda(api.cudaStreamBeginCapture(self.stream, api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
        recorded = self.context.execute_async_v3(int(self.stream))
        status, graph = api.cudaStreamEndCapture(self.stream)
        if not recorded or int(status):
            return None
        status, executable = api.cudaGraphInstantiate(graph, 0)
        api.cudaGraphDestroy(graph)
        if int(status):
            return None
        self.graphs.append(executable)
        return executable


def release(cuda: Cuda, stream: Any, buffers: dict[str, tuple[int, int]], graphs: list[Any]) -> None:
    """Free what a runner has on the device. Errors are ignored: the device may already be gone."""
    destroy(cuda, graphs)
    for address, _ in buffers.values():
        cuda.api.cudaFree(address)
    cuda.api.cudaStreamDestroy(stream)


def destroy(cuda: Cuda, graphs: list[Any]) -> None:
    while graphs:
        cuda.api.cudaGraphExecDestroy(graphs.pop())

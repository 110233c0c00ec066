"""CUDA's runtime and TensorRT's logger, through NVIDIA's Python bindings."""

from __future__ import annotations

import importlib
from typing import Any

from smp3d_export.errors import Smp3dExportError, TargetUnavailableError


class Cuda:
    """CUDA's runtime on one GPU. Call it with what a function of `api` returned, to get the value or an error."""

    def __init__(self, device: int) -> None:
        try:
            self.api: Any = importlib.import_module("cuda.bindings.runtime")
        except ImportError:
            raise TargetUnavailableError("cuda-python is not installed: pip install cuda-python") from None
        status, count = self.api.cudaGetDeviceCount()
        if int(status) or not count:
            raise TargetUnavailableError("this machine has no NVIDIA GPU with a driver")
        if device >= count:
            raise TargetUnavailableError(f"there is no GPU {device}: this machine has {count}, numbered from 0")
        self.device = device
        self.select()

    def select(self) -> None:
        self(self.api.cudaSetDevice(self.device))

    def __call__(self, returned: tuple[Any, ...]) -> Any:
        status, *values = returned
        if int(status):
            _, text = self.api.cudaGetErrorString(status)
            raise Smp3dExportError(f"CUDA: {text.decode()}")
        return values[0] if values else None

    def copy(self, to: int, source: int, size: int, stream: Any, *, to_host: bool = False) -> None:
        kinds = self.api.cudaMemcpyKind
        kind = kinds.cudaMemcpyDeviceToHost if to_host else kinds.cudaMemcpyHostToDevice
        self(self.api.cudaMemcpyAsync(to, source, size, kind, stream))


def logger(trt: Any) -> Any:
    """A logger for one of the two modules. It prints nothing and keeps the `errors`."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message)

    return Log()

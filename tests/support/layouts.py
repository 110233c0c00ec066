"""One volume in every type, byte order and layout that users have, and what is not a volume."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from smp3d_export.errors import UsageError
from smp3d_export.runtime import Runner


class Lazy:
    """What nibabel calls an array proxy: NumPy can read it, and it is not an array."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[Any]:
        return self.array.astype(np.float64)


TYPES = ("f2", "f4", "f8", "i1", "u1", "<i2", ">i2", "i8", ">u4", ">f2", ">f4", ">f8", "longdouble")


def layouts(whole: NDArray[np.float32]) -> dict[str, Any]:
    """A volume (N, C, H, W, D) of whole numbers below 128, by the name of its layout."""
    tensor = torch.from_numpy(whole)
    return {
        **{name: whole.astype(name) for name in TYPES},
        "transposed": whole.transpose(4, 3, 2, 1, 0).copy().transpose(4, 3, 2, 1, 0),
        "channels last": np.moveaxis(np.moveaxis(whole, 1, -1).copy(), -1, 1),
        "negative strides": whole[:, :, ::-1, :, ::-1].copy()[:, :, ::-1, :, ::-1],
        "negative stride of one channel": whole[:, ::-1],
        "every other voxel": np.repeat(whole, 2, axis=4)[..., ::2],
        "unaligned": np.frombuffer(b"-" + whole.tobytes(), np.uint8)[1:].view(np.float32).reshape(whole.shape),
        "read-only": np.frombuffer(whole.tobytes(), np.float32).reshape(whole.shape),
        "list": whole.tolist(),
        "array-like": Lazy(whole),
        "tensor": tensor,
        "tensor in channels last": tensor.to(memory_format=torch.channels_last_3d),
        "tensor in half precision": tensor.half(),
    }


def refused(shape: tuple[int, ...]) -> dict[str, Any]:
    """What holds no real numbers that float32 could hold, by what an error calls it."""
    zeros = np.zeros(shape, np.float32)
    return {
        "complex128": zeros.astype(complex),
        "object": zeros.astype(object),
        "<U32": zeros.astype(str),
        "|S4": zeros.astype("S4"),
        "datetime64[s]": zeros.astype("datetime64[s]"),
        "[('x', '<f4'), ('y', '<f4')]": np.zeros(shape, [("x", "f4"), ("y", "f4")]),
        "float32 cannot hold": np.full(shape, 1e39),
        "a list that NumPy cannot read": [[1.0], [1.0, 2.0]],
        "a Tensor that NumPy cannot read": torch.zeros(shape, requires_grad=True),
        "Got unsupported ScalarType BFloat16": torch.zeros(shape, dtype=torch.bfloat16),
    }


def check_layouts(run: Runner) -> None:
    """A runner gives the same outputs whatever the layout, and times every layout."""
    size = int(np.prod(run.contract.min))
    whole = np.arange(size, dtype=np.float32).reshape(run.contract.min) % 7
    expected = run(whole)
    for name, image in layouts(whole).items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = run(image)
            run.seconds(image)
        assert found.keys() == expected.keys()
        for output in expected:
            assert np.array_equal(found[output], expected[output]), name


def check_refused(run: Runner) -> None:
    """A runner refuses what is not a volume before its backend sees it, timed or not."""
    for says, image in refused(run.contract.min).items():
        for call in (run, run.seconds):
            with pytest.raises(UsageError) as error:
                call(image)
            assert says in str(error.value)

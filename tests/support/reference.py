"""The reference figures, and the rule that generates the weights and inputs of their cases."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

DATA = Path(__file__).parents[1] / "data"


def reference(name: str) -> Any:
    path = DATA / name
    return json.loads(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())


def fill(model: torch.nn.Module) -> None:
    """Fill in the weights of a reference case, each drawn from a generator seeded with its key."""
    for key, tensor in model.state_dict().items():
        rs = np.random.RandomState(zlib.crc32(key.encode()))
        shape = tuple(tensor.shape)
        if key.endswith("num_batches_tracked"):
            values = np.zeros(shape)
        elif key.endswith("running_var"):
            values = 0.5 + rs.random_sample(shape)
        elif key.endswith("running_mean"):
            values = 0.1 * rs.randn(*shape)
        elif len(shape) >= 2:
            values = rs.randn(*shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif key.endswith("bias"):
            values = 0.05 * rs.randn(*shape)
        else:
            values = 0.6 + 0.1 * rs.randn(*shape)
        tensor.copy_(torch.from_numpy(np.asarray(values)))


def reference_input(shape: list[int]) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(math.prod(shape) % 2**31).randn(*shape).astype(np.float32))


def disagreement(tensor: torch.Tensor, summary: dict[str, Any]) -> float:
    """The largest error at the sampled positions, as a fraction of the reference's largest absolute value.

    For a map without channels (Mix Vision Transformers have one) it is 0: only the shape is compared.
    """
    assert list(tensor.shape) == summary["shape"]
    if not tensor.numel():
        return 0.0
    values = tensor.double().numpy().ravel()
    positions = np.random.RandomState(values.size % 2**31).randint(0, values.size, len(summary["samples"]))
    return float(np.abs(values[positions] - np.array(summary["samples"])).max() / summary["absmax"])

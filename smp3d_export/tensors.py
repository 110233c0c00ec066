"""A file of tensors -> the state dict in it, read without running any code of it; and how two state dicts differ."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smp3d_export.errors import CheckpointError

# Where training scripts put the state dict, and what wrappers put before its keys.
CONTAINERS = ("state_dict", "model_state_dict", "model", "model_state", "net", "network")
PREFIXES = ("module", "model", "net", "_orig_mod")

# Harmless things that training scripts save beside the weights: arguments, and losses as numpy's numbers and arrays.
SAFE_GLOBALS = [
    argparse.Namespace,
    np.dtype,
    np.ndarray,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)),
    np.float64(0).__reduce__()[0],
    np.empty(0).__reduce__()[0],
]

SHOWN = 3


def read_tensors(path: Path) -> Mapping[str, Any]:
    """What a checkpoint file holds, read without running any code of it.

    Raises:
        CheckpointError: it does not exist, is truncated, is of another format, or is a pickle with code in it.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {str(path)!r}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{str(path)!r} is truncated or no safetensors file: {error}") from error
    try:
        with torch.serialization.safe_globals(SAFE_GLOBALS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols, in files that are none of torch's
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"(?:GLOBAL|global|class) (\w+(?:\.\w+)+)", str(error))
        if refused:
            raise CheckpointError(
                f"{str(path)!r} holds more than tensors ({refused[1]}), and loading that could run code, so it is "
                "refused. Save the weights alone: torch.save(model.state_dict(), ...)"
            ) from error
        raise CheckpointError(f"{str(path)!r} is truncated or no checkpoint: {first_line(error)}") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{str(path)!r} is truncated or no checkpoint: {first_line(error)}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{str(path)!r} holds a {type(content).__name__}, not a state dict")
    return content


def state_dict_in(content: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The state dict within what a training script saved.

    Raises:
        CheckpointError: there is none.
    """
    while not any(isinstance(value, Tensor) for value in content.values()):
        inner = next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            raise CheckpointError(
                f"{str(path)!r} holds no state dict: looked for tensors at the top and under {', '.join(CONTAINERS)}, "
                f"found {few(map(str, content))}"
            )
        content = inner
    return content


def bare(key: str) -> str:
    """A key without what wrappers put before it."""
    parts = key.split(".")
    while parts[0] in PREFIXES and len(parts) > 1:
        parts = parts[1:]
    return ".".join(parts)


def differences(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> list[str]:
    """A line for each kind of difference between the shapes of two state dicts, with a few keys."""
    lines = []
    for kind, names in (
        ("missing", [name for name in expected if name not in found]),
        ("unexpected", [name for name in found if name not in expected]),
    ):
        if names:
            lines.append(f"  {len(names)} {kind}: {few(names)}")
    wrong = [name for name in expected if name in found and found[name] != expected[name]]
    if wrong:
        shown = [f"{name} is {found[name]} and should be {expected[name]}" for name in wrong]
        lines.append(f"  {len(wrong)} wrongly shaped: {few(shown)}")
    return lines


def few(items: Iterable[str]) -> str:
    """The first items, and how many more there are."""
    names = list(items)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]

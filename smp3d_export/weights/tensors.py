"""A file of tensors -> what is in it, read without running any code of it; and how two state dicts differ."""

from __future__ import annotations

import argparse
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smp3d_export.errors import CheckpointError
from smp3d_export.weights.kinds import CUT, SAVE, is_safetensors, other_kind

# Harmless things that training scripts save beside the weights: arguments, paths, and losses as numpy's numbers and
# arrays. Older versions of numpy and Python have them in other modules.
SCALAR, ARRAY = np.float64(0).__reduce__()[0], np.empty(0).__reduce__()[0]
SAFE_GLOBALS = [
    argparse.Namespace,
    np.dtype,
    np.ndarray,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)),
    *((SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((ARRAY, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((PurePosixPath, f"pathlib.{name}PosixPath") for name in ("", "Pure", "_local.", "_local.Pure")),
    *((PureWindowsPath, f"pathlib.{name}WindowsPath") for name in ("", "Pure", "_local.", "_local.Pure")),
]

# Where the classes in a pickled model are from.
MODULES = ("torch.nn.", "torch.fx.")

SHOWN = 3


def read_tensors(path: Path) -> Mapping[str, Any]:
    """What a checkpoint file holds, read without running any code of it.

    Raises:
        CheckpointError: it does not exist, is cut short, is something else, or is a pickle with code in it.
    """
    if not path.exists():
        raise CheckpointError(f"there is no checkpoint {str(path)!r}")
    try:
        kind = other_kind(path)
        if kind is not None:
            raise CheckpointError(f"{str(path)!r} {kind}")
        content = read_safetensors(path) if is_safetensors(path) else read_pickle(path)
    except OSError as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error.strerror or first_line(error)}") from error
    if isinstance(content, list | tuple) and any(isinstance(part, Mapping) for part in content):
        return {str(position): part for position, part in enumerate(content)}
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{str(path)!r} holds a {type(content).__name__}, not a state dict: {SAVE}")
    return content


def read_safetensors(path: Path) -> Mapping[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{str(path)!r} {CUT} ({first_line(error)})") from error


def read_pickle(path: Path) -> Any:
    """What `torch.save` wrote. PyTorch's own messages are not shown: they advise to run the code in the file."""
    with torch.serialization.safe_globals(SAFE_GLOBALS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickle protocols, in files that torch did not write
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, MemoryError):
            raise
        except Exception as error:
            refused = globals_in(path, error)
            if not refused:
                reason = first_line(error)
                detail = "" if "weights" in reason.lower() else f" ({reason})"
                raise CheckpointError(f"{str(path)!r} {CUT}, or is not a checkpoint of PyTorch{detail}") from error
            model = any(name.startswith(MODULES) for name in refused)
            holds = "a whole pickled model" if model else "more than tensors"
            raise CheckpointError(
                f"{str(path)!r} holds {holds} ({few(refused)}), and loading that can run code, so it is refused. "
                f"Save the weights alone where it was written: {SAVE}"
            ) from error


def globals_in(path: Path, error: Exception) -> list[str]:
    """What a pickle names beside tensors and numbers: read from it, or, in an old format, the first, from the error."""
    if zipfile.is_zipfile(path):
        with suppress(Exception):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    return re.findall(r"(?:GLOBAL|global|class) (\w+(?:\.\w+)+)", str(error))[:1]


def usable(tensor: Tensor, dtype: torch.dtype, title: str) -> Tensor:
    """A tensor of a checkpoint in the type that a model has; `title` is what messages call it.

    Raises:
        CheckpointError: it has no values, needs more than itself to be read, or is not finite.
    """
    if tensor.is_meta:
        raise CheckpointError(f"{title} has a shape but no values: it was saved on the device meta")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        raise CheckpointError(f"{title} is {tensor.dtype} in the layout {tensor.layout}: save plain tensors")
    if dtype.is_floating_point and not tensor.is_floating_point():
        raise CheckpointError(
            f"{title} is {tensor.dtype}, and weights are floating point: save them before quantisation"
        )
    tensor = tensor.detach().to(dtype)
    check_finite(tensor, title)
    return tensor


def check_finite(tensor: Tensor, title: str) -> None:
    """Refuse a tensor that makes every prediction NaN or infinite, so that an artifact of it would be of no use.

    Raises:
        CheckpointError: it is not finite.
    """
    if not torch.isfinite(tensor).all():
        what = "NaN" if torch.isnan(tensor).any() else "infinite values"
        raise CheckpointError(f"{title} holds {what}, as after a training that diverged: use an earlier checkpoint")


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

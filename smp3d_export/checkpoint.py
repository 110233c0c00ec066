"""A trained checkpoint -> the model it belongs to: reads the file safely, infers the arguments, explains a mismatch."""

from __future__ import annotations

import argparse
import inspect
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smp3d_export.architectures import architecture_class, create_model
from smp3d_export.architectures.base import SegmentationModel, Shapes
from smp3d_export.encoders import ENCODERS, encoder_spec, get_encoder
from smp3d_export.errors import CheckpointError, UsageError

# Where training scripts put the state dict, and what wrappers put before its keys.
CONTAINERS = ("state_dict", "model_state_dict", "model", "model_state", "net", "network")
PREFIXES = ("module", "model", "net", "_orig_mod")
ROOTS = ("encoder", "decoder", "segmentation_head", "classification_head")

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
ALWAYS_SAID = ("in_channels", "classes")


@dataclass(frozen=True)
class Loaded:
    """A model with a checkpoint's weights, the arguments it was built with, and what a user should know."""

    model: SegmentationModel
    arguments: dict[str, Any]
    notes: tuple[str, ...]


def load_checkpoint(path: Path, architecture: str, encoder: str, given: Mapping[str, Any]) -> Loaded:
    """Build an architecture for a checkpoint and load it.

    Args:
        path: `.pth`, `.pt` or `.ckpt` (see `read_tensors`), or `.safetensors`.
        architecture: its class name.
        encoder: a row of the table of encoders.
        given: constructor arguments that the user gave; they win over what the tensors show.

    Raises:
        CheckpointError: the file cannot be read, or its tensors are not those of this network.
    """
    tensors, notes = state_dict_of(read_tensors(path), path)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    inferred = architecture_class(architecture).infer_arguments(shapes, encoder_spec(encoder))
    arguments = {**inferred, **given, "encoder_weights": None}
    try:
        with torch.device("meta"):  # nothing is drawn; the checkpoint's tensors become the model's
            model = create_model(architecture, encoder, **arguments)
    except CheckpointError:
        raise
    except UsageError as error:
        raise CheckpointError(f"{str(path)!r} does not fit {architecture}/{encoder}: {error}") from error
    for name, buffer in model.named_buffers():
        if name.endswith("num_batches_tracked"):  # absent from old checkpoints; no inference needs it
            tensors.setdefault(name, torch.zeros(buffer.shape, dtype=buffer.dtype))
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if expected != {name: tuple(tensor.shape) for name, tensor in tensors.items()}:
        raise mismatch(path, f"{architecture}/{encoder}", expected, tensors, inferred, given)
    model.load_state_dict(tensors, assign=True)
    model.requires_grad_(False)
    assumed = [name for name in ("activation", "strides") if name not in given]
    if assumed:
        notes.append(f"assumed, for tensors cannot show it: {', '.join(f'default {name}' for name in assumed)}")
    defaults = inspect.signature(type(model)).parameters
    told = [
        f"{name} {written(value)}"
        for name, value in inferred.items()
        if name not in given and (name in ALWAYS_SAID or list_of(value) != list_of(defaults[name].default))
    ]
    shown = ", ".join(told)
    if shown:
        notes.insert(0, f"inferred from the checkpoint: {shown}")
    return Loaded(model, arguments, tuple(notes))


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


def state_dict_of(content: Mapping[str, Any], path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The network's tensors in float32 under their own names, and notes of what was left out or converted.

    Raises:
        CheckpointError: there are none, or two networks claim one name.
    """
    while not any(isinstance(value, Tensor) for value in content.values()):
        inner = next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            raise CheckpointError(
                f"{str(path)!r} holds no state dict: looked for tensors at the top and under {', '.join(CONTAINERS)}, "
                f"found {few(map(str, content))}"
            )
        content = inner
    tensors: dict[str, Tensor] = {}
    ignored: list[str] = []
    converted: set[str] = set()
    for key, value in content.items():
        parts = key.split(".")
        while parts[0] in PREFIXES and len(parts) > 1:
            parts = parts[1:]
        if parts[0] not in ROOTS or not isinstance(value, Tensor):
            ignored.append(key)
            continue
        name = ".".join(parts)
        if name in tensors:
            raise CheckpointError(f"{str(path)!r} holds {name} twice, as {key} too: save one network alone")
        if value.is_floating_point() and value.dtype != torch.float32:
            converted.add(str(value.dtype).removeprefix("torch."))
            value = value.float()
        tensors[name] = value
    if not tensors:
        raise CheckpointError(
            f"{str(path)!r} holds no tensor of an {', '.join(ROOTS)}; its keys begin with {few(content)}"
        )
    notes = []
    if ignored:
        notes.append(f"ignored, for it is not the network's: {few(ignored)}")
    if converted:
        notes.append(f"converted to float32 from {', '.join(sorted(converted))}")
    return tensors, notes


def mismatch(
    path: Path,
    network: str,
    expected: Shapes,
    tensors: Mapping[str, Tensor],
    inferred: Mapping[str, Any],
    given: Mapping[str, Any],
) -> CheckpointError:
    """The error for tensors that are not the network's: a few keys of each kind, and the way out where one shows."""
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    lines = [f"{str(path)!r} is not a checkpoint of {network}:"]
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
    for name, value in inferred.items():
        if name in given and given[name] != value and list_of(given[name]) != list_of(value):
            lines.append(
                f"  The tensors show {name} {written(value)}: give --{name.replace('_', '-')} {written(value)}."
            )
    fitting = fitting_encoder(found)
    if fitting and not network.endswith(f"/{fitting}"):
        lines.append(f"  Its encoder is {fitting}: name that in place of {network.partition('/')[2]}.")
    return CheckpointError("\n".join(lines))


def fitting_encoder(shapes: Shapes) -> str | None:
    """The encoder that the tensors of a checkpoint are of, if one of the table has exactly them."""
    own = {name.removeprefix("encoder."): shape for name, shape in shapes.items() if name.startswith("encoder.")}
    own = {name: shape for name, shape in own.items() if not name.endswith("num_batches_tracked")}
    for spec in ENCODERS.values():
        stem = own.get(spec.stem)
        if stem is None or len(stem) != 5:
            continue
        with torch.device("meta"):
            candidate = get_encoder(spec.name, in_channels=stem[1])
        theirs = {name: tuple(tensor.shape) for name, tensor in candidate.state_dict().items()}
        if own == {name: shape for name, shape in theirs.items() if not name.endswith("num_batches_tracked")}:
            return spec.name
    return None


def few(items: Iterable[str]) -> str:
    """The first items, and how many more there are."""
    names = list(items)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def list_of(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def written(value: Any) -> str:
    """A value as the command line takes it."""
    return ",".join(str(v) for v in value) if isinstance(value, list | tuple) else str(value)

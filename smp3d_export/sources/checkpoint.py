"""A trained checkpoint -> the model it belongs to: reads the file safely, infers the arguments, explains a mismatch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smp3d_export.architectures import architecture_class, create_model
from smp3d_export.architectures.base import SegmentationModel, Shapes
from smp3d_export.encoders import ENCODERS, encoder_spec, get_encoder
from smp3d_export.errors import CheckpointError, UsageError
from smp3d_export.tensors import bare, differences, few, read_tensors, state_dict_in

ROOTS = ("encoder", "decoder", "segmentation_head", "classification_head")
ALWAYS_SAID = ("in_channels", "classes")
# Arguments that change what a network computes and leave its tensors as they are, at least sometimes.
UNSHOWN = ("encoder_depth", "encoder_output_stride", "decoder_atrous_rates", "upsampling", "activation", "strides")


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
    defaults = inspect.signature(type(model)).parameters
    assumed = [name for name in UNSHOWN if name in defaults and name not in arguments]
    if "aux_params" in inferred and "aux_params" not in given:
        assumed.append("pooling and activation of aux_params")
    if assumed:
        notes.append(f"assumed, for tensors cannot show it: {', '.join(f'default {name}' for name in assumed)}")
    told = [
        f"{name} {written(value)}"
        for name, value in inferred.items()
        if name not in given and (name in ALWAYS_SAID or list_of(value) != list_of(defaults[name].default))
    ]
    shown = ", ".join(told)
    if shown:
        notes.insert(0, f"inferred from the checkpoint: {shown}")
    return Loaded(model, arguments, tuple(notes))


def state_dict_of(content: Mapping[str, Any], path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The network's tensors in float32 under their own names, and notes of what was left out or converted.

    Raises:
        CheckpointError: there are none, or two networks claim one name.
    """
    tensors: dict[str, Tensor] = {}
    ignored: list[str] = []
    converted: set[str] = set()
    for key, value in state_dict_in(content, path).items():
        name = bare(key)
        if name.split(".")[0] not in ROOTS or not isinstance(value, Tensor):
            ignored.append(key)
            continue
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
    lines = [f"{str(path)!r} is not a checkpoint of {network}:", *differences(expected, found)]
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


def list_of(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def written(value: Any) -> str:
    """A value as the command line takes it."""
    return ",".join(str(v) for v in value) if isinstance(value, list | tuple) else str(value)

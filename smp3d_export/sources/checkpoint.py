"""A trained checkpoint -> the model it belongs to: finds its weights, infers the arguments, explains a mismatch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smp3d_export.architectures import architecture_class, create_model
from smp3d_export.architectures.base import SegmentationModel, Shapes
from smp3d_export.architectures.normalisation import NORM_ARGUMENTS, norm_of, norms_shown
from smp3d_export.architectures.persistence import build
from smp3d_export.encoders import ENCODERS, encoder_spec, get_encoder
from smp3d_export.encoders.published import shapes
from smp3d_export.errors import CheckpointError, UsageError
from smp3d_export.weights.sets import WeightSet, levels, nameless_averages, primary, weight_sets
from smp3d_export.weights.tensors import differences, few, read_tensors, usable

ROOTS = ("encoder", "decoder", "segmentation_head", "classification_head")
ALWAYS_SAID = ("in_channels", "classes")
# Arguments that change what a network computes and leave its tensors as they are, at least sometimes.
UNSHOWN = ("encoder_depth", "encoder_output_stride", "decoder_atrous_rates", "upsampling", "activation", "strides")


@dataclass(frozen=True)
class Loaded:
    """A model with a checkpoint's weights, the arguments it was built with, and what a user should know.

    `source` is the name of the file, and where the weights are in it if it holds several sets.
    """

    model: SegmentationModel
    arguments: dict[str, Any]
    notes: tuple[str, ...]
    source: str


def load_checkpoint(
    path: Path, architecture: str, encoder: str, given: Mapping[str, Any], weights_key: str | None = None
) -> Loaded:
    """Build an architecture for a checkpoint and load it.

    Args:
        path: `.pth`, `.pt` or `.ckpt` (see `read_tensors`), or `.safetensors`.
        architecture: its class name.
        encoder: a row of the table of encoders.
        given: constructor arguments that the user gave. They win over what the tensors show.
        weights_key: which weights, if the file holds several: where they are, or the beginning of that. Without it
            they are those that are not by their name an average (`ema`, `swa`).

    Raises:
        CheckpointError: the file cannot be read, has no weights or several that could be meant, or its tensors are not
            those of this network.
    """
    content = read_tensors(path)
    sets = complete(weight_sets(content, ROOTS))
    if not sets:
        raise CheckpointError(f"{str(path)!r} {nothing_in(content, encoder)}")
    asked = sets if weights_key is None else asked_for(weights_key, sets, path)
    attempts = [Attempt(weights, architecture, encoder, given) for weights in asked]
    fitting = {attempt.weights.place: attempt for attempt in attempts if attempt.fits}
    if not fitting:
        raise max(attempts, key=lambda attempt: attempt.agreement).error(path)
    chosen, others = primary([attempt.weights for attempt in fitting.values()])
    if chosen is None:
        raise CheckpointError(
            f"{str(path)!r} holds several sets of weights of this network: {places(others)}. "
            f"Choose one, for example with --weights-key {others[0].place}"
        )
    attempt = fitting[chosen.place]
    converted = load(attempt.model, chosen, path)
    notes = [*attempt.notes, *converted]
    if others:
        notes.insert(0, f"weights taken from {chosen.place}; --weights-key takes others: {places(others)}")
    notes += [f"not used, because its tensors have no names: {place}" for place in nameless_averages(content)]
    theirs = {each.prefix + name for each in sets if each.level is chosen.level for name in each.names}
    ignored = [key for key in chosen.level if key not in theirs]
    if ignored:
        notes.append(f"ignored, because it is not part of the network: {few(ignored)}")
    source = path.name if len(sets) == 1 else f"{path.name} ({chosen.place})"
    return Loaded(attempt.model, attempt.arguments, tuple(notes), source)


@dataclass(frozen=True)
class Attempt:
    """A set of weights and the model that its shapes ask for, on the device `meta`."""

    weights: WeightSet
    architecture: str
    encoder: str
    given: Mapping[str, Any]

    @cached_property
    def found(self) -> Shapes:
        return shapes(self.weights.tensors)

    @cached_property
    def inferred(self) -> dict[str, Any]:
        return architecture_class(self.architecture).infer_arguments(self.found, encoder_spec(self.encoder))

    @property
    def arguments(self) -> dict[str, Any]:
        decided = NORM_ARGUMENTS if NORM_ARGUMENTS & self.given.keys() else ()
        inferred = {name: value for name, value in self.inferred.items() if name not in decided}
        return {**inferred, **self.given, "encoder_weights": None}

    @cached_property
    def built(self) -> SegmentationModel | UsageError:
        try:
            return build(create_model, {"arch": self.architecture, "encoder_name": self.encoder, **self.arguments})
        except UsageError as error:
            return error

    @property
    def model(self) -> SegmentationModel:
        if isinstance(self.built, UsageError):
            raise self.built
        return self.built

    @cached_property
    def expected(self) -> Shapes:
        return {} if isinstance(self.built, UsageError) else shapes(self.built.state_dict())

    @property
    def fits(self) -> bool:
        return not isinstance(self.built, UsageError) and self.found == self.expected

    @property
    def agreement(self) -> int:
        """How many tensors are as the model has them."""
        return sum(self.expected.get(name) == shape for name, shape in self.found.items())

    def error(self, path: Path) -> CheckpointError:
        """Why it does not fit: a few names of each kind, and what to do about it where that shows."""
        network, found = f"{self.architecture}/{self.encoder}", self.found
        where = str(path) if self.weights.place == "." else f"{path} ({self.weights.place})"
        flat = next((name for name, shape in found.items() if len(shape) == 4), None)
        if flat is not None and not any(len(shape) == 5 for shape in found.values()):
            return CheckpointError(
                f"{where!r} is a checkpoint of a 2D network: {flat} has four axes, {found[flat]}. Inflate it first: "
                "torch.save(smp3d_export.convert_2d_weights_to_3d(state_dict), 'weights3d.pth')"
            )
        empty = next((name for name, shape in found.items() if 0 in shape), None)
        if empty is not None:
            return CheckpointError(
                f"{where!r} has empty tensors, {empty} first, as in one part of a sharded training (DeepSpeed, FSDP): "
                "gather the weights, and save them whole"
            )
        if isinstance(self.built, UsageError):
            return CheckpointError(f"{where!r} does not fit {network}: {self.built}")
        lines = [f"{where!r} is not a checkpoint of {network}:", *differences(self.expected, found)]
        lines += self.norm_lines()
        for name, value in self.inferred.items():
            if name in NORM_ARGUMENTS:
                continue
            if name in self.given and list_of(self.given[name]) != list_of(value):
                lines.append(
                    f"  The tensors show {name} {written(value)}: give --{name.replace('_', '-')} {written(value)}."
                )
        fitting = fitting_encoder(found)
        if fitting and fitting != self.encoder:
            lines.append(f"  Its encoder is {fitting}: give that instead of {self.encoder}.")
        if all(name.startswith("encoder.") for name in found):
            lines.append(f"  It holds an encoder alone: start from that with --encoder-weights {path}.")
        return CheckpointError("\n".join(lines))

    def norm_lines(self) -> list[str]:
        """What to give if the decoder's normalisation is another one than the tensors show."""
        block = architecture_class(self.architecture).norm_block
        shown = norms_shown(self.found, block)
        if shown in ((), norms_shown(self.expected, block)):
            return []
        if len(shown) == 1:
            return [f"  The tensors show another normalisation in the decoder: give --decoder-use-norm {shown[0]}."]
        return [
            f"  The decoder's normalisation has weights and no running statistics, as {', '.join(shown[:-1])} and "
            f"{shown[-1]} have: give --decoder-use-norm with the one that it was trained with."
        ]

    @property
    def notes(self) -> list[str]:
        """What the tensors showed of the arguments, and what had to be assumed."""
        notes = []
        defaults = inspect.signature(architecture_class(self.architecture)).parameters
        shown = [
            f"{name} {written(value)}"
            for name, value in self.inferred.items()
            if name in self.arguments
            and name not in self.given
            and (name in ALWAYS_SAID or list_of(value) != list_of(defaults[name].default))
        ]
        if shown:
            notes.append(f"inferred from the checkpoint: {', '.join(shown)}")
        assumed = [f"default {name}" for name in UNSHOWN if name in defaults and name not in self.arguments]
        if "aux_params" in self.inferred and "aux_params" not in self.given:
            assumed.append("default pooling and activation of aux_params")
        norm = self.arguments.get("decoder_use_norm")
        if norm is not None and "num_groups" not in norm_of(norm).arguments and norm_of(norm).name == "groupnorm":
            assumed.append("default num_groups of decoder_use_norm")
        if assumed:
            notes.append(f"assumed, because tensors cannot show it: {', '.join(assumed)}")
        return notes


def complete(sets: list[WeightSet]) -> list[WeightSet]:
    """The sets with both ends of a network; without one, those with any part of it."""
    ends = [f"{ROOTS[0]}.", f"{ROOTS[2]}."]
    whole = [each for each in sets if all(any(name.startswith(end) for name in each.tensors) for end in ends)]
    return whole or sets


def asked_for(key: str, sets: list[WeightSet], path: Path) -> list[WeightSet]:
    """The sets at or below a place.

    Raises:
        CheckpointError: there is none.
    """
    found = [each for each in sets if each.place == key] or [each for each in sets if each.place.startswith(f"{key}.")]
    if not found:
        raise CheckpointError(
            f"{str(path)!r} has no weights of a segmentation network under --weights-key {key}. "
            f"It has some under: {places(sets)}"
        )
    return found


def places(sets: list[WeightSet]) -> str:
    return ", ".join(each.place for each in sets)


def nothing_in(content: Mapping[Any, Any], encoder: str) -> str:
    """What to say of a file without any part of a network, after its name."""
    tensors = [str(key) for _, level in levels(content) for key, value in level.items() if isinstance(value, Tensor)]
    if any(key.endswith(encoder_spec(encoder).stem) for key in tensors):
        return "holds no whole network, but perhaps an encoder: give it as --encoder-weights, not as --checkpoint"
    what = f"tensors such as {few(tensors)}" if tensors else f"no tensors, but {few(map(str, content)) or 'nothing'}"
    return f"holds no weights of a segmentation network, which are called {', '.join(ROOTS)}. It holds {what}"


def load(model: SegmentationModel, weights: WeightSet, path: Path) -> list[str]:
    """Give a model its weights in float32, and note what they were converted from.

    Raises:
        CheckpointError: some cannot be used.
    """
    state, types = {}, set()
    for name, own in model.state_dict().items():
        tensor = weights.tensors.get(name)
        if tensor is None:  # a count of batches, which old checkpoints lack and no inference needs
            state[name] = torch.zeros(own.shape, dtype=own.dtype)
            continue
        if tensor.dtype != own.dtype and own.is_floating_point():
            types.add(str(tensor.dtype).removeprefix("torch."))
        state[name] = usable(tensor, own.dtype, f"{name} of {str(path)!r}")
    model.load_state_dict(state, assign=True)
    model.requires_grad_(False)
    return [f"converted to float32 from {', '.join(sorted(types))}"] if types else []


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

"""The weights in what a training script saved: on every level, under every prefix, and which of several are meant."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from smp3d_export.errors import CheckpointError

# What wrappers of layers put into names: torch.compile, FSDP, activation checkpointing.
TRANSPARENT = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Words in the names of what has the shapes of weights and is not weights.
NOT_WEIGHTS = {"optimizer", "optimizers", "optimiser", "optim", "opt", "grad", "grads", "gradients"}
# Words in the names of averages over the steps of a training, which are a second set beside the weights.
AVERAGES = {"ema", "swa", "averaged", "average", "avg", "shadow", "polyak"}
# Lightning's WeightAveraging saves the averages as state_dict, and the weights of the last step under this name.
REPLACED = "current_model_state"


@dataclass(frozen=True)
class WeightSet:
    """Tensors on one level of a file, by the names that a network has for them.

    `place` says where they are: the keys that lead to the level, then the prefix of their names, as `state_dict.model`,
    or `.` for the top. `level` are all tensors there; those whose key is `prefix` and one of `names` are the set's.
    """

    place: str
    level: Mapping[str, Tensor]
    prefix: str
    names: tuple[str, ...]

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return {name: self.level[self.prefix + name] for name in self.names}

    @property
    def whole(self) -> WeightSet:
        """The same with all that has its prefix."""
        names = (key.removeprefix(self.prefix) for key in self.level if key.startswith(self.prefix))
        return replace(self, names=tuple(names))

    @property
    def second(self) -> bool:
        """Whether it stands, by its name, behind another: an average of the weights, or what was replaced by one."""
        return is_average(self.place) or REPLACED in self.place or "n_averaged" in self.level

    def equals(self, other: WeightSet) -> bool:
        return self.tensors.keys() == other.tensors.keys() and all(
            tensor is other.tensors[name] or equal(tensor, other.tensors[name]) for name, tensor in self.tensors.items()
        )


def weight_sets(content: Mapping[Any, Any], roots: Collection[str]) -> list[WeightSet]:
    """Every set of tensors whose names go on, behind one prefix, with one of `roots`, in the order of the file.

    Raises:
        CheckpointError: two tensors of a level have the same name.
    """
    found = []
    for path, content_of_level in levels(content):
        level: dict[str, Tensor] = {}
        by_prefix: dict[str, list[str]] = {}
        for key, value in content_of_level.items():
            if not isinstance(key, str) or not isinstance(value, Tensor):
                continue
            parts = [part for part in key.split(".") if part not in TRANSPARENT]
            if level.setdefault(".".join(parts), value) is not value:
                raise CheckpointError(f"two tensors of the file are called {'.'.join(parts)}: save one network alone")
            for position, part in enumerate(parts):
                if part in roots:
                    prefix = "".join(f"{part}." for part in parts[:position])
                    by_prefix.setdefault(prefix, []).append(".".join(parts[position:]))
        for prefix, names in by_prefix.items():
            place = ".".join(filter(None, (*path, prefix.removesuffix(".")))) or "."
            if NOT_WEIGHTS.isdisjoint(words(place)):
                found.append(WeightSet(place, level, prefix, tuple(names)))
    return found


def levels(content: Any, path: tuple[str, ...] = (), seen: frozenset[int] = frozenset()) -> Iterator[Any]:
    """Every mapping in a nest of mappings and lists, with the keys that lead to it, but for those of an optimiser."""
    if id(content) in seen or not NOT_WEIGHTS.isdisjoint(words(".".join(path))):
        return
    if isinstance(content, Mapping):
        yield path, content
        items = content.items()
    elif isinstance(content, list | tuple):
        items = enumerate(content)
    else:
        return
    for key, value in items:
        yield from levels(value, (*path, str(key)), seen | {id(content)})


def nameless_averages(content: Mapping[Any, Any]) -> list[str]:
    """Where there are lists of tensors that are by their name averages of the weights, as torch_ema saves them."""
    return [
        place
        for path, level in levels(content)
        for key, value in level.items()
        if isinstance(value, list | tuple) and value and all(isinstance(item, Tensor) for item in value)
        if is_average(place := ".".join((*path, str(key))))
    ]


def words(name: str) -> set[str]:
    """The words of a name, in lower case: `emaModel_2` has ema and model."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def is_average(place: str) -> bool:
    return not AVERAGES.isdisjoint(words(place))


def equal(one: Tensor, other: Tensor) -> bool:
    readable = all(tensor.layout == torch.strided and not tensor.is_meta for tensor in (one, other))
    return readable and one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)


def primary(sets: Sequence[WeightSet]) -> tuple[WeightSet | None, list[WeightSet]]:
    """The set that is meant unless another is asked for, and those that are not the same as it.

    It is the only one, or the only one that is not by its name an average. None if there are more.
    """
    distinct: list[WeightSet] = []
    for candidate in sets:
        if not any(candidate.equals(other) for other in distinct):
            distinct.append(candidate)
    first = distinct if len(distinct) == 1 else [candidate for candidate in distinct if not candidate.second]
    if len(first) != 1:
        return None, distinct
    return first[0], [other for other in distinct if other is not first[0]]

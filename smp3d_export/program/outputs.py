"""What a module returns -> named tensors: a tensor, or tuples, lists, dicts and dataclasses of them, however nested."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from smp3d_export.errors import UsageError

MASKS = "masks"
"""The name of a single output that has none."""
OUTPUT = "output"


def tensors_of(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in a module's result, each by its key, field or number, joined by underscores.

    What is not a tensor, such as None, is left out.
    """
    if isinstance(value, Tensor):
        yield name or OUTPUT, value
        return
    if isinstance(value, Mapping):
        parts = list(value.items())
    elif is_dataclass(value) and not isinstance(value, type):
        parts = [(field.name, getattr(value, field.name)) for field in fields(value)]
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = list(zip(value._fields, value, strict=True))  # pyright: ignore[reportAttributeAccessIssue]
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        parts = [(number, part) for number, part in enumerate(value)]
        name = name or OUTPUT
    else:
        return
    for key, part in parts:
        plain = re.sub(r"\W+", "_", str(key))
        yield from tensors_of(part, f"{name}_{plain}" if name else plain)


def named(value: Any) -> dict[str, Tensor]:
    """The tensors in a module's result by name. A single one without a name is `masks`.

    Raises:
        UsageError: there is none, or two have the same name.
    """
    found = list(tensors_of(value))
    if not found:
        raise UsageError(f"the network returns no tensor, but a {type(value).__name__}")
    if len(found) == 1 and found[0][0] in (OUTPUT, f"{OUTPUT}_0"):
        return {MASKS: found[0][1]}
    names = dict(found)
    if len(names) < len(found):
        twice = next(name for name in names if sum(name == other for other, _ in found) > 1)
        raise UsageError(f"two outputs of the network are called {twice!r}: give them different keys")
    return names


def returning(model: nn.Module, names: Sequence[str]) -> nn.Module:
    """The model itself, changed to return the tensors of these names as a tuple.

    Its class becomes a subclass, so the names of its layers stay as they are.
    """
    own: Any = model.__dict__.pop("forward", None)  # a method that was replaced on the object
    kind = type(model)

    def forward(self: nn.Module, image: Tensor) -> tuple[Tensor, ...]:
        found = named(own(image) if own is not None else kind.forward(self, image))
        return tuple(found[name] for name in names)

    model.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return model

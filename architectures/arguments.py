"""The arguments of a model's constructor: recorded by name as plain values, and checked. Imports no torch."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from smp3d_export.errors import UsageError, unknown

WORDS = {
    int: ("a whole number from 1 up", "whole numbers from 1 up"),
    float: ("a number from 0 to 1", "numbers from 0 to 1"),
    bool: ("true or false", "true or false values"),
    str: ("a name", "names"),
    NoneType: ("none", "none"),
    Mapping: ("a mapping", "mappings"),
    Callable: ("a callable", "callables"),
}


class Opaque:
    """Replaces a value that JSON cannot represent. The value itself is not kept, so the model can still be pickled."""

    def __init__(self, value: object) -> None:
        self.text = repr(value)
        self.callable = callable(value)

    def __repr__(self) -> str:
        return self.text


def plain(value: Any) -> Any:
    """A value as JSON represents it: lists for sequences and numpy arrays, Python numbers for numpy's, text for paths.

    A value that JSON cannot represent, such as a callable, becomes `Opaque`.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    as_list = getattr(value, "tolist", None)
    return plain(as_list()) if as_list else Opaque(value)


def is_opaque(value: Any) -> bool:
    """Whether a plain value contains something that JSON cannot represent."""
    if isinstance(value, list | dict):
        return any(is_opaque(item) for item in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, Opaque)


def by_name(cls: type, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The plain arguments of the call `cls(*args, **kwargs)` by name, including defaults.

    Raises:
        UsageError: a user's own class took some as `*args`, so they have no names.
    """
    signature = inspect.signature(cls.__init__)
    call = signature.bind(None, *args, **kwargs)
    call.apply_defaults()
    arguments: dict[str, Any] = {}
    for name, parameter in list(signature.parameters.items())[1:]:
        value = call.arguments[name]
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments |= value
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            arguments[name] = plain(value)
        elif value:
            raise UsageError(
                f"{cls.__name__} was built with the positional arguments {value}, which have no names in its "
                f"__init__ (*{name}): pass them by name"
            )
    return arguments


def check_arguments(cls: type, arguments: Mapping[str, Any], owner: str | None = None) -> None:
    """Refuse arguments that a class does not have, and values of the wrong type.

    Whole numbers are counts, so they must be 1 or more. Other numbers are probabilities.

    Args:
        cls: the class whose constructor has the names and types.
        arguments: values by name.
        owner: what the message calls the class; its name by default.

    Raises:
        UsageError: an argument is unknown (the message lists the nearest and all), or its value has the wrong type.
    """
    owner = owner or cls.__name__
    parameters = inspect.signature(cls).parameters
    names = [name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD]
    hints = get_type_hints(cls.__init__)
    for name, value in arguments.items():
        if name not in names and len(names) == len(parameters):
            raise unknown(f"{owner} argument", name, names, ", ".join(names))
        if not fits(plain(value), hints.get(name, Any)):
            raise UsageError(f"{name} of {owner} is {value!r}; it takes {words(hints[name])}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value fits a type annotation, as far as the constructors here use them."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return any(fits(value, option) for option in inner)
    if kind is Any:
        return True
    if kind is Sequence:
        return isinstance(value, list) and all(fits(item, inner[0]) for item in value)
    if kind is Callable:
        return isinstance(value, Opaque) and value.callable
    if isinstance(value, bool):
        return kind is bool
    if kind is int:
        return isinstance(value, int) and value >= 1
    if kind is float:
        return isinstance(value, int | float) and 0 <= value <= 1
    return isinstance(value, kind)


def words(hint: Any, *, many: bool = False) -> str:
    """What a type is called in a message."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return " or ".join(words(option) for option in inner)
    if kind is Sequence:
        return f"{'lists' if many else 'a list'} of {words(inner[0], many=True)}"
    one, several = WORDS.get(kind, (str(hint), str(hint)))
    return several if many else one

"""Whether a model still is what its constructor's arguments describe; if not, the first module that differs.

A saved model is arguments and tensors. A layer that was replaced or changed after construction is in neither: a model
built from the arguments would take the same tensors and be another network.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

# Attributes that change no prediction: what is compared by itself, and what only training or a state dict uses.
NEUTRAL = {
    *("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"),
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook"),
    *("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
    *("_compiled_call_impl", "_given", "training", "drop_rate", "drop_prob"),
}
BATCH_NORMS = (nn.BatchNorm3d, nn.SyncBatchNorm)  # the same but for training on several GPUs
NEUTRAL_OF: Mapping[type | tuple[type, ...], set[str]] = {
    BATCH_NORMS: {"momentum", "track_running_stats", "process_group"},
    _DropoutNd: {"p", "inplace"},
}
# Modules that call every layer they hold, in order. Any other calls those that its code names.
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
HOOKS = {"_forward_hooks": "forward hook", "_forward_pre_hooks": "forward pre-hook"}
SHOWN = 60


def deviation(model: nn.Module, described: nn.Module) -> str | None:
    """How a model differs from the one that its arguments describe, in what changes a prediction.

    Args:
        model: in training or eval mode, in any precision, on any device.
        described: a model of the same class, just built from the arguments. On the device `meta` the values of buffers
            that no state dict holds are not compared.

    Returns:
        The first module that differs, and how: `encoder.bn1 of this Unet has eps 0.001; its arguments describe 1e-05`.
        None if there is no difference.
    """
    return next(Comparison(f"this {type(model).__name__}").modules(model, described), None)


class Comparison:
    """Compares two models, module by module in their order; `title` is what messages call the first."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.seen: set[tuple[int, int]] = set()  # pairs compared before: a module may hold its parent

    def modules(self, ours: nn.Module, theirs: nn.Module, name: str = "") -> Iterator[str]:
        """The differences between two modules and between the modules in them."""
        self.seen.add((id(ours), id(theirs)))
        place = f"{name} of {self.title}" if name else self.title
        classes = {type(ours), type(theirs)}
        if len({named(cls) for cls in classes}) > 1 and not classes <= set(BATCH_NORMS):
            yield f"{place} is {a(ours, theirs)}; its arguments describe {a(theirs, ours)}"
            return
        for attribute, kind in HOOKS.items():
            hooks = list(vars(ours)[attribute].values())
            if not self.same(hooks, list(vars(theirs)[attribute].values())):
                yield f"{place} has a {kind} ({', '.join(map(called, hooks))}), which its arguments do not describe"
        yield from self.layers(ours, theirs, place)
        yield from self.settings(ours, theirs, place)
        for buffer in sorted(theirs._non_persistent_buffers_set):  # loading a state dict does not bring them back
            if not self.same(ours._buffers.get(buffer), theirs._buffers[buffer]):
                yield f"{place} has other values in {buffer} than its arguments describe"
        for child, layer in theirs._modules.items():
            path = f"{name}.{child}" if name else child
            own = ours._modules[child]
            if own is None or layer is None:
                if own is not layer:
                    yield f"{path} of {self.title} is {a(own)}; its arguments describe {a(layer)}"
            else:
                yield from self.modules(own, layer, path)

    def layers(self, ours: nn.Module, theirs: nn.Module, place: str) -> Iterator[str]:
        """Layers that are missing or, in a container, too many or in another order."""
        own, described = list(ours._modules), list(theirs._modules)
        for name in described:
            if name not in own:
                yield f"{place} has no layer {name!r}, which its arguments describe"
        if isinstance(theirs, CONTAINERS) and own != described:
            for name in own:
                if name not in described:
                    added = a(ours._modules[name])
                    yield f"{place} has a layer {name!r}, {added}, which its arguments do not describe"
            yield f"{place} has its layers in the order {', '.join(own)}; its arguments describe {', '.join(described)}"

    def settings(self, ours: nn.Module, theirs: nn.Module, place: str) -> Iterator[str]:
        """Attributes that are neither tensors nor layers, and methods that the instance has of its own."""
        neutral = NEUTRAL.union(*(names for classes, names in NEUTRAL_OF.items() if isinstance(ours, classes)))
        for name, value in vars(theirs).items():
            if name in neutral:
                continue
            if name not in vars(ours):
                yield f"{place} has no {name}; its arguments describe {shown(value)}"
                continue
            own = vars(ours)[name]
            if name == "inplace" and own is False:
                continue  # switched off, to look at the map before: the same values in more memory
            if not self.same(own, value):
                yield f"{place} has {name} {shown(own)}; its arguments describe {shown(value)}"
        for name, value in vars(ours).items():
            # Attributes that the class does not know are a user's notes, which none of its code reads.
            if name not in neutral and name not in vars(theirs) and hasattr(type(theirs), name):
                yield f"{place} has a {name} of its own ({called(value)}), which its arguments do not describe"

    def same(self, ours: Any, theirs: Any) -> bool:
        """Whether two values mean the same: classes and functions by name and code, objects by what they hold."""
        if ours is theirs or (id(ours), id(theirs)) in self.seen:
            return True
        match ours, theirs:
            case nn.Module(), nn.Module():
                return next(self.modules(ours, theirs), None) is None
            case Tensor(), Tensor():
                if ours.shape != theirs.shape or ours.is_meta or theirs.is_meta:
                    return ours.shape == theirs.shape
                return torch.equal(ours.cpu(), theirs.cpu().to(ours.dtype))
            case np.ndarray(), np.ndarray():
                return np.array_equal(ours, theirs)
            case Mapping(), Mapping():
                return ours.keys() == theirs.keys() and all(self.same(ours[key], theirs[key]) for key in ours)
            case (str() | bytes(), _) | (_, str() | bytes()):
                return ours == theirs
            case Sequence(), Sequence():
                return len(ours) == len(theirs) and all(map(self.same, ours, theirs))
            case type(), type():
                return named(ours) == named(theirs)
            case FunctionType(), FunctionType():
                return named(ours) == named(theirs) and self.same(parts(ours), parts(theirs))
            case MethodType(), MethodType():
                return self.same((ours.__func__, ours.__self__), (theirs.__func__, theirs.__self__))
            case functools.partial(), functools.partial():
                return self.same((ours.func, ours.args, ours.keywords), (theirs.func, theirs.args, theirs.keywords))
        if type(ours).__eq__ is object.__eq__:
            self.seen.add((id(ours), id(theirs)))
            return self.same(
                (type(ours), getattr(ours, "__dict__", {})), (type(theirs), getattr(theirs, "__dict__", {}))
            )
        return bool(ours == theirs) or (ours != ours and theirs != theirs)  # NaN equals nothing


def parts(function: FunctionType) -> tuple[Any, ...]:
    """What a function does: its code, its defaults and the values it encloses."""
    return function.__code__, function.__defaults__, [cell.cell_contents for cell in function.__closure__ or ()]


def named(value: type | FunctionType) -> tuple[str, str]:
    return value.__module__, value.__qualname__


def called(value: Any) -> str:
    return getattr(value, "__name__", type(value).__name__)


def a(module: nn.Module | None, other: nn.Module | None = None) -> str:
    """A module's class with its article; where it is from too, if the `other` is of another class of that name."""
    if module is None:
        return "None"
    cls = type(module)
    origin = f" of {cls.__module__}" if type(other).__name__ == cls.__name__ else ""
    return f"{'an' if cls.__name__[0] in 'AEIOU' else 'a'} {cls.__name__}{origin}"


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."

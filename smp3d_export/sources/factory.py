"""`package.module:factory` or `file.py:factory` -> the network that this code of the user's returns."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from smp3d_export.errors import CheckpointError, UsageError, nearest, summary
from smp3d_export.sources.foreign import Foreign, Given

if TYPE_CHECKING:
    from torch import nn

PATTERN = re.compile(r"(?P<place>.+\.py|[^\W\d]\w*(?:\.\w+)*):(?P<name>[^\W\d]\w*(?:\.\w+)*)")


def is_factory(text: str) -> bool:
    """Whether a text names a function or class in a module or a file."""
    return PATTERN.fullmatch(text) is not None


@dataclass(frozen=True, kw_only=True, eq=False)
class Factory(Foreign):
    """A function or class that returns a network, or a network itself, in code of the user's.

    Attributes:
        target: `package.module:factory`, or `path/to/file.py:factory`.
        arguments: what it is called with.
        checkpoint: trained weights; without one they are what the factory gives.
        weights_key: which weights of a checkpoint that holds several.
        name: what the network is called; by default after its class.
    """

    target: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Path | None = None
    weights_key: str | None = None
    name: str | None = None

    @property
    def title(self) -> str:
        return self.name or self.target.rpartition(":")[2].lower()

    def load(self) -> Given:
        module = build(self.target, self.arguments, self.seed)
        weights, notes = f"weights of the factory, seed {self.seed}", ()
        if self.checkpoint is not None:
            weights, notes = load_weights(module, self.checkpoint, self.weights_key)
        elif self.weights_key is not None:
            raise UsageError(f"--weights-key {self.weights_key} needs a --checkpoint that holds such weights")
        return Given(
            module=module,
            name=self.name or type(module).__name__,
            weights=weights,
            notes=(f"this runs the code in {self.target.rpartition(':')[0]}", *notes),
            arguments=self.arguments,
            facts={"factory": portable(self.target)},
        )


def portable(target: str) -> str:
    """A target without the folders of this machine."""
    place, _, name = target.rpartition(":")
    return f"{Path(place).name if place.endswith('.py') else place}:{name}"


def build(target: str, arguments: Mapping[str, Any], seed: int) -> nn.Module:
    """Import and call a factory, with PyTorch's random numbers seeded.

    Raises:
        UsageError: there is no such code, it fails, or it returns no module.
    """
    import torch
    from torch import nn

    found = located(target)
    if isinstance(found, nn.Module):
        if arguments:
            raise UsageError(f"{target} is a network already, not a function: leave out --factory-arg")
        return found
    if not callable(found):
        raise UsageError(f"{target} is a {type(found).__name__}, not a function or class that returns a network")
    check_arguments(found, target, arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            module = found(**arguments)
        except Exception as error:
            from smp3d_export.program.capture import users_line

            raise UsageError(f"{target} raised {users_line(error)}{summary(error)}") from error
    if not isinstance(module, nn.Module):
        raise UsageError(f"{target} returned a {type(module).__name__}, not a torch.nn.Module")
    return module


def check_arguments(factory: Callable[..., Any], target: str, arguments: Mapping[str, Any]) -> None:
    """Refuse a call that lacks arguments or has others than the factory takes.

    Raises:
        UsageError: it names them.
    """
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # some callables in C have none
        return
    by_name = [p for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    missing = [p.name for p in by_name if p.default is p.empty and p.name not in arguments]
    if missing:
        given = " ".join(f"--factory-arg {name}=..." for name in missing)
        raise UsageError(f"{target} needs {', '.join(missing)}: give {given}")
    names = [p.name for p in by_name]
    unknown = [name for name in arguments if name not in names]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        near = nearest(unknown[0], names)
        hint = f"Nearest: {', '.join(near)}." if near else f"It takes: {', '.join(names) or 'none'}."
        raise UsageError(f"{target} has no argument {unknown[0]!r}. {hint}")


def located(target: str) -> Any:
    """The object that a target names.

    Raises:
        UsageError: the code cannot be imported, or has no such name.
    """
    match = PATTERN.fullmatch(target)
    if match is None:
        raise UsageError(f"{target!r} is not package.module:factory or path/to/file.py:factory")
    place, name = match["place"], match["name"]
    found: Any = imported(place)
    for part in name.split("."):
        if not hasattr(found, part):
            near = nearest(part, [each for each in vars(found) if not each.startswith("_")])
            hint = f" Nearest: {', '.join(near)}." if near else ""
            raise UsageError(f"{place} has no {part!r}.{hint}")
        found = getattr(found, part)
    return found


def imported(place: str) -> ModuleType:
    """A module by its name, or a file, which may import what lies beside it.

    Raises:
        UsageError: there is none, or importing it fails.
    """
    file = Path(place) if place.endswith(".py") else None
    if file is not None and not file.is_file():
        raise UsageError(f"there is no file {place!r}")
    folder = os.fspath(file.resolve().parent if file is not None else Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        if file is None:
            return importlib.import_module(place)
        spec = importlib.util.spec_from_file_location(file.stem, file)
        if spec is None or spec.loader is None:
            raise UsageError(f"{place!r} is not Python code")
        module = importlib.util.module_from_spec(spec)
        sys.modules[file.stem] = module
        spec.loader.exec_module(module)
        return module
    except UsageError:
        raise
    except ModuleNotFoundError as error:
        if file is None and error.name is not None and place.split(".")[0] == error.name.split(".")[0]:
            raise UsageError(
                f"there is no module {error.name!r}: it must be installed, or lie in the working directory"
            ) from error
        raise UsageError(f"{place} needs {error.name}, which is not installed") from error
    except (Exception, SystemExit) as error:
        from smp3d_export.program.capture import users_line

        raise UsageError(f"{place} cannot be imported: {users_line(error)}{summary(error)}") from error


def load_weights(module: nn.Module, path: Path, key: str | None) -> tuple[str, tuple[str, ...]]:
    """Give a module the weights in a checkpoint, and return where they are from, with notes.

    Raises:
        CheckpointError: the file cannot be read, or its tensors are not the module's.
    """
    from smp3d_export.sources.checkpoint import asked_for, places
    from smp3d_export.weights.sets import primary, weight_sets
    from smp3d_export.weights.tensors import differences, few, read_tensors, usable

    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    content = read_tensors(path)
    sets = weight_sets(content, {name.split(".")[0] for name in expected})
    if not sets:
        raise CheckpointError(
            f"{str(path)!r} holds no weights of {type(module).__name__}, which are called {few(expected)}"
        )
    if key is not None:
        sets = asked_for(key, sets, path)
    shapes = [{name: tuple(tensor.shape) for name, tensor in each.tensors.items()} for each in sets]
    fitting = [each for each, found in zip(sets, shapes, strict=True) if found == expected]
    if not fitting:
        lines = min((differences(expected, found) for found in shapes), key=lambda lines: len("".join(lines)))
        raise CheckpointError("\n".join([f"{str(path)!r} does not fit {type(module).__name__}:", *lines]))
    first, others = primary(fitting)
    if first is None:
        raise CheckpointError(
            f"{str(path)!r} holds several sets of weights of this network: {places(others)}. "
            f"Choose one, for example with --weights-key {others[0].place}"
        )
    own = module.state_dict()
    state = {
        name: usable(tensor, own[name].dtype, f"{name} of {str(path)!r}") for name, tensor in first.tensors.items()
    }
    module.load_state_dict(state)
    notes = (f"weights taken from {first.place}; --weights-key takes others: {places(others)}",) if others else ()
    return path.name if len(sets) == 1 else f"{path.name} ({first.place})", notes

"""A network of the user's: any module with one input. Running it shows its outputs and the sizes that it takes."""

from __future__ import annotations

import abc
import copy
import inspect
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from operator import mod
from typing import TYPE_CHECKING, Any

from smp3d_export.contract import ShapeContract, rounded_up, written
from smp3d_export.errors import ExportError, UsageError, nearest, summary
from smp3d_export.progress import Reporter

if TYPE_CHECKING:
    from torch import Tensor, nn

    from smp3d_export.contract import Shape
    from smp3d_export.program.capture import Captured
    from smp3d_export.sources.network import Network, OpenedNetwork
    from smp3d_export.sources.request import Request, Sizes
    from smp3d_export.sources.sizes import Needs

EXAMPLE = "--shape N,C,H,W,D, for example --shape 1,1,96,96,96"


@dataclass(frozen=True, kw_only=True)
class Given:
    """A module, and what is known about it.

    Attributes:
        name: what messages and the manifest call it.
        weights: where its weights come from.
        shape: the shape to export at by default.
        arguments: what it was built with.
        facts: what the manifest says beside that.
        owned: whether nobody else has the module, so that it need not be copied.
    """

    module: nn.Module
    name: str
    weights: str
    shape: Sizes | None = None
    notes: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    owned: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class Foreign(abc.ABC):
    """A source of a module that this package does not define.

    Attributes:
        keep_outputs: the names of the outputs to export; all of them if it is empty.
    """

    keep_outputs: tuple[str, ...] = ()
    seed: int = 0

    @property
    @abc.abstractmethod
    def title(self) -> str: ...

    @abc.abstractmethod
    def load(self) -> Given:
        """Build or read the module.

        Raises:
            UsageError: there is no such module.
        """

    def complete(self, request: Request) -> Request:
        from smp3d_export.sources.network import complete

        return complete(request)

    def open(self, request: Request, reporter: Reporter) -> OpenedNetwork:
        from smp3d_export.sources.network import Network

        given = self.load()
        shape = request.shape or given.shape
        if shape is None:
            raise UsageError(f"the sizes of a network of your own are not known in advance: give {EXAMPLE}")
        check_one_input(given.module, given.name)
        check_shape = ShapeContract.of(shape, multiple=(1, 1, 1), network=given.name).opt
        module = (given.module if given.owned else copied(given.module, given.name)).float().eval()
        started = time.perf_counter()
        with reporter.working("finding the sizes that the network takes"):
            found = examine(module, given.name, check_shape, request, self.keep_outputs)
        notes = given.notes
        if len(found.outputs) < len(found.all_outputs):
            dropped = [name for name in found.all_outputs if name not in found.outputs]
            notes += (f"outputs left out: {', '.join(dropped)}",)
        elif len(found.outputs) > 1:
            notes += (f"outputs: {', '.join(found.outputs)}. --keep-output NAME exports some of them",)
        if any(found.needs.fixed) and not request.static:
            axes = [name for name, fixed in zip("HWD", found.needs.fixed, strict=True) if fixed]
            notes += (f"the network runs at one size along {', '.join(axes)} only, which stays fixed",)
        network = Network(
            model=module,
            architecture=given.name,
            encoder="",
            arguments=dict(given.arguments),
            weights=given.weights,
            notes=notes,
            outputs=found.outputs,
            needs=found.needs,
            facts=given.facts,
        )
        opened = network.opened(replace(request, shape=shape))
        with reporter.working("capturing the network"):
            opened = settled(opened, request, shape)
        return replace(opened, spent=time.perf_counter() - started)


@dataclass(frozen=True, kw_only=True, eq=False)
class UserModule(Foreign):
    """A module in memory. It is exported with its weights; the module itself is left as it is."""

    module: nn.Module
    name: str | None = None

    @property
    def title(self) -> str:
        return self.name or type(self.module).__name__.lower()

    def load(self) -> Given:
        return Given(module=self.module, name=self.title, weights="weights in memory", owned=False)


@dataclass(frozen=True)
class Findings:
    """What running a network showed: all its outputs, those to export, and what its input must be."""

    all_outputs: tuple[str, ...]
    outputs: tuple[str, ...]
    needs: Needs


def examine(module: nn.Module, name: str, shape: Shape, request: Request, keep: Sequence[str]) -> Findings:
    """Run a network to see what it returns and which sizes it takes. It then returns the kept outputs as a tuple.

    Raises:
        UsageError: it does not run at `shape`, has no usable output, or not those to keep.
    """
    from smp3d_export.program.capture import users_line
    from smp3d_export.program.outputs import named, returning
    from smp3d_export.sources.sizes import Needs, find, trial

    returned: list[dict[str, Tensor]] = []

    def run(image: Tensor) -> tuple[Tensor, ...]:
        returned.append(named(module(image)))
        return tuple(returned[-1].values())

    try:
        trying = trial(run, shape)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"{name} does not run at the shape {written(shape)}: {users_line(error)}{summary(error)}. "
            "If the shape is wrong, give another --shape N,C,H,W,D"
        ) from error
    names = tuple(returned[-1])
    outputs = chosen(names, keep)
    for output in outputs:
        tensor = returned[-1][output]
        if tensor.ndim == 0 or tensor.shape[0] != shape[0] or tensor.is_complex():
            kind = f"{str(tensor.dtype).removeprefix('torch.')} of the shape {tuple(tensor.shape)}"
            raise UsageError(f"the output {output} is {kind}, not one for each volume: choose others by --keep-output")
    if request.static:
        needs = Needs((1, 1, 1), (1, 1, 1), shape[1])
    elif request.multiple is not None and request.min is not None:
        needs = Needs(three(request.multiple), three(request.min[2:]), shape[1])
    else:
        needs = find(trying, shape)
        if request.multiple is not None:
            needs = replace(needs, multiple=three(request.multiple), fixed=(False, False, False))
    returning(module, outputs)
    return Findings(names, outputs, needs)


def three(sizes: Sequence[int]) -> tuple[int, int, int]:
    h, w, d = sizes
    return h, w, d


def chosen(names: tuple[str, ...], keep: Sequence[str]) -> tuple[str, ...]:
    """The outputs to export, in the network's order.

    Raises:
        UsageError: there is no output of a name.
    """
    for name in keep:
        if name not in names:
            near = nearest(name, names)
            hint = f"Nearest: {', '.join(near)}. " if near else ""
            raise UsageError(f"there is no output {name!r}. {hint}The network has: {', '.join(names)}")
    return tuple(name for name in names if name in keep) if keep else names


def settled(opened: OpenedNetwork, request: Request, shape: Sizes) -> OpenedNetwork:
    """The network with its program, and with the widest contract found in which that is right for every size.

    A network that decides by sizes, such as one that pads odd ones, has one program for each outcome.

    Raises:
        ExportError: the network cannot be captured with dynamic axes.
    """
    from smp3d_export.program.capture import capture

    network, contract = opened.network, opened.contract
    while True:
        try:
            captured = capture(network.model, contract, network.outputs)
        except ExportError as error:
            if request.static:
                raise
            raise ExportError(f"{error}. --static exports it for --shape alone") from error
        wrong = outside(captured, contract)
        if wrong is None:
            return replace(opened, contract=contract, captured=captured)
        narrower = narrowed(captured, network, replace(request, shape=shape))
        if narrower is None:
            raise ExportError(
                f"{network.name} computes differently at {written(wrong)} than at {written(contract.example())}, so "
                "one graph cannot serve both: give a coarser --multiple, or --static for one shape"
            )
        network = narrower
        contract = network.opened(replace(request, shape=shape)).contract


def outside(captured: Captured, contract: ShapeContract) -> Shape | None:
    """A shape of the contract at which the program is not the network's, if one is found."""
    return next((shape for shape in sampled(contract) if not captured.holds(shape)), None)


def sampled(contract: ShapeContract) -> list[Shape]:
    """Shapes to try: the contract's corners, and the sizes next to its ends and its optimum along each axis."""
    shapes = [*contract.parity_shapes().values()]
    for number in (0, 2, 3, 4):
        axis = contract.axes[number]
        near = (size + k * axis.multiple for size in (axis.min, axis.opt, axis.max) for k in range(-3, 4))
        for size in sorted({size for size in near if axis.accepts(size)}):
            n, c, h, w, d = (size if place == number else s for place, s in enumerate(contract.opt))
            shapes.append((n, c, h, w, d))
    return list(dict.fromkeys(shapes))


def narrowed(captured: Captured, network: Network[Any], request: Request) -> Network[Any] | None:
    """The network with a larger smallest size or coarser multiples, at which a program is right. None if none are.

    They are found from the program's own conditions. A larger smallest size is tried first: it leaves out least.
    """
    from smp3d_export.contract import ShapeError
    from smp3d_export.sources.network import contract_for

    needs, shape = network.needs, request.shape or ()
    for factor in (1, 2, 4, 8, 16, 32, 64):
        multiple = three([m if fix else m * factor for m, fix in zip(needs.multiple, needs.fixed, strict=True)])
        if factor > 1 and (request.multiple is not None or any(map(mod, shape[2:], multiple))):
            return None
        for more in (0, 1):
            smallest = [
                size if fix else rounded_up(size, m) + more * m
                for size, m, fix in zip(needs.min_size, multiple, needs.fixed, strict=True)
            ]
            narrower = replace(network, needs=replace(needs, multiple=multiple, min_size=three(smallest)))
            with suppress(ShapeError):
                if outside(captured, contract_for(narrower, request)) is None:
                    return narrower
    return None


def check_one_input(module: nn.Module, name: str) -> None:
    """Refuse a network with more than one required input.

    Raises:
        UsageError: it names the inputs.
    """
    parameters = inspect.signature(module.forward).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [each.name for each in parameters if each.default is each.empty and each.kind in positional]
    required += [each.name for each in parameters if each.default is each.empty and each.kind is each.KEYWORD_ONLY]
    if len(required) > 1:
        raise UsageError(
            f"the forward of {name} takes {len(required)} inputs ({', '.join(required)}), and a network with one input "
            "is exported: wrap it in a module that takes the volume alone"
        )
    if not required and not any(each.kind in (*positional, each.VAR_POSITIONAL) for each in parameters):
        raise UsageError(f"the forward of {name} takes no input")


def copied(module: nn.Module, name: str) -> nn.Module:
    """A copy of a module.

    Raises:
        UsageError: it cannot be copied.
    """
    try:
        return copy.deepcopy(module)
    except Exception as error:
        raise UsageError(f"{name} cannot be copied: {summary(error)}") from error

"""The convolutions of a captured program that PyTorch computes wrongly on this processor; see `probe`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from smp3d_export import probe
from smp3d_export.contract import ShapeContract
from smp3d_export.errors import TargetUnavailableError, UsageError
from smp3d_export.program.graph import arguments_of, aten

DTYPES: Mapping[str, torch.dtype] = MappingProxyType({"fp16": torch.float16, "bf16": torch.bfloat16})
OPERATORS: Mapping[str, Any] = MappingProxyType(
    {str(operator): operator for operator in (aten.conv3d.default, aten.conv3d.padding, aten.conv_transpose3d.input)}
)
GROUPS = 3
"""The place of the groups among the settings of each of them."""
LIBRARY = "oneDNN in PyTorch"


@dataclass(frozen=True)
class Convolution:
    """A convolution of a map of one size: all that its kernel is chosen by, but its type.

    `image` is the shape (N, C, H, W, D) of the map that it reads, `weight` the shape of its weights, and `settings`
    are the operator's arguments after the bias: stride, padding and so on.
    """

    operator: str
    image: tuple[int, ...]
    weight: tuple[int, ...]
    settings: tuple[Any, ...]

    def __call__(self, image: Tensor, weight: Tensor) -> Tensor:
        return OPERATORS[self.operator](image, weight, None, *self.settings)


Compute = Callable[[Convolution, Tensor, Tensor], Tensor]


def convolutions(
    module: GraphModule, contract: ShapeContract, dtype: torch.dtype = torch.float32
) -> dict[Node, list[Convolution]]:
    """The convolutions of a graph that read a type, at the sizes to probe them at; those without any are left out."""
    found: dict[Node, list[Convolution]] = {}
    (entrance,) = module.graph.find_nodes(op="placeholder")
    numbers = [symbols_at(entrance.meta["val"].shape, shape) for shape in probe.shapes(contract)]
    for node in module.graph.nodes:
        if str(node.target) not in OPERATORS:
            continue
        source, weights, *rest = arguments_of(node)
        weight = tuple(weights.meta["val"].shape)
        if source.meta["val"].dtype != dtype:
            continue
        maps = [[sizes_at(some.meta["val"].shape, known) for some in (source, node)] for known in numbers]
        cases = [
            Convolution(str(node.target), image, weight, frozen(rest[1:]))
            for image, output in maps
            if probe.is_thin(image, output)
        ]
        if cases:
            found[node] = list(dict.fromkeys(cases))
    return found


def symbols_at(sizes: Sequence[Any], shape: Sequence[int]) -> dict[Any, int]:
    """The numbers that the symbols in the captured sizes of the image stand for at a shape."""
    numbers = {}
    for size, number in zip(sizes, shape, strict=True):
        if not isinstance(size, int):
            (symbol,) = size.node.expr.free_symbols
            (numbers[symbol],) = sympy.solve(size.node.expr - number, symbol)
    return numbers


def sizes_at(sizes: Sequence[Any], numbers: Mapping[Any, int]) -> tuple[int, ...]:
    """Captured sizes as numbers."""
    return tuple(size if isinstance(size, int) else int(size.node.expr.subs(numbers)) for size in sizes)


def wrong(module: GraphModule, contract: ShapeContract, precision: str) -> dict[Node, str]:
    """The convolutions of a graph in fp32 that come out wrong here in a lower precision, with the reason."""
    found = {}
    for node, cases in convolutions(module, contract).items():
        case = next((case for case in cases if is_wrong_here(case, DTYPES[precision])), None)
        if case is not None:
            found[node] = probe.reason(precision, LIBRARY, case.image)
    return found


@lru_cache(maxsize=4096)
def is_wrong_here(case: Convolution, dtype: torch.dtype) -> bool:
    return is_wrong(case, dtype)


def is_wrong(case: Convolution, dtype: torch.dtype, compute: Compute = Convolution.__call__) -> bool:
    """Whether a convolution in a low precision comes out otherwise than in fp32.

    All channels are equal, so that one is enough for the exact result. What PyTorch cannot compute at all is not
    wrong: it raises an error, and is never mistaken for a result.
    """
    transposed = case.operator.startswith("aten.conv_transpose3d")
    groups = case.settings[GROUPS] if len(case.settings) > GROUPS else 1
    summed = case.weight[0] // groups if transposed else case.weight[1]
    one = torch.from_numpy(probe.image(case.image)).to(dtype)
    image = one.expand(case.image).contiguous(memory_format=torch.channels_last_3d)  # as artifacts have it
    weight = torch.full(case.weight, probe.WEIGHT, dtype=dtype).contiguous(memory_format=torch.channels_last_3d)
    single = replace(case, settings=tuple(1 if place == GROUPS else s for place, s in enumerate(case.settings)))
    with one_thread(), torch.inference_mode():
        exact = summed * single(one.float(), weight[:1, :1].float())
        channels = case.weight[1] * groups if transposed else case.weight[0]
        exact.to(dtype).fill_(torch.nan).repeat(1, channels, 1, 1, 1)  # memory that is given out again, to be written
        try:
            found = compute(case, image, weight).float()
        except RuntimeError:
            return False
    return probe.is_wrong(found.numpy(), exact.numpy())


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def facts(module: GraphModule, contract: ShapeContract, precision: str) -> dict[str, Any]:
    """What a manifest has to say of a lowered graph, so that another processor can be probed without the graph."""
    if precision not in DTYPES:
        return {}
    cases = convolutions(module, contract, DTYPES[precision])
    return {"probe": [asdict(case) for case in dict.fromkeys(case for some in cases.values() for case in some)]}


def check(rows: Iterable[Mapping[str, Any]], precision: str) -> None:
    """Refuse to run an artifact on a processor that computes it wrongly; `rows` are the `probe` of its manifest.

    Raises:
        TargetUnavailableError: a convolution is wrong here.
        UsageError: a row is not one that `facts` wrote.
    """
    for row in rows:
        try:
            case = Convolution(**{key: frozen(value) for key, value in row.items()})
            fails = is_wrong_here(case, DTYPES[precision])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise UsageError(f"the manifest is damaged: 'probe' has {row!r}. Export the artifact again") from error
        if fails:
            raise TargetUnavailableError(
                f"{probe.reason(precision, LIBRARY, case.image)}, and this artifact was made on another: export it on "
                "this machine, or in fp32"
            )


def frozen(value: Any) -> Any:
    """A list, and those in it, as tuples, which can be keys."""
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value

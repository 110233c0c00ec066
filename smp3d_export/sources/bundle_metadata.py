"""What a MONAI bundle says about itself: the shape of its input, and what a user has to know about volumes."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import product
from typing import Any, TypeGuard

USUAL = 64
"""The size of an axis, in voxels, that the metadata leaves open."""
MULTIPLES, POWERS = range(1, USUAL + 1), range(1, 9)
LARGEST = 4096
OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}
FACTS_OF_BUNDLE = ("name", "version", "task", "license", "monai_version")
FACTS_OF_INPUT = ("type", "format", "modality", "value_range", "dtype", "is_patch_data")
SPACINGS = ("Spacingd", "SpacingD", "SpacingDict", "Spacing")


def volume_format(metadata: Mapping[str, Any], side: str, name: str) -> Mapping[str, Any]:
    """How `network_data_format` describes an input or output: the one of this name, or the only one."""
    found = metadata.get("network_data_format")
    described = found.get(side) if isinstance(found, Mapping) else None
    if not isinstance(described, Mapping):
        return {}
    one = described.get(name) or (next(iter(described.values())) if len(described) == 1 else None)
    return one if isinstance(one, Mapping) else {}


def input_shape(image: Mapping[str, Any]) -> tuple[int, ...] | None:
    """(1, C, and the volume axes), or None if the metadata does not give them."""
    channels, sizes = image.get("num_channels"), image.get("spatial_shape")
    if not is_size(channels) or isinstance(sizes, str) or not isinstance(sizes, Sequence):
        return None
    found = [size for entry in sizes if (size := size_of(entry)) is not None]
    return (1, channels, *found) if len(found) == len(sizes) else None


def is_size(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST


def size_of(entry: object) -> int | None:
    """A size of an axis: a number; `*` for any; or an expression of `n` and `p`, such as `16*n` or `2**p*n`.

    What is left open is chosen so that the size is at least 64. None if it cannot be read.
    """
    if is_size(entry):
        return entry
    if not isinstance(entry, str):
        return None
    if entry.strip() == "*":
        return USUAL
    found: list[int] = []
    with suppress(SyntaxError, ValueError, ArithmeticError, RecursionError):  # the second: also if it grows too large
        tree = ast.parse(entry.strip(), mode="eval").body
        for p, n in product(POWERS, MULTIPLES):
            found.append(computed(tree, {"n": n, "p": p}))
            if found[-1] >= USUAL:
                break
    return found[-1] if found and is_size(found[-1]) else None


def computed(node: ast.expr, variables: Mapping[str, int]) -> int:
    """The value of an expression of small whole numbers.

    Raises:
        ValueError: it is something else.
    """
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id=name) if name in variables:
            return variables[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            one, other = computed(left, variables), computed(right, variables)
            if max(abs(one), abs(other)) > LARGEST or (
                isinstance(op, ast.Pow) and not 0 <= other <= LARGEST.bit_length()
            ):
                raise ValueError
            return OPERATORS[type(op)](one, other)
    raise ValueError


def facts(metadata: Mapping[str, Any], config: Mapping[str, Any], resolved: Callable[[str], Any]) -> dict[str, Any]:
    """What the manifest repeats, as JSON values.

    `resolved` gives an item of the configuration by its path, with its references followed, or None.
    """
    image, pred = volume_format(metadata, "inputs", "image"), volume_format(metadata, "outputs", "pred")
    preprocessing = config.get("preprocessing")
    transforms = preprocessing.get("transforms") if isinstance(preprocessing, Mapping) else None
    steps = transforms if isinstance(transforms, list) else []
    spacings = [
        f"preprocessing::transforms::{number}::pixdim"
        for number, step in enumerate(steps)
        if isinstance(step, Mapping) and str(step.get("_target_")).rpartition(".")[2] in SPACINGS
    ]
    found = {
        **{name: metadata[name] for name in FACTS_OF_BUNDLE if name in metadata},
        "channel_names": image.get("channel_def"),
        "output_channels": pred.get("channel_def"),
        "spacing": resolved(spacings[0]) if spacings else None,
        "patch_size": resolved("inferer::roi_size"),
        "input": {name: image[name] for name in FACTS_OF_INPUT if name in image},
        "output": {name: pred[name] for name in FACTS_OF_INPUT if name in pred},
        "preprocessing": steps,
    }
    return {name: value for name, value in found.items() if value}

"""Encoders from the optional package timm_3d, named `tu-NAME`; no other module imports it."""

from __future__ import annotations

import functools
import importlib
import itertools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from smp3d_export.encoders.base import DILATIONS, Encoder, Stage
from smp3d_export.encoders.spec import DEFAULT_STRIDES, STAGES, TIMM_PREFIX, EncoderSpec, Strides, Triple, product
from smp3d_export.errors import ShapeError, UsageError, unknown

# Exceptions raised by timm_3d models that cannot be built or run.
FAILURES = (AssertionError, AttributeError, IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError)

# Side of the cube that a model is measured with, unless its input size is fixed.
SIDE = 128


@dataclass(frozen=True, kw_only=True)
class TimmSpec(EncoderSpec):
    """A timm_3d model, measured rather than tabulated; it may have fewer than five feature maps."""

    model: str
    stem: str  # pyright: ignore[reportIncompatibleVariableOverride]

    family: ClassVar[str] = "timm"
    implementation: ClassVar[str] = "timm:TimmEncoder"

    @property
    def undilatable(self) -> str | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        try:
            outline(self.model, len(self.channels), output_stride=16)
        except UsageError:
            return f"timm_3d has no dilated variant of {self.model}"
        return None

    def build(self, *, in_channels: int, depth: int, strides: Strides, output_stride: int = 32) -> TimmEncoder:
        """As in every other family, but timm_3d dilates while it builds.

        Raises:
            UsageError: the model has fewer feature maps than `depth`, other strides, or no dilated variant.
        """
        if depth > len(self.channels):
            raise UsageError(
                f"encoder_depth is {depth}, but {self.name} gives {len(self.channels)} feature maps: "
                f"use at most {len(self.channels)}"
            )
        if output_stride not in (32, *DILATIONS):
            raise UsageError(f"encoder_output_stride is {output_stride}; it must be 8, 16 or 32")
        if output_stride != 32 and self.undilatable:
            raise UsageError(f"{self.name} cannot be dilated: {self.undilatable}")
        own = outline(self.model, depth, output_stride)
        if strides[:depth] not in (DEFAULT_STRIDES[:depth], own.strides):
            raise UsageError(f"{self.name} is a timm_3d model, whose strides cannot be chosen: leave strides out")
        return TimmEncoder(self, own, in_channels=in_channels, output_stride=output_stride)


class TimmEncoder(Encoder):
    """A timm_3d model that returns its feature maps; its weights are named as in the published package."""

    def __init__(self, spec: TimmSpec, own: Outline, *, in_channels: int, output_stride: int) -> None:
        super().__init__(spec, in_channels=in_channels, depth=len(own.strides), strides=own.strides)
        self.outline = own
        self.model = create(spec.model, in_channels, self.depth, output_stride)

    @property
    def multiple(self) -> Triple:
        size = self.outline.multiple
        return size, size, size

    @property
    def min_size(self) -> Triple:
        size = self.outline.min_side
        return size, size, size

    def stages(self) -> tuple[Stage, ...]:
        """A single stage: the whole model."""
        return ((self.model,),)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W, D) to `depth + 1` feature maps, starting with the input.

        Raises:
            ShapeError: the model takes volumes of one size only, and `x` has another.
        """
        size = self.outline.min_side
        if self.outline.fixed and any(axis != size for axis in x.shape[-3:]):
            raise ShapeError(
                f"{self.spec.name} takes volumes of {size}×{size}×{size} only, "
                f"so an export needs --shape 1,{self.in_channels},{size},{size},{size} --static"
            )
        return [x, *self.model(x)]


@dataclass(frozen=True)
class Outline:
    """Measurements of a model at some depth: its feature maps, and the cubes that it takes."""

    channels: tuple[int, ...]
    strides: Strides
    min_side: int
    """The smallest side."""
    multiple: int
    """What a side must be a multiple of; windowed attention needs more than the strides do."""
    fixed: bool
    """Whether `min_side` is the only valid side, as with global attention and fixed position embeddings."""
    stem: str
    parameters: int


def timm_spec(name: str) -> TimmSpec:
    """The row of the encoder `tu-NAME`.

    Raises:
        UsageError: timm_3d is not installed, has no such model, or the model gives no feature maps.
    """
    model = name.removeprefix(TIMM_PREFIX)
    timm_3d = package(name)
    if not timm_3d.is_model(model):
        known = [TIMM_PREFIX + known for known in timm_3d.list_models()]
        raise unknown("encoder", name, known, "python -c 'import timm_3d; print(timm_3d.list_models())'")
    deepest = outline(model, maps(model))
    return TimmSpec(
        name=name,
        model=model,
        channels=deepest.channels,  # pyright: ignore[reportArgumentType]  # may be fewer than five
        parameters=deepest.parameters,
        stem=deepest.stem,
    )


def package(name: str) -> ModuleType:
    """The package timm_3d, imported; errors name the encoder `name`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # it decorates functions with torch.jit.script
            return importlib.import_module("timm_3d")
    except ImportError as error:
        raise UsageError(
            f"{name} is a timm_3d model, and timm_3d cannot be imported ({error}): pip install 'smp3d-export[timm]'"
        ) from error


@functools.cache
def maps(model: str) -> int:
    """How many feature maps a model gives, at most five."""
    for depth in range(STAGES, 0, -1):
        try:
            with torch.device("meta"):
                create(model, 1, depth)
        except IndexError:  # timm_3d looks up a map that does not exist
            continue
        except FAILURES as error:
            raise refusal(model, error) from error
        return depth
    raise UsageError(f"timm_3d's {model} gives no feature maps, so it cannot be an encoder")


@functools.cache
def outline(model: str, depth: int, output_stride: int = 32) -> Outline:
    """Measure a model by running it on the `meta` device, without weights or values.

    Raises:
        UsageError: the model cannot be built or run, or its outputs are not feature maps.
    """
    published = package(TIMM_PREFIX + model).get_pretrained_cfg(model)
    usual = published.input_size[-1] if published and published.fixed_input_size else SIDE
    try:
        with torch.device("meta"):
            net = create(model, 1, depth, output_stride).eval()
        features = run(net, usual)
    except FAILURES as error:
        raise refusal(model, error) from error
    sides = [usual, *(feature.shape[-1] for feature in features)]
    cubes = all(feature.ndim == 5 and len(set(feature.shape[2:])) == 1 for feature in features)
    if not cubes or any(before % after for before, after in itertools.pairwise(sides)):
        raise UsageError(
            f"timm_3d's {model} cannot be an encoder: from a volume of {usual}×{usual}×{usual} it makes "
            f"{', '.join(str(tuple(feature.shape)) for feature in features)}, which are not feature maps"
        )
    strides = tuple((before // after,) * 3 for before, after in itertools.pairwise(sides))
    total = product(strides)[0]
    min_side = next(side for side in range(total, usual + 1, total) if takes(net, side))
    any_multiple = takes(net, min_side + total)
    weights = net.state_dict()
    return Outline(
        channels=tuple(feature.shape[1] for feature in features),
        strides=strides,
        min_side=min_side,
        multiple=total if any_multiple else min_side,
        fixed=not any_multiple and not takes(net, 2 * min_side),
        stem=next(f"model.{key}" for key, weight in weights.items() if weight.ndim == 5),
        parameters=sum(weight.numel() for weight in net.parameters()),
    )


def create(model: str, in_channels: int, depth: int, output_stride: int = 32) -> nn.Module:
    # Not every model accepts the argument.
    dilated: Mapping[str, Any] = {} if output_stride == 32 else {"output_stride": output_stride}
    with NumbersOnHost():
        net = package(TIMM_PREFIX + model).create_model(
            model,
            in_chans=in_channels,
            features_only=True,
            out_indices=tuple(range(depth)),
            exportable=True,
            **dilated,
        )
    same = importlib.import_module("timm_3d.layers.conv2d_same").Conv3dSame
    for module in net.modules():
        if isinstance(module, same):
            module.__class__ = SamePadConv3d
    return net


class SamePadConv3d(nn.Conv3d):
    """A convolution that pads like TensorFlow's "SAME" for axes that are multiples of the stride.

    timm_3d computes the padding from the size. All sizes here are such multiples, so the padding is a constant, and
    torch.export would need minutes for each formula.
    """

    def forward(self, input: Tensor) -> Tensor:
        extent = zip(self.kernel_size, self.stride, self.dilation, strict=True)
        totals = [max(dilation * (kernel - 1) + 1 - stride, 0) for kernel, stride, dilation in extent]
        # F.pad starts at the last axis; an odd voxel goes to the end.
        return super().forward(F.pad(input, [side for n in reversed(totals) for side in (n // 2, n - n // 2)]))


@torch.no_grad()
def run(net: nn.Module, side: int) -> list[Tensor]:
    return list(net(torch.empty(1, 1, side, side, side, device="meta")))


def takes(net: nn.Module, side: int) -> bool:
    try:
        run(net, side)
    except FAILURES:
        return False
    return True


def refusal(model: str, error: Exception) -> UsageError:
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return UsageError(f"timm_3d's {model} cannot be an encoder: timm_3d itself fails on it ({reason})")


class NumbersOnHost(TorchFunctionMode):
    """Keeps `linspace` on the CPU: timm_3d reads back its stochastic depth rates, and a meta tensor has no values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)

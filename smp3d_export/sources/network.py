"""An eager network, ready to be exported and compared with, with its contract and its description."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import lcm
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from smp3d_export import backends, hardware
from smp3d_export.architectures.base import SegmentationModel
from smp3d_export.arrays import Outputs, Volume
from smp3d_export.artifact.manifest import Manifest, Model
from smp3d_export.backends.pytorch import seconds_on_gpu, without_tf32
from smp3d_export.contract import AXES, ShapeContract, checked_multiple, rounded_up
from smp3d_export.errors import ShapeError, TargetUnavailableError
from smp3d_export.optimise import gflop
from smp3d_export.precision import Precision
from smp3d_export.program.capture import Captured, activation_bytes, capture
from smp3d_export.program.graph import graph_module
from smp3d_export.progress import Reporter
from smp3d_export.sources import variants
from smp3d_export.sources.request import Program, Request
from smp3d_export.sources.sizes import Needs

ModelT = TypeVar("ModelT", bound=nn.Module)
RUNNING = (nn.BatchNorm3d, nn.InstanceNorm3d)
"""Layers that may have running statistics."""
NORMALISATIONS = (*RUNNING, nn.GroupNorm, nn.LayerNorm)
SMALLEST_DEFAULT = 64
"""The default size of each volume axis of the optimum, in voxels."""


def complete(request: Request) -> Request:
    """The request for a network in PyTorch, with its device.

    Raises:
        UsageError: an option does not go with a target or a precision.
        TargetUnavailableError: none of the targets can be exported on this machine.
    """
    request = request.placed(torch.cuda.is_available())
    backends.check(request.targets, request.settings)
    variants.check(request)
    return request


@dataclass(frozen=True, kw_only=True)
class Network(Generic[ModelT]):
    """An eager model in eval mode.

    Attributes:
        arguments: the arguments that it was built with.
        weights: where its weights come from.
        notes: what a user should know about how it was built, such as what a checkpoint could not show.
        saved: the contract that is saved with it, if any.
        outputs: the names of what it returns, as far as it returns so many.
        needs: what its input must be.
        facts: what else the manifest says about it.
    """

    model: ModelT
    architecture: str
    encoder: str
    arguments: dict[str, Any]
    weights: str
    notes: tuple[str, ...] = ()
    saved: ShapeContract | None = None
    outputs: tuple[str, ...] = ("masks", "labels")
    needs: Needs
    facts: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"

    @classmethod
    def of(cls, model: SegmentationModel, **described: Any) -> Network[SegmentationModel]:
        """A network of this package."""
        needs = Needs(model.multiple, model.min_size, model.encoder.in_channels, model.min_size_reason)
        return Network(model=model, needs=needs, **described)

    def to(self, device: str) -> Network[ModelT]:
        """The network on a device. On a GPU, TF32 is turned off, because it would round the reference.

        Raises:
            TargetUnavailableError: there is no such device.
        """
        if device == "cpu":
            return self
        if not torch.cuda.is_available() or torch.device(device).index not in (None, *range(torch.cuda.device_count())):
            seen = f"{torch.cuda.device_count() or 'no'} GPU"
            raise TargetUnavailableError(
                f"--device is {device}, but PyTorch sees {seen} on this machine: use --device cpu"
            )
        without_tf32()
        return replace(self, model=self.model.to(device), device=device)

    def opened(self, request: Request) -> OpenedNetwork:
        """The network for a request, on its device and with its threads and shapes."""
        torch.set_num_threads(request.threads or hardware.cores())
        network = self.to(request.device)
        return OpenedNetwork(network, contract_for(network, request))

    @property
    def name(self) -> str:
        return f"{self.architecture.lower()}/{self.encoder}" if self.encoder else self.architecture

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @property
    def label_threshold(self) -> float:
        """The value above which a voxel of a one-class mask is labelled: a probability of 0.5, or a logit of 0."""
        return 0.5 if self.arguments.get("activation") in ("sigmoid", "clamp") else 0.0

    def __call__(self, image: Volume) -> Outputs:
        """Run eagerly: (N, C, H, W, D) to the outputs by name."""
        with torch.inference_mode():
            outputs = self.model(torch.from_numpy(image).to(self.device))
        named = zip(self.outputs, outputs if isinstance(outputs, tuple) else (outputs,), strict=False)
        return {name: output.cpu().numpy() for name, output in named}

    def seconds(self, image: Volume, dtype: torch.dtype | None = None) -> float:
        """Run eagerly, under autocast to `dtype` if given, and return the seconds it took by CUDA events on a GPU."""
        placed = torch.from_numpy(image).to(self.device)
        kind = torch.device(self.device).type
        with torch.inference_mode(), torch.autocast(kind, dtype, enabled=dtype is not None):
            if kind == "cuda":
                return seconds_on_gpu(lambda: self.model(placed), self.device)
            started = time.perf_counter()
            self.model(placed)
            return time.perf_counter() - started

    def baselines(self, precision: Precision) -> dict[str, Eager]:
        """What an artifact is timed against: eager in fp32, and in the artifact's precision if eager has it."""
        sides = {"eager": Eager(self)}
        dtype = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}.get(precision)
        # Most CPUs have no fast fp16 kernels: a round would take minutes.
        if dtype is not None and (dtype is torch.bfloat16 or self.device != "cpu"):
            sides[f"eager under {precision} autocast"] = Eager(self, dtype)
        return sides

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the names, types, shapes and values of the state dict, in its order."""
        digest = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}\n".encode())
            digest.update(memoryview(tensor.cpu().contiguous().numpy()).cast("B") if tensor.numel() else b"")
        return digest.hexdigest()


@dataclass(frozen=True)
class Eager:
    """A network to be timed, under autocast to `dtype` if one is given."""

    network: Network[Any]
    dtype: torch.dtype | None = None

    def seconds(self, image: Volume) -> float:
        return self.network.seconds(image, self.dtype)


@dataclass(frozen=True)
class OpenedNetwork:
    """A network with the contract that it is exported for.

    `captured` is its program, if finding the contract took one, and `spent` the seconds that this took.
    """

    network: Network[Any]
    contract: ShapeContract
    captured: Captured | None = None
    spent: float = 0.0

    @property
    def name(self) -> str:
        return self.network.name

    @property
    def model(self) -> Model:
        """The manifest's description of the network, with all its arguments, so that networks can be told apart."""
        network = self.network
        own = network.model.arguments if isinstance(network.model, SegmentationModel) and network.encoder else {}
        arguments = {**own, **network.arguments}
        arguments.pop("encoder_name", None)
        return Model(
            architecture=network.architecture,
            encoder=network.encoder,
            arguments={name: plain(value) for name, value in arguments.items()},
            parameters=network.parameters,
            weights=network.weights,
            sha256=network.sha256,
            notes=network.notes,
        )

    @property
    def label_threshold(self) -> float:
        if self.captured is not None and ends_in_sigmoid(self.captured):
            return 0.5
        return self.network.label_threshold

    def introduction(self) -> Iterator[str]:
        yield f"{self.name} · {self.network.parameters / 1e6:.1f} M parameters · {self.network.weights}"
        for note in self.network.notes:
            yield f"  {note}"

    def __call__(self, image: Volume) -> Outputs:
        return self.network(image)

    def baselines(self, precision: Precision) -> Mapping[str, Eager]:
        return self.network.baselines(precision)

    def program(self, request: Request, reporter: Reporter) -> Program:
        with reporter.stage("capture", spent=self.spent) as stage:
            captured = self.captured or capture(self.network.model, self.contract, self.network.outputs)
            names = ", ".join(axis.name for axis in self.contract.dynamic)
            stage.detail = f"dynamic {names}" if names else "all axes static"
        manifest = self.describe(captured, request)
        return Program(manifest, variants.variants(captured, request, reporter), activation_bytes(captured))

    def describe(self, captured: Captured, request: Request) -> Manifest:
        """What is known about the network before any target."""
        return Manifest(
            model=self.model,
            contract=self.contract,
            outputs=captured.outputs,
            gflop=round(gflop(graph_module(captured), self.contract.opt), 3),
            label_threshold=self.label_threshold,
            device=request.device,
            facts=self.network.facts,
        )


def ends_in_sigmoid(captured: Captured) -> bool:
    """Whether the first output is a probability, not a logit."""
    first = captured.program.graph.output_node().all_input_nodes[0]
    return str(first.target) in ("aten.sigmoid.default", "aten.hardsigmoid.default")


def plain(value: Any) -> Any:
    """An argument as JSON: a callable by its name, and anything else that JSON cannot express by its text."""
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(key): plain(v) for key, v in value.items()}
    return (
        value if value is None or isinstance(value, str | int | float) else getattr(value, "__qualname__", str(value))
    )


def contract_for(network: Network[Any], request: Request) -> ShapeContract:
    """The contract of a request. What it leaves out comes from the contract saved with the network, whose range grows
    if the request goes beyond it.

    Without a saved contract, it is the default contract around the smallest volume of at least 64 voxels per axis.

    Raises:
        ShapeError: the sizes are not the network's.
    """
    needs, saved = network.needs, network.saved
    multiple, min_size = needs.multiple, needs.min_size
    bounds = saved if not request.static else None
    requested = request.multiple or (bounds and tuple(map(lcm, bounds.multiple, multiple)))
    applied = checked_multiple(multiple, requested, network.name) if requested else multiple
    volume = (rounded_up(max(SMALLEST_DEFAULT, size), k) for size, k in zip(min_size, applied, strict=True))
    lower, upper = (bounds.min, bounds.max) if bounds else (None, None)
    if lower and upper and request.multiple:
        lower = (*lower[:2], *(rounded_up(size, k) for size, k in zip(lower[2:], applied, strict=True)))
        upper = (*upper[:2], *(size // k * k for size, k in zip(upper[2:], applied, strict=True)))
    shape = request.shape or (saved.opt if saved else (1, needs.in_channels, *volume))
    if lower and upper and len(shape) == len(upper):  # a saved range grows to include a requested shape
        lower = tuple(map(min, lower, request.max or shape, shape))
        upper = tuple(map(max, upper, request.min or shape, shape))
    if any(needs.fixed) and not request.static:
        fixed = [False, False, *needs.fixed]
        for flag, sizes in (("--min", request.min), ("--max", request.max)):
            for name, size, own, fix in zip(AXES, sizes or shape, shape, fixed, strict=True):
                if fix and size != own:
                    raise ShapeError(f"{name} of {flag} is {size}, but {network.name} runs at {name} {own} only")
        lower = tuple(
            size if fix else low for size, fix, low in zip(shape, fixed, lower or (1, shape[1], *min_size), strict=True)
        )
        upper = tuple(
            size if fix else high for size, fix, high in zip(shape, fixed, upper or doubled(shape), strict=True)
        )
    if len(shape) > 1 and shape[1] != needs.in_channels:
        raise ShapeError(f"C of --shape is {shape[1]}, but the network has {needs.in_channels} input channels")
    return ShapeContract.of(
        shape,
        multiple=multiple,
        min_size=min_size,
        min=request.min or lower,
        max=request.max or upper,
        requested_multiple=requested,
        static=request.static,
        network=network.name,
        reason=needs.reason,
    )


def doubled(shape: Sequence[int]) -> tuple[int, ...]:
    """The default maximum: twice the optimum, but for the channels."""
    return tuple(size if number == 1 else 2 * size for number, size in enumerate(shape))


def randomise_normalisations(model: nn.Module) -> None:
    """Set random affine parameters and running statistics, of about the size that training leaves.

    With the initial ones, the outputs of an untrained network are near zero, and a wrong artifact would pass.
    """
    for module in model.modules():
        if isinstance(module, NORMALISATIONS) and module.weight is not None:
            nn.init.normal_(module.weight, 0.8, 0.1)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0.0, 0.1)
        if isinstance(module, RUNNING) and module.running_mean is not None and module.running_var is not None:
            nn.init.normal_(module.running_mean, 0.0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)

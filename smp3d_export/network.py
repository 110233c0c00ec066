"""A request -> the eager network, with trained or random weights, and what is known of it."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from smp3d_export.architectures import architecture_class, architecture_spec, create_model, persistence
from smp3d_export.architectures.arguments import check_arguments
from smp3d_export.architectures.base import SegmentationModel
from smp3d_export.checkpoint import load_checkpoint
from smp3d_export.contract import ShapeContract
from smp3d_export.encoders import encoder_spec
from smp3d_export.errors import TargetUnavailableError, UsageError
from smp3d_export.request import NetworkRequest, SavedModel, Sizes
from smp3d_export.runtime.pytorch import seconds_on_gpu, without_tf32
from smp3d_export.runtime.volumes import Volume
from smp3d_export.targets import Precision

NORMALISATIONS = (nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True)
class Network:
    """An eager model in eval mode.

    `arguments` are those it was built with; `weights` says where its weights come from; `notes` are what a user should
    know of how it was built (what a checkpoint could not show, for one); `contract` is that which is saved with it.
    """

    model: SegmentationModel
    architecture: str
    encoder: str
    arguments: dict[str, Any]
    weights: str
    notes: tuple[str, ...] = ()
    contract: ShapeContract | None = None
    device: str = "cpu"

    def to(self, device: str) -> Network:
        """The network on a device; on a GPU without TF32, which would round what artifacts are compared with.

        Raises:
            TargetUnavailableError: there is no such device.
        """
        if device == "cpu":
            return self
        if not torch.cuda.is_available() or torch.device(device).index not in (None, *range(torch.cuda.device_count())):
            seen = f"{torch.cuda.device_count() or 'no'} GPU"
            raise TargetUnavailableError(f"--device is {device}, but PyTorch sees {seen} here: give --device cpu")
        without_tf32()
        return replace(self, model=self.model.to(device), device=device)

    @property
    def name(self) -> str:
        return f"{self.architecture.lower()}/{self.encoder}"

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @property
    def in_channels(self) -> int:
        return self.model.encoder.in_channels

    @property
    def label_threshold(self) -> float:
        """Above which a voxel of a one-class mask is labelled: a probability of a half, or a logit of 0."""
        return 0.5 if self.arguments.get("activation") in ("sigmoid", "clamp") else 0.0

    def __call__(self, image: Volume) -> dict[str, np.ndarray]:
        """Run eagerly: (N, C, H, W, D) to the outputs by name."""
        with torch.inference_mode():
            outputs = self.model(torch.from_numpy(image).to(self.device))
        named = zip(("masks", "labels"), outputs if isinstance(outputs, tuple) else (outputs,), strict=False)
        return {name: output.cpu().numpy() for name, output in named}

    def seconds(self, image: Volume, dtype: torch.dtype | None = None) -> float:
        """Run eagerly and say how long it took, by CUDA events on a GPU; under autocast to `dtype` if one is given."""
        placed = torch.from_numpy(image).to(self.device)
        kind = torch.device(self.device).type
        with torch.inference_mode(), torch.autocast(kind, dtype, enabled=dtype is not None):
            if kind == "cuda":
                return seconds_on_gpu(lambda: self.model(placed), self.device)
            started = time.perf_counter()
            self.model(placed)
            return time.perf_counter() - started

    def baselines(self, precision: Precision) -> dict[str, Eager]:
        """What an artifact of a precision is timed against: eager in fp32, and in the same precision if it has that."""
        sides = {"eager": Eager(self)}
        dtype = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}.get(precision)
        # Half precision has no fast kernels on most CPUs: a round would take minutes.
        if dtype is not None and (dtype is torch.bfloat16 or self.device != "cpu"):
            sides[f"eager under {precision} autocast"] = Eager(self, dtype)
        return sides

    @cached_property
    def sha256(self) -> str:
        """Of the names, types, shapes and values of the state dict, in its order."""
        digest = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}\n".encode())
            digest.update(memoryview(tensor.cpu().contiguous().numpy()).cast("B") if tensor.numel() else b"")
        return digest.hexdigest()


@dataclass(frozen=True)
class Eager:
    """A network to be timed, under autocast to `dtype` if one is given."""

    network: Network
    dtype: torch.dtype | None = None

    def seconds(self, image: Volume) -> float:
        return self.network.seconds(image, self.dtype)


def build(source: NetworkRequest | SavedModel, shape: Sizes | None = None) -> Network:
    """The network that is asked for.

    Raises:
        UsageError: there is no such network, or its arguments do not go together.
        CheckpointError: its weights cannot be read or belong to another network.
    """
    return from_saved(source) if isinstance(source, SavedModel) else by_name(source, shape)


def by_name(request: NetworkRequest, shape: Sizes | None = None) -> Network:
    """A network by its name; its input channels are those of `shape` where neither it nor a checkpoint says.

    Raises:
        UsageError: there is no such network, or its arguments do not go together.
        CheckpointError: the checkpoint cannot be read or belongs to another network.
    """
    architecture = architecture_spec(request.architecture).name
    encoder = encoder_spec(request.encoder).name
    check_arguments(architecture_class(architecture), request.arguments)
    if request.checkpoint is not None:
        if request.arguments.get("encoder_weights") is not None:
            raise UsageError(
                f"--encoder-weights {request.arguments['encoder_weights']} would be overwritten by --checkpoint, which "
                "has the encoder's weights: give one of the two"
            )
        loaded = load_checkpoint(request.checkpoint, architecture, encoder, request.arguments)
        return Network(
            model=loaded.model.eval(),
            architecture=architecture,
            encoder=encoder,
            arguments=loaded.arguments,
            weights=request.checkpoint.name,
            notes=loaded.notes,
        )
    arguments = {"encoder_weights": None, **request.arguments}
    if shape is not None and len(shape) > 1:
        arguments.setdefault("in_channels", shape[1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        model = create_model(architecture, encoder, **arguments)
        trained = arguments["encoder_weights"]
        for name, part in model.named_children():
            if name != "encoder" or trained is None:
                randomise_normalisations(part)
    weights = "random weights" if trained is None else f"{encoder} {Path(trained).name}, rest random"
    return Network(model.eval(), architecture, encoder, arguments, weights=f"{weights}, seed {request.seed}")


def from_saved(source: SavedModel) -> Network:
    """The network that a folder or a repository of the hub holds, and the contract that is stored with it."""
    saved = persistence.find(source.source, source.revision)
    return Network(
        model=saved.load(saved.architecture),
        architecture=saved.name,
        encoder=saved.arguments["encoder_name"],
        arguments=saved.arguments,
        weights=saved.title,
        contract=saved.contract,
    )


def randomise_normalisations(model: nn.Module) -> None:
    """Random affine and running statistics, about what training leaves.

    With the initial ones the outputs of an untrained network are near zero, and a wrong artifact would pass as equal.
    """
    for module in model.modules():
        if isinstance(module, NORMALISATIONS) and module.weight is not None:
            nn.init.normal_(module.weight, 0.8, 0.1)
            nn.init.normal_(module.bias, 0.0, 0.1)
        if isinstance(module, nn.BatchNorm3d) and module.running_mean is not None and module.running_var is not None:
            nn.init.normal_(module.running_mean, 0.0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)

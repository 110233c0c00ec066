"""The base class of all architectures: encoder, decoder, heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from smp3d_export.architectures import ARCHITECTURES
from smp3d_export.architectures.arguments import by_name, check_arguments, plain
from smp3d_export.architectures.heads import ClassificationHead
from smp3d_export.architectures.normalisation import Norm
from smp3d_export.architectures.persistence import find, save
from smp3d_export.contract import AXES, ShapeContract, check_multiples, written
from smp3d_export.encoders import encoder_spec, get_encoder
from smp3d_export.encoders.base import Encoder
from smp3d_export.encoders.spec import STAGES, EncoderSpec, Triple, product
from smp3d_export.errors import CheckpointError, ShapeError, UsageError

Shapes = Mapping[str, tuple[int, ...]]


class SegmentationModel(nn.Module):
    """An encoder, a decoder and one or two heads, named as in the state dicts of the published package."""

    encoder: Encoder
    decoder: nn.Module
    segmentation_head: nn.Module
    classification_head: nn.Module | None
    min_size_reason: str = ""
    """Why `min_size` is larger than the encoder's."""
    two_voxels_after: int | None = None
    """After how many of the encoder's stages a feature map needs two voxels; None if one is enough."""
    norm_block: ClassVar[str] = ""
    """The key of one of the decoder's `ConvBlock`s, if their normalisation is an argument."""
    _given: tuple[list[Any], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        model = super().__new__(cls)
        # Copying and unpickling call this without arguments, then restore the original's arguments with its state.
        model.__dict__["_given"] = plain(args), plain(kwargs)
        return model

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments by name as JSON values, including defaults."""
        return by_name(type(self), *self._given)

    @property
    def multiple(self) -> Triple:
        """What each volume axis (H, W, D) of an input must be a multiple of."""
        return self.encoder.multiple

    @property
    def min_size(self) -> Triple:
        """The smallest volume (H, W, D) that the network takes."""
        least = self.encoder.min_size
        if self.two_voxels_after is None or least != product(self.encoder.strides[: self.two_voxels_after]):
            return least
        longest = self.multiple.index(max(self.multiple))  # volumes tend to be larger along it
        h, w, d = (
            size + k * (axis == longest) for axis, (size, k) in enumerate(zip(least, self.multiple, strict=True))
        )
        return h, w, d

    def normalises(self, norm: Norm, stages: int) -> None:
        """Note that the decoder normalises the feature map after so many stages, or one of its size."""
        if norm.needs_two_voxels:
            self.two_voxels_after = stages
            self.min_size_reason = "its instance normalisation needs two voxels in the smallest feature map"

    def check(self, shape: Sequence[int]) -> None:
        """Refuse an input (N, C, H, W, D) that the network cannot take.

        Raises:
            ShapeError: it does not have five axes or the right number of channels, or a volume axis is not a multiple
                of `multiple` or is below `min_size`.
        """
        if len(shape) != len(AXES):
            raise ShapeError(
                f"the input has {len(shape)} axes, {written(shape)}; the network takes five, (N, C, H, W, D)"
            )
        if shape[1] != self.encoder.in_channels:
            raise ShapeError(f"C is {shape[1]}, but the network has {self.encoder.in_channels} input channels")
        check_multiples(shape[2:], self.multiple, self.min_size, self.min_size_reason)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(N, C, H, W, D) to masks (N, classes, H, W, D); with a classification head also labels (N, aux classes).

        Raises:
            ShapeError: `check` refuses the shape.
        """
        if not torch.compiler.is_compiling():  # a captured graph relies on its contract instead
            self.check(x.shape)
        features = self.encoder(x)
        masks = self.segmentation_head(self.decoder(features))
        if self.classification_head is None:
            return masks
        return masks, self.classification_head(features[-1])

    @classmethod
    def infer_arguments(cls, shapes: Shapes, encoder: EncoderSpec) -> dict[str, Any]:
        """The constructor arguments that can be inferred from the tensor shapes of a checkpoint.

        Every architecture infers `in_channels`, `classes` and, with a classification head, `aux_params`.
        `infer_decoder` adds the others.
        """
        arguments: dict[str, Any] = {}
        # A missing tensor or a wrong shape is reported when the tensors are loaded; here nothing is inferred from it.
        if_present = suppress(KeyError, IndexError)
        with if_present:
            arguments["in_channels"] = shapes[f"encoder.{encoder.stem}"][1]
        with if_present:
            arguments |= cls.infer_decoder(shapes, encoder)
        with if_present:
            arguments["classes"] = shapes["segmentation_head.0.weight"][0]
        with if_present:
            arguments["aux_params"] = {"classes": shapes["classification_head.3.weight"][0]}
        return arguments

    @classmethod
    def infer_decoder(cls, shapes: Shapes, encoder: EncoderSpec) -> dict[str, Any]:
        """The arguments of this architecture that can be inferred from the decoder's tensors.

        Raises:
            KeyError: a tensor is missing.
            IndexError: a tensor has too few axes.
        """
        return {}

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """`forward` in eval mode, without gradients."""
        if self.training:
            self.eval()
        return self(x)

    def save_pretrained(self, folder: str | Path, contract: ShapeContract | None = None) -> None:
        """Write `model.safetensors` and `config.json`, for `from_pretrained` and `smp3d-export from FOLDER`.

        Args:
            folder: made if it is not there; the two files in it are replaced.
            contract: the shapes to export it for, unless others are given then.

        Raises:
            UsageError: the arguments do not describe the model (an activation that is not a name, a layer that was
                replaced or changed later, a forward hook), or the folder cannot be written.
            ShapeError: the contract does not fit this network.
        """
        if contract is not None:
            optimum = (contract.opt[0], self.encoder.in_channels, *contract.opt[2:])
            ShapeContract.of(
                optimum, multiple=self.multiple, min_size=self.min_size, min=contract.min, max=contract.max
            )
        save(Path(folder), self, self.arguments, contract)

    @classmethod
    def from_pretrained(cls, source: str | Path, *, revision: str | None = None) -> Self:
        """As `smp3d_export.from_pretrained`, for a model of this class.

        Raises:
            CheckpointError: there is no such model, it is of another class, or its files do not go together.
        """
        saved = find(source, revision)
        if saved.name != cls.__name__:
            raise CheckpointError(
                f"{saved.title} is a {saved.name}, not a {cls.__name__}: use {saved.name}.from_pretrained"
            )
        return saved.load(cls)


def encoder_for(
    model: SegmentationModel,
    name: str,
    *,
    in_channels: int,
    depth: int,
    weights: str | None,
    strides: Sequence[Sequence[int]],
    output_stride: int = 32,
) -> Encoder:
    """The encoder of a model under construction.

    Raises:
        UsageError: the architecture cannot use this encoder, or an argument of the encoder is invalid.
    """
    # A user's subclass counts as the architecture that it derives from.
    spec = next(ARCHITECTURES[cls.__name__] for cls in type(model).__mro__ if cls.__name__ in ARCHITECTURES)
    refusal = spec.refusal(encoder_spec(name), depth)
    if refusal:
        raise UsageError(f"{spec.name} cannot use {name}: {refusal}")
    for argument, value in spec.needs(encoder_spec(name)).items():
        if output_stride != value:
            raise UsageError(
                f"{spec.name} cannot use {name} with {argument} {output_stride}: {encoder_spec(name).undilatable}. "
                f"Pass {argument}={value}"
            )
    return get_encoder(name, in_channels, depth, weights, output_stride, strides)


def infer_depth(encoder: EncoderSpec, *channels: int, default: int = STAGES) -> dict[str, int]:
    """The `encoder_depth` at which the last feature maps have these `channels`.

    Empty if several depths fit and the default is one of them: then the default is assumed.
    """
    ends = range(len(channels), len(encoder.channels) + 1)
    depths = [depth for depth in ends if encoder.channels[depth - len(channels) : depth] == channels]
    if not depths or (default in depths and len(depths) > 1):
        return {}
    return {"encoder_depth": depths[-1]}


def classification_head(channels: int, aux_params: Mapping[str, Any] | None) -> ClassificationHead | None:
    """The head for `aux_params` (`classes`, `pooling`, `dropout`, `activation`); None without them.

    Raises:
        UsageError: `aux_params` lacks `classes` or has another key.
    """
    if aux_params is None:
        return None
    unexpected = sorted(set(aux_params) - {"classes", "pooling", "dropout", "activation"})
    if unexpected or "classes" not in aux_params:
        raise UsageError(
            f"aux_params has {', '.join(unexpected) if unexpected else 'no classes'}; "
            "it takes classes, and optionally pooling, dropout and activation"
        )
    check_arguments(ClassificationHead, aux_params, "aux_params")
    return ClassificationHead(channels, **aux_params)

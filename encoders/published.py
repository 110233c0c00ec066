"""Trained weights -> an encoder: fetched or read from a file, inflated from 2D, adapted to the input channels."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smp3d_export.encoders.base import Encoder
from smp3d_export.encoders.spec import EncoderSpec
from smp3d_export.encoders.weights import PublishedWeights, no_weights, published_weights
from smp3d_export.errors import CheckpointError, UsageError
from smp3d_export.tensors import bare, differences, first_line, read_tensors, state_dict_in

FILE = "model.safetensors"


def load(spec: EncoderSpec, weights: str | os.PathLike[str], build: Callable[[], Encoder]) -> Encoder:
    """What `build` makes, with trained weights; none is drawn first.

    Args:
        spec: the row of the encoder.
        weights: a name of `spec.weights`, or a file or folder (see `find`) of 2D or 3D weights.
        build: makes the encoder on the default device.

    Raises:
        UsageError: there are no such weights, or they cannot be fetched.
        CheckpointError: the file cannot be read, or its weights are of another encoder.
    """
    with torch.device("meta"):
        encoder = build()
    path = find(spec, weights)
    expected = shapes(encoder.state_dict())
    tensors = convert_2d_weights_to_3d(encoder_tensors(path, spec, expected))
    for key in (spec.stem, *spec.further_stems):
        if key in tensors and tensors[key].ndim == 5:
            tensors[key] = for_channels(tensors[key], encoder.in_channels)
    found = shapes(tensors)
    if found != expected:
        raise CheckpointError(
            "\n".join([f"{str(path)!r} does not hold the weights of {spec.name}:", *differences(expected, found)])
        )
    if dict(encoder.named_buffers()).keys() - encoder.state_dict().keys():
        encoder = build()  # on a real device, for it computes tensors that no state dict holds
    encoder.load_state_dict(tensors, assign=True)
    return encoder.to(torch.get_default_device())


def find(spec: EncoderSpec, weights: str | os.PathLike[str]) -> Path:
    """The file of published weights, fetched where it is not in the hub's cache, or that of a user's own.

    A folder holds `model.safetensors`, or is a cache of the hub, or one repository's folder in it.

    Raises:
        UsageError: no weights have that name, they cannot be fetched, or a folder does not hold exactly one of them.
    """
    published = published_weights(spec.name)
    if weights in published:
        return fetch(f"the {weights} weights of {spec.name}", published[str(weights)])
    path = Path(weights)
    if path.is_file():
        return path
    if not path.is_dir():
        raise no_weights(spec.name, weights, instead=", and there is no file or folder of that name")
    snapshots = f"snapshots/*/{FILE}"
    cached = (f"models--{p.repo_id.replace('/', '--')}/snapshots/{p.revision}/{FILE}" for p in published.values())
    files = [file for pattern in (FILE, snapshots, *cached) for file in sorted(path.glob(pattern))]
    if len(files) != 1:
        held = f"{len(files)} files of weights" if files else f"no {FILE}"
        raise UsageError(f"{str(path)!r} holds {held} for {spec.name}: give the path of one file as encoder_weights")
    return files[0]


def fetch(what: str, published: PublishedWeights) -> Path:
    """The file in the hub's cache, downloaded with a progress bar where it is not there yet.

    Raises:
        UsageError: it cannot be; the message says what to download by hand and where it goes.
    """
    from huggingface_hub import hf_hub_download, hf_hub_url

    repo, revision = published.repo_id, published.revision
    try:
        return Path(hf_hub_download(repo, FILE, revision=revision))
    except Exception as error:  # whatever the hub and its transport raise, the way out is the same
        reason = first_line(error.__cause__ or error).rstrip(".")
        raise UsageError(
            f"{what} could not be fetched ({reason}). Download {FILE} of {repo} at revision {revision}, "
            f"{hf_hub_url(repo, FILE, revision=revision)}, and give its path as encoder_weights (--encoder-weights)"
        ) from error


def encoder_tensors(path: Path, spec: EncoderSpec, expected: Mapping[str, Any]) -> dict[str, Tensor]:
    """The encoder's tensors in float32 by the `expected` names, those of older spellings too, without a classifier.

    Of a whole segmentation network's checkpoint they are those under `encoder`.

    Raises:
        CheckpointError: the file cannot be read, or holds a tensor twice.
    """
    content = state_dict_in(read_tensors(path), path)
    named = [(key if key in expected else bare(key), value) for key, value in content.items()]
    inner = [(key.removeprefix("encoder."), value) for key, value in named if key.startswith("encoder.")]
    tensors: dict[str, Tensor] = {}
    for key, value in inner or named:
        if key.startswith(spec.classifier) or not isinstance(value, Tensor):
            continue
        for old, new in spec.renames:
            key = re.sub(old, new, key)
        if key in tensors:
            raise CheckpointError(f"{str(path)!r} holds {key} twice: save one network alone")
        tensors[key] = value.float() if value.is_floating_point() else value
    return tensors


def for_channels(weight: Tensor, in_channels: int) -> Tensor:
    """A stem's weight (O, I, kH, kW, kD) for other input channels.

    For one channel it is summed over its own; else they are repeated in turn, and scaled by I / in_channels.
    """
    own = weight.shape[1]
    if in_channels == own:
        return weight
    if in_channels == 1:
        return weight.sum(dim=1, keepdim=True)
    return weight[:, torch.arange(in_channels) % own] * (own / in_channels)


def convert_2d_weights_to_3d(state_dict: Mapping[str, Any], verbose: bool = False) -> dict[str, Any]:
    """Inflate the state dict of a 2D network for the 3D one with the same keys (Carreira et al., arXiv:1705.07750).

    Every weight with four axes, (O, I, kH, kW), is repeated along a new last one as long as kW, and divided by that
    length: to a volume of equal slices it responds as to the slice. All else stays, weights that are 3D already too.

    Args:
        state_dict: tensors by name; it is not changed.
        verbose: print the shapes of what is inflated.
    """
    inflated = dict(state_dict)
    for name, weight in state_dict.items():
        if isinstance(weight, Tensor) and weight.ndim == 4:
            length = weight.shape[-1]
            inflated[name] = (weight / length).unsqueeze(-1).repeat(1, 1, 1, 1, length)
            if verbose:
                print(f"{name}: {tuple(weight.shape)} -> {tuple(inflated[name].shape)}")
    return inflated


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Of all but the counts of batches, which old files lack and no inference needs."""
    return {name: tuple(t.shape) for name, t in tensors.items() if not name.endswith("num_batches_tracked")}

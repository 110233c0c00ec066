"""Load trained weights into an encoder: fetch or read them, inflate them from 2D, adapt them to the input channels."""

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
from smp3d_export.quiet import quiet
from smp3d_export.weights.sets import primary, weight_sets
from smp3d_export.weights.tensors import differences, few, first_line, read_tensors, usable

FILE = "model.safetensors"


def load(spec: EncoderSpec, weights: str | os.PathLike[str], build: Callable[[], Encoder]) -> Encoder:
    """The encoder that `build` makes, with trained weights; no random weights are drawn first.

    Args:
        spec: the row of the encoder.
        weights: a name in `spec.weights`, or a file or folder (see `find`) of 2D or 3D weights.
        build: makes the encoder on the default device.

    Raises:
        UsageError: there are no such weights, or they cannot be fetched.
        CheckpointError: the file cannot be read, or its weights belong to another encoder.
    """
    with torch.device("meta"):
        encoder = build()
    path = find(spec, weights)
    expected = shapes(encoder.state_dict())
    tensors = convert_2d_weights_to_3d(encoder_tensors(path, spec, expected))
    for key in (spec.stem, *spec.further_stems):
        if key in tensors and tensors[key].ndim == 5:
            tensors[key] = adapt_channels(tensors[key], encoder.in_channels)
    found = shapes(tensors)
    if found != expected:
        raise CheckpointError(
            "\n".join([f"{str(path)!r} does not hold the weights of {spec.name}:", *differences(expected, found)])
        )
    if dict(encoder.named_buffers()).keys() - encoder.state_dict().keys():
        encoder = build()  # on a real device, because it computes tensors that no state dict holds
    encoder.load_state_dict(tensors, assign=True)
    return encoder.to(torch.get_default_device())


def find(spec: EncoderSpec, weights: str | os.PathLike[str]) -> Path:
    """The weights file: published (fetched if it is not in the hub's cache) or the user's own.

    A folder holds `model.safetensors`, or is a hub cache, or is one repository's folder in a hub cache.

    Raises:
        UsageError: no weights have that name, they cannot be fetched, or a folder does not hold exactly one such file.
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
        held = f"{len(files)} weights files" if files else f"no {FILE}"
        raise UsageError(f"{str(path)!r} holds {held} for {spec.name}: give the path of one file as encoder_weights")
    return files[0]


def fetch(what: str, published: PublishedWeights) -> Path:
    """The file in the hub's cache, downloaded with a progress bar if it is not there yet.

    Raises:
        UsageError: the download failed; the message says what to download by hand and how to pass it.
    """
    from huggingface_hub import hf_hub_download, hf_hub_url

    repo, revision = published.repo_id, published.revision
    try:
        with quiet():  # without a network the client logs its retries
            return Path(hf_hub_download(repo, FILE, revision=revision))
    except Exception as error:  # whatever the hub or its transport raises, the fix is the same
        reason = first_line(error.__cause__ or error).rstrip(".")
        raise UsageError(
            f"{what} could not be fetched ({reason}). Download {FILE} of {repo} at revision {revision}, "
            f"{hf_hub_url(repo, FILE, revision=revision)}, and give its path as encoder_weights (--encoder-weights)"
        ) from error


def encoder_tensors(path: Path, spec: EncoderSpec, expected: Mapping[str, Any]) -> dict[str, Tensor]:
    """The encoder's tensors in float32, without the classifier, under the `expected` names (older spellings renamed).

    They may be on any level of the file and behind any prefix, as in a checkpoint of a segmentation network. Of several
    sets they are the one that is not by its name an average (`ema`, `swa`).

    Raises:
        CheckpointError: the file cannot be read, holds no such tensors or several sets of them, or one of them twice or
            not finite.
    """
    sets = weight_sets(read_tensors(path), {name.partition(".")[0] for name in expected})
    if not sets:
        raise CheckpointError(f"{str(path)!r} holds no weights of {spec.name}, which are called {few(expected)}")
    found = [len(expected.keys() & renamed(each.tensors, spec, path).keys()) for each in sets]
    nearest = [each for each, count in zip(sets, found, strict=True) if count == max(found)]
    chosen, others = primary(nearest if max(found) == len(expected) else nearest[:1])
    if chosen is None:
        places = ", ".join(each.place for each in others)
        raise CheckpointError(f"{str(path)!r} holds several sets of weights of {spec.name}: {places}. Save one alone")
    return {
        name: usable(tensor, torch.float32, f"{name} of {str(path)!r}") if tensor.is_floating_point() else tensor
        for name, tensor in renamed(chosen.whole.tensors, spec, path).items()
    }


def renamed(tensors: Mapping[str, Tensor], spec: EncoderSpec, path: Path) -> dict[str, Tensor]:
    """Tensors by the names that an encoder has for them today, without its classifier.

    Raises:
        CheckpointError: two of them have the same name.
    """
    named: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if key.startswith(spec.classifier):
            continue
        for old, new in spec.renames:
            key = re.sub(old, new, key)
        if key in named:
            raise CheckpointError(f"{str(path)!r} holds {key} twice: save one network alone")
        named[key] = value
    return named


def adapt_channels(weight: Tensor, in_channels: int) -> Tensor:
    """A stem's weight (O, I, kH, kW, kD), adapted to `in_channels`.

    For one channel the I channels are summed. Otherwise they are repeated cyclically and scaled by I / in_channels.
    """
    own = weight.shape[1]
    if in_channels == own:
        return weight
    if in_channels == 1:
        return weight.sum(dim=1, keepdim=True)
    return weight[:, torch.arange(in_channels) % own] * (own / in_channels)


def convert_2d_weights_to_3d(state_dict: Mapping[str, Any], verbose: bool = False) -> dict[str, Any]:
    """Inflate the state dict of a 2D network for the 3D network with the same keys (Carreira et al., arXiv:1705.07750).

    Every weight with four axes, (O, I, kH, kW), is repeated kW times along a new last axis and divided by kW, so a
    volume of equal slices gives the same response as one slice. Everything else, 3D weights included, stays as it is.

    Args:
        state_dict: tensors by name; it is not changed.
        verbose: print the shapes of the inflated weights.
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
    """Shapes by name, without the batch counters, which old files lack and inference does not need."""
    return {name: tuple(t.shape) for name, t in tensors.items() if not name.endswith("num_batches_tracked")}

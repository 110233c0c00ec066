"""A network by its name, with trained or random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smp3d_export.errors import UsageError

if TYPE_CHECKING:
    from smp3d_export.architectures.base import SegmentationModel
    from smp3d_export.progress import Reporter
    from smp3d_export.sources.network import Network, OpenedNetwork
    from smp3d_export.sources.request import Request, Sizes


@dataclass(frozen=True, kw_only=True)
class NamedNetwork:
    """An architecture and an encoder.

    `arguments` are the constructor arguments that the user gave. The others are inferred from the checkpoint, or have
    the constructor's defaults. `weights_key` says which weights of a checkpoint to use if it holds several sets, by
    their key, such as `state_dict_ema`.
    """

    architecture: str
    encoder: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Path | None = None
    weights_key: str | None = None
    seed: int = 0

    @property
    def title(self) -> str:
        return f"{self.architecture}-{self.encoder}".lower()

    def complete(self, request: Request) -> Request:
        from smp3d_export.sources.network import complete

        return complete(request)

    def open(self, request: Request, reporter: Reporter) -> OpenedNetwork:
        return build(self, request.shape).opened(request)


def build(source: NamedNetwork, shape: Sizes | None = None) -> Network[SegmentationModel]:
    """The network. Its input channels come from `shape` if neither its arguments nor a checkpoint set them.

    Raises:
        UsageError: there is no such network, or its arguments do not go together.
        CheckpointError: the checkpoint cannot be read or belongs to another network.
    """
    import torch

    from smp3d_export.architectures import architecture_class, architecture_spec, create_model
    from smp3d_export.architectures.arguments import check_arguments
    from smp3d_export.encoders import encoder_spec
    from smp3d_export.sources.checkpoint import load_checkpoint
    from smp3d_export.sources.network import Network, randomise_normalisations

    architecture = architecture_spec(source.architecture).name
    encoder = encoder_spec(source.encoder).name
    check_arguments(architecture_class(architecture), source.arguments)
    if source.weights_key is not None and source.checkpoint is None:
        raise UsageError(f"--weights-key {source.weights_key} needs a --checkpoint that holds such weights")
    if source.checkpoint is not None:
        if source.arguments.get("encoder_weights") is not None:
            raise UsageError(
                f"--encoder-weights {source.arguments['encoder_weights']} would be overwritten by --checkpoint, which "
                "has the encoder's weights: give one of the two"
            )
        loaded = load_checkpoint(
            source.checkpoint, architecture, encoder, source.arguments, weights_key=source.weights_key
        )
        return Network.of(
            model=loaded.model.eval(),
            architecture=architecture,
            encoder=encoder,
            arguments=loaded.arguments,
            weights=loaded.source,
            notes=loaded.notes,
        )
    arguments = {"encoder_weights": None, **source.arguments}
    if shape is not None and len(shape) > 1:
        arguments.setdefault("in_channels", shape[1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(source.seed)
        model = create_model(architecture, encoder, **arguments)
        trained = arguments["encoder_weights"]
        for name, part in model.named_children():
            if name != "encoder" or trained is None:
                randomise_normalisations(part)
    weights = "random weights" if trained is None else f"{encoder} {Path(trained).name}, rest random"
    return Network.of(
        model.eval(),
        architecture=architecture,
        encoder=encoder,
        arguments=arguments,
        weights=f"{weights}, seed {source.seed}",
    )

"""A model that `save_pretrained` wrote, or one in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smp3d_export.architectures.base import SegmentationModel
    from smp3d_export.contract import ShapeContract
    from smp3d_export.progress import Reporter
    from smp3d_export.sources.network import Network, OpenedNetwork
    from smp3d_export.sources.request import Request


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """A folder, or a repository of the Hugging Face hub and a revision of it."""

    source: str
    revision: str | None = None
    seed: int = 0

    @property
    def title(self) -> str:
        """Not just the folder's name, which is taken in its parent folder."""
        return f"{Path(self.source).resolve().name}-export"

    def complete(self, request: Request) -> Request:
        from smp3d_export.sources.network import complete

        return complete(request)

    def open(self, request: Request, reporter: Reporter) -> OpenedNetwork:
        return self.build().opened(request)

    def build(self) -> Network[SegmentationModel]:
        """The network.

        Raises:
            CheckpointError: there is no such model, its files do not go together, or its weights are not finite.
        """
        from smp3d_export.architectures import persistence
        from smp3d_export.sources.network import Network
        from smp3d_export.weights.tensors import check_finite

        saved = persistence.find(self.source, self.revision)
        model = saved.load(saved.architecture)
        for name, tensor in model.state_dict().items():
            check_finite(tensor, f"{name} of {saved.title}")
        return Network.of(
            model=model,
            architecture=saved.name,
            encoder=saved.arguments["encoder_name"],
            arguments=saved.arguments,
            weights=saved.title,
            saved=saved.contract,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelInMemory:
    """A model of this package in memory. It is exported with its weights; its training mode is left as it is."""

    model: SegmentationModel
    name: str | None = None
    contract: ShapeContract | None = None
    seed: int = 0

    @property
    def title(self) -> str:
        arguments = self.model.arguments
        return self.name or f"{type(self.model).__name__}-{arguments['encoder_name']}".lower()

    def complete(self, request: Request) -> Request:
        from smp3d_export.sources.network import complete

        return complete(request)

    def open(self, request: Request, reporter: Reporter) -> OpenedNetwork:
        import copy

        from smp3d_export.sources.network import Network

        arguments = self.model.arguments
        network = Network.of(
            model=copy.deepcopy(self.model).float().eval(),
            architecture=type(self.model).__name__,
            encoder=arguments["encoder_name"],
            arguments=arguments,
            weights="weights in memory",
            saved=self.contract,
        )
        return network.opened(request)

"""What every runner has in common: it checks its input against the contract before a backend sees it."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smp3d_export.arrays import Outputs, Volume
from smp3d_export.artifact.manifest import Manifest

if TYPE_CHECKING:
    from smp3d_export.backends import Backend


@dataclass(frozen=True)
class Artifact:
    """An artifact on disk, and how it is to be run.

    Attributes:
        row: the target's row in the table of backends.
        folder: its folder.
        manifest: its description.
        threads: how many to use; if None, the backend chooses.
        device: `cpu`, `cuda` or `cuda:N`.
    """

    row: Backend
    folder: Path
    manifest: Manifest
    threads: int | None = None
    device: str = "cpu"

    @property
    def file(self) -> Path:
        """The file that is loaded."""
        return self.folder / self.row.files[0]


class Runner(abc.ABC):
    """A loaded artifact: call it with (N, C, H, W, D) in float32 and get its outputs by name.

    Raises:
        UsageError: the files are not what the manifest says.
        TargetUnavailableError: this machine lacks something that is needed to run them.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.manifest = artifact.manifest
        self.contract = artifact.manifest.contract

    def __call__(self, image: Volume) -> Outputs:
        """Run the artifact.

        Raises:
            ShapeError: `image` is outside the contract; no backend is asked to cope with it.
        """
        self.contract.check(image.shape)
        return self.run(image)

    @abc.abstractmethod
    def run(self, image: Volume) -> Outputs:
        """Run on an image that the contract admits."""

    def seconds(self, image: Volume) -> float | None:
        """Run and return the seconds it took if the backend has a better clock than the wall's; otherwise None."""
        self(image)

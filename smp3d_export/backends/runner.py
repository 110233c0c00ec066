"""What runners have in common: an input is checked against the contract before the backend sees it."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, final

from numpy.typing import ArrayLike

from smp3d_export.arrays import Outputs, Volume, as_volume
from smp3d_export.artifact.manifest import Manifest
from smp3d_export.contract import written
from smp3d_export.errors import RunError, Smp3dExportError, summary

if TYPE_CHECKING:
    from smp3d_export.backends import Backend

Result = TypeVar("Result")


@dataclass(frozen=True)
class Artifact:
    """An artifact on disk, and how to run it.

    Attributes:
        row: the target's row in the table of backends.
        folder: its folder.
        manifest: its description.
        threads: CPU threads; if None, the backend chooses.
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
    """A loaded artifact: call it with (N, C, H, W, D) and get its outputs by name.

    A backend implements `_run`, and `_timed` if it has a better clock than wall time.

    Raises:
        UsageError: the files are not what the manifest says.
        TargetUnavailableError: this machine lacks something that the artifact needs.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.manifest = artifact.manifest
        self.contract = artifact.manifest.contract

    @final
    def __call__(self, image: ArrayLike) -> Outputs:
        """Run the artifact on an array of any real type and layout.

        Raises:
            UsageError: `image` does not hold real numbers.
            ShapeError: it is outside the contract.
            RunError: the runtime failed.
        """
        return self._admitted(self._run, image)

    @final
    def seconds(self, image: ArrayLike) -> float | None:
        """Run, and return the seconds that it took if the backend has a better clock than wall time; otherwise None.

        Raises:
            UsageError: `image` does not hold real numbers.
            ShapeError: it is outside the contract.
            RunError: the runtime failed.
        """
        return self._admitted(self._timed, image)

    def _admitted(self, run: Callable[[Volume], Result], image: ArrayLike) -> Result:
        """The image in the form that backends take, if the contract admits it."""
        volume = as_volume(image)
        self.contract.check(volume.shape)
        try:
            return run(volume)
        except Smp3dExportError:
            raise
        except Exception as error:
            what = f"the {self.manifest.target} artifact failed at the shape {written(volume.shape)}"
            raise RunError(f"{what}: {summary(error)}") from error

    @abc.abstractmethod
    def _run(self, image: Volume) -> Outputs: ...

    def _timed(self, image: Volume) -> float | None:
        self._run(image)

"""A MONAI bundle -> its network: what `configs/inference.json` defines, with the weights in `models/model.pt`.

A bundle is a folder, or a zip file of one. Its configuration names the classes and expressions that build the network,
so building it runs code; its weights are read without running any.
"""

from __future__ import annotations

import copy
import json
import os
import re
import sys
import tempfile
import traceback
import weakref
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from pydoc import ErrorDuringImport
from typing import TYPE_CHECKING, Any

from smp3d_export.errors import CheckpointError, UsageError, summary
from smp3d_export.sources.bundle_metadata import facts, input_shape, volume_format
from smp3d_export.sources.factory import load_weights
from smp3d_export.sources.foreign import Foreign, Given

if TYPE_CHECKING:
    from torch import nn

METADATA = "configs/metadata.json"
CONFIGS = tuple(f"configs/{name}.{kind}" for name in ("inference", "train") for kind in ("json", "yaml", "yml"))
WEIGHTS = "models/model.pt"
NETWORKS = ("network_def", "network")
"""What the configuration may call the network, the best first: the second is also moved to a device."""
LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md")
SCRIPTS = "scripts"
"""The package of a bundle's own code."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Bundle(Foreign):
    """A MONAI bundle.

    Attributes:
        path: its folder or zip file.
        checkpoint: other weights than its own.
        weights_key: which weights of a checkpoint that holds several.
        name: what the network is called; by default like the bundle.
    """

    path: Path
    checkpoint: Path | None = None
    weights_key: str | None = None
    name: str | None = None

    @property
    def title(self) -> str:
        """Not just the folder's name, which is taken in its parent folder."""
        return self.name or f"{self.own_name}-export"

    @property
    def own_name(self) -> str:
        path = self.path.resolve()
        return path.name if path.is_dir() else path.stem

    def load(self) -> Given:
        folder = None if self.path.is_dir() else tempfile.TemporaryDirectory()
        place = self.path if folder is None else Path(folder.name)
        with shown_as(place, self.path):
            if folder is not None:
                unpack(self.path, place)
            given = self.read(root_of(place))
        if folder is not None:  # code of the bundle may still be imported from it
            weakref.finalize(given.module, folder.cleanup)
        return given

    def read(self, root: Path) -> Given:
        """The network of a bundle's folder."""
        config = next((root / name for name in CONFIGS if (root / name).is_file()), None)
        if config is None:
            raise UsageError(f"the bundle {str(root)!r} has no {CONFIGS[0]}, which would define its network")
        metadata = read_metadata(root)
        image = volume_format(metadata, "inputs", "image")
        axes = image.get("spatial_shape")
        if isinstance(axes, list) and len(axes) != 3:
            raise UsageError(
                f"the bundle {str(root)!r} takes images with {len(axes)} axes, by its metadata ({axes}), and 3D "
                "networks are exported"
            )
        weights = self.checkpoint or root / WEIGHTS
        if not weights.exists() and self.checkpoint is None:
            raise CheckpointError(
                f"the bundle {str(root)!r} has no {WEIGHTS}, which may have to be downloaded: give --checkpoint FILE"
            )
        parsed = Parsed.read(config, metadata)
        module = parsed.network(self.seed)
        source, notes = load_weights(module, weights, self.weights_key)
        found = facts(with_licence(metadata, root), parsed.config, parsed.get)
        found = {"name": self.own_name, "network": type(module).__name__, **found}
        version = metadata.get("version")
        return Given(
            module=module,
            name=self.name or self.own_name,
            weights=f"{source} of version {version}" if version and self.checkpoint is None else source,
            shape=input_shape(image),
            notes=(f"this runs the code that {config.relative_to(root).as_posix()} names", *notes),
            facts={"monai": json.loads(json.dumps(found, default=str))},
        )


@dataclass(frozen=True)
class Parsed:
    """A configuration, and MONAI's parser of it."""

    path: Path
    config: Mapping[str, Any]
    parser: Any

    @classmethod
    def read(cls, path: Path, metadata: Mapping[str, Any]) -> Parsed:
        """Read a configuration, to be evaluated on the CPU and with the bundle where it is.

        Raises:
            UsageError: MONAI is not installed, or the file cannot be read.
        """
        try:
            from monai.bundle.config_parser import ConfigParser
        except ImportError as error:
            raise UsageError(
                f"a MONAI bundle needs monai, which cannot be imported ({error}): pip install 'smp3d-export[monai]'"
            ) from error
        parser = ConfigParser()
        try:
            parser.read_meta(dict(metadata))
            parser.read_config(str(path))
        except Exception as error:  # of JSON, of YAML, or MONAI's own
            raise UsageError(f"{str(path)!r} cannot be read: {summary(error)}") from error
        config = copy.deepcopy(parser.get())
        parsed = cls(path, config, parser)
        parser["bundle_root"] = os.fspath(parsed.root)
        if "device" in config:
            parser["device"] = "$torch.device('cpu')"
        return parsed

    def network(self, seed: int) -> nn.Module:
        """Build the network, with PyTorch's random numbers seeded.

        Raises:
            UsageError: there is none, or what the configuration names fails.
        """
        import torch
        from torch import nn

        name = next((name for name in NETWORKS if name in self.config), None)
        if name is None:
            raise UsageError(f"{str(self.path)!r} defines no {' or '.join(NETWORKS)}, which would be the network")
        self.importable()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                module = self.parser.get_parsed_content(name)
            except (Exception, SystemExit) as error:
                raise UsageError(f"{name} of {str(self.path)!r} cannot be built: {reason(error, self.root)}") from error
        if not isinstance(module, nn.Module):
            kind = type(module).__name__
            raise UsageError(f"{name} of {str(self.path)!r} is a {kind}, not a torch.nn.Module")
        return module.cpu()

    @property
    def root(self) -> Path:
        return self.path.resolve().parents[1]

    def importable(self) -> None:
        """Make the code that is in the bundle importable, also after that of another bundle."""
        sys.path.insert(0, os.fspath(self.root))
        for name in [each for each in sys.modules if each.split(".")[0] == SCRIPTS]:
            del sys.modules[name]

    def get(self, item: str) -> Any:
        """An item of the configuration with its references followed, or None."""
        with suppress(Exception):
            return self.parser.get_parsed_content(item)
        return None


def is_bundle(path: Path) -> bool:
    """Whether a folder or a zip file is a MONAI bundle, by the names in it."""
    names = (METADATA, *CONFIGS)
    if path.is_dir():
        return any((path / name).is_file() for name in names)
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        inside = (PurePosixPath(name).parts for name in archive.namelist())
        return any("/".join(parts[-2:]) in names for parts in inside if len(parts) <= 3)
    return False


def unpack(path: Path, folder: Path) -> None:
    """Take a bundle out of a zip file.

    Raises:
        UsageError: it cannot be read.
        CheckpointError: it is damaged or encrypted.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be unpacked: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # the last: of encrypted files
        raise CheckpointError(f"{str(path)!r} cannot be unpacked: {error}") from error


def root_of(folder: Path) -> Path:
    """The folder itself, or the one in it that is the bundle, as in zip files."""
    return folder if is_bundle(folder) else next((each for each in sorted(folder.iterdir()) if is_bundle(each)), folder)


def read_metadata(root: Path) -> Mapping[str, Any]:
    """What `metadata.json` says; nothing if there is none.

    Raises:
        UsageError: it cannot be read.
    """
    path = root / METADATA
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{str(path)!r} cannot be read: {summary(error)}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{str(path)!r} holds a {type(content).__name__}, not the metadata of a bundle")
    return content


def with_licence(metadata: Mapping[str, Any], root: Path) -> Mapping[str, Any]:
    """The metadata with the first line of the bundle's licence, if it names none itself."""
    files = [root / name for name in LICENCES if (root / name).is_file()]
    lines = [line.strip() for line in files[0].read_text("utf-8", "replace").splitlines()] if files else []
    first = next((line for line in lines if line), None)
    return metadata if first is None or "license" in metadata else {**metadata, "license": first[:200]}


def reason(error: BaseException, root: Path) -> str:
    """Why building failed: what is below MONAI's own exceptions, with the line of the bundle's code that raised it."""
    while error.__cause__ is not None and str(error).startswith("Failed to "):
        error = error.__cause__
    if isinstance(error, ErrorDuringImport) and error.value is not None:
        error = error.value
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(os.fspath(root))
    ]
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno} ({frames[-1].line}): " if frames else ""
    return f"{where}{summary(error)}"


@contextmanager
def shown_as(place: Path, path: Path) -> Iterator[None]:
    """Name the bundle in errors, not the temporary folder that it was unpacked to."""
    try:
        yield
    except UsageError as error:
        text = re.sub(rf"{re.escape(os.fspath(place))}", lambda _: os.fspath(path), str(error))
        raise type(error)(text) from error

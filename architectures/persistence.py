"""A whole model in a folder: its tensors in `model.safetensors`, how it is built in `config.json`."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from smp3d_export.architectures import ARCHITECTURES, architecture_class
from smp3d_export.architectures.arguments import check_arguments, is_opaque
from smp3d_export.architectures.deviation import deviation
from smp3d_export.contract import ShapeContract
from smp3d_export.encoders.published import convert_2d_weights_to_3d, shapes
from smp3d_export.errors import CheckpointError, UsageError
from smp3d_export.quiet import quiet
from smp3d_export.weights.kinds import CHECKPOINTS, other_kind
from smp3d_export.weights.tensors import differences, first_line, read_tensors

if TYPE_CHECKING:
    from smp3d_export.architectures.base import SegmentationModel

Model = TypeVar("Model", bound=nn.Module)

FORMAT = "smp3d-export-model/1"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CHECKPOINT_JOB = "Export a checkpoint with smp3d-export ARCH ENCODER --checkpoint"
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def from_pretrained(source: str | Path, *, revision: str | None = None) -> SegmentationModel:
    """A model that `save_pretrained` wrote, in eval mode and float32, on the CPU.

    Args:
        source: the folder, or `OWNER/NAME`, a repository of the Hugging Face hub with these two files, which are
            fetched once and kept in its cache.
        revision: a branch, a tag or a commit of the repository.

    Raises:
        CheckpointError: there is no such model, or its files do not go together.
    """
    saved = find(source, revision)
    return saved.load(saved.architecture)


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A saved model that is not loaded yet.

    `title` is what a user calls it, `name` the name of its class, `arguments` are the constructor's. `contract` has the
    shapes that it was saved for, if any. `flat` says that the 2D library saved it.
    """

    folder: Path
    title: str
    name: str
    arguments: dict[str, Any]
    contract: ShapeContract | None = None
    flat: bool = False

    @property
    def architecture(self) -> type[SegmentationModel]:
        """The class of that name.

        Raises:
            CheckpointError: smp3d_export has no such class.
        """
        if self.name not in ARCHITECTURES:
            raise CheckpointError(
                f"{self.title} is a {self.name}, which is not an architecture of smp3d-export "
                f"({', '.join(ARCHITECTURES)}). Load a class of your own with {self.name}.from_pretrained(...)"
            )
        return architecture_class(self.name)

    def load(self, cls: type[Model]) -> Model:
        """A model of a class with the saved arguments and tensors, in eval mode; no weights are drawn for it first.

        Raises:
            CheckpointError: the class does not take the arguments, or the tensors are not those of such a model.
        """
        path = self.folder / WEIGHTS
        tensors = dict(read_tensors(path))
        if self.flat:
            tensors = convert_2d_weights_to_3d(tensors)
        try:
            if self.name in ARCHITECTURES:  # the numbers of a user's own class may be anything
                check_arguments(cls, self.arguments)
            model = build(cls, self.arguments)
        except (UsageError, TypeError) as error:
            raise CheckpointError(
                f"{CONFIG} of {self.title} describes a model that cannot be built: {error}"
            ) from error
        different = differences(shapes(model.state_dict()), shapes(tensors))
        if different:
            raise CheckpointError("\n".join([f"{str(path)!r} does not fit the {CONFIG} beside it:", *different]))
        # Copied, because the tensors that were read are views of the file and would change with it.
        copies = {name: t.clone().float() if t.is_floating_point() else t.clone() for name, t in tensors.items()}
        model.load_state_dict(copies, assign=True)
        return model.eval()


def save(folder: Path, model: nn.Module, arguments: dict[str, Any], contract: ShapeContract | None = None) -> None:
    """Write a model that was built with these arguments; see `SegmentationModel.save_pretrained`.

    Raises:
        UsageError: a model built from the files would not be this one, or the folder cannot be written.
    """
    cls = type(model)
    if cls.__name__ in ARCHITECTURES and cls is not architecture_class(cls.__name__):
        raise UsageError(
            f"this {cls.__name__} is not smp3d_export's {cls.__name__}, which from_pretrained would build: "
            "give your class a name of its own"
        )
    if "encoder_weights" in arguments:
        arguments = {**arguments, "encoder_weights": None}  # the tensors hold them
    unwritable = [name for name, value in arguments.items() if is_opaque(value)]
    if unwritable:
        raise UsageError(
            f"{unwritable[0]} of this {cls.__name__} is {arguments[unwritable[0]]!r}, but {CONFIG} holds names and "
            "numbers only: build the model with the name of an activation, or save its state_dict()"
        )
    described = build(cls, arguments)
    deviates = deviation(model, described)
    if deviates:
        raise UsageError(
            f"{deviates}. {CONFIG} holds the arguments alone, so from_pretrained would build another network: "
            f"undo the change, make it in the __init__ of a subclass of {cls.__name__}, or save its state_dict()"
        )
    tensors = model.state_dict()
    different = differences(shapes(described.state_dict()), shapes(tensors))
    if different:
        raise UsageError(
            "\n".join([f"the tensors of this {cls.__name__} are not those that its arguments describe:", *different])
        )
    config = {"format": FORMAT, "class": cls.__name__, "arguments": arguments}
    if contract is not None:
        config["contract"] = contract.to_dict()
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    users = Counter(tensor.data_ptr() for tensor in tensors.values())
    # safetensors refuses a tensor under two names, so each gets a copy.
    write(folder, config, {name: t.clone() if users[t.data_ptr()] > 1 else t for name, t in tensors.items()})


def build(cls: Callable[..., Model], arguments: Mapping[str, Any]) -> Model:
    """A model whose weights will be replaced, so that none are drawn: it is on the device `meta`.

    It is on a real device if it computes tensors that no state dict holds.
    """
    with torch.device("meta"):
        model = cls(**arguments)
    if dict(model.named_buffers()).keys() - model.state_dict().keys():
        with torch.random.fork_rng(devices=[]):
            return cls(**arguments)
    return model


def write(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Put both files in place at the end, so that a folder never holds half of one."""
    from safetensors.torch import save_file

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as temporary:
            save_file(tensors, Path(temporary, WEIGHTS), metadata={"format": "pt"})
            Path(temporary, CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")
            shutil.copymode(Path(temporary, CONFIG), Path(temporary, WEIGHTS))  # safetensors gives others no access
            for name in (WEIGHTS, CONFIG):
                Path(temporary, name).replace(folder / name)
    except OSError as error:
        raise UsageError(f"the folder {str(folder)!r} cannot be written: {error}") from error


def find(source: str | Path, revision: str | None = None) -> Saved:
    """A saved model by its folder or repository; see `from_pretrained`.

    Raises:
        CheckpointError: there is none, or its `config.json` cannot be read.
        UsageError: a revision is given for a folder.
    """
    folder = Path(source)
    if folder.is_dir():
        if revision is not None:
            raise UsageError(f"{str(source)!r} is a folder, and only a repository of the hub has a revision")
        return read(folder, folder.resolve().name)
    if folder.exists():
        raise CheckpointError(f"{str(source)!r} is a file, and a saved model is a folder. {job_for_file(folder)}")
    return read(fetch(str(source), revision), f"{source}@{revision}" if revision else str(source))


def job_for_file(path: Path) -> str:
    """What to do with a file that was given as a saved model."""
    if path.name in (CONFIG, WEIGHTS):
        return f"Give the folder: {path.parent}"
    try:
        kind = other_kind(path)
    except OSError as error:
        kind = f"cannot be read: {error.strerror}"
    return f"{CHECKPOINT_JOB} {path}" if kind is None else f"This one {kind}"


def job_for_folder(folder: Path) -> str:
    """What to do with a folder that was given as a saved model."""
    files = sorted(folder.iterdir())
    for file in files:
        if file.suffix == ".onnx":
            return f"Make further artifacts of an exported ONNX file with smp3d-export from {file}"
    for file in files:
        if file.name.endswith(CHECKPOINTS):
            return f"{CHECKPOINT_JOB} {file}"
    return "model.save_pretrained(FOLDER) makes one"


def fetch(repository: str, revision: str | None) -> Path:
    """The folder of the hub's cache that holds a repository's two files, fetched if they are not there yet.

    Raises:
        CheckpointError: they cannot be fetched. The message says what to download, and where to put it.
    """
    missing = f"there is no folder {repository!r}"
    if not REPOSITORY.fullmatch(repository):
        hint = f". {CHECKPOINT_JOB} FILE" if repository.endswith(CHECKPOINTS) else ""
        raise CheckpointError(f"{missing}, and it cannot be a repository of the hub, OWNER/NAME{hint}")
    url = f"https://huggingface.co/{repository}/resolve/{revision or 'main'}"
    try:
        from huggingface_hub import snapshot_download

        with quiet():  # without a network the client logs its retries
            return Path(snapshot_download(repository, revision=revision, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # whatever the hub and its transport raise, the advice is the same
        reason = first_line(error.__cause__ or error).rstrip(".")
        raise CheckpointError(
            f"{missing}, and it could not be fetched from the hub ({reason}). "
            f"Download {url}/{CONFIG} and {url}/{WEIGHTS} into a folder, and give the folder"
        ) from error


def read(folder: Path, title: str) -> Saved:
    """What the `config.json` of a folder says: ours, or the one that the 2D library's `save_pretrained` writes."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text("utf-8"))
    except OSError:
        raise CheckpointError(
            f"{str(folder)!r} is not a saved model: it has no {CONFIG}. {job_for_folder(folder)}"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{str(path)!r} is not valid JSON: {error}") from error
    if isinstance(config, dict) and "_model_class" in config:
        arguments = {name: value for name, value in config.items() if not name.startswith("_")}
        arguments["encoder_weights"] = None
        return Saved(folder=folder, title=title, name=str(config["_model_class"]), arguments=arguments, flat=True)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise CheckpointError(f"{str(path)!r} does not have the format {FORMAT!r}, which save_pretrained writes")
    try:
        contract = ShapeContract.from_dict(config["contract"]) if "contract" in config else None
        arguments = dict(config["arguments"])
        return Saved(folder=folder, title=title, name=str(config["class"]), arguments=arguments, contract=contract)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"{str(path)!r} is damaged ({type(error).__name__}: {error})") from error

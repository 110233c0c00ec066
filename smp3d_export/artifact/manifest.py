"""The manifest: what an artifact says of its network, its export, its files and its verdicts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from smp3d_export import hardware
from smp3d_export.contract import AXES, INPUT, ShapeContract, output_axes
from smp3d_export.errors import UsageError
from smp3d_export.precision import Precision

FORMAT = "smp3d-export/1"
FILE = "manifest.json"
PREFIX = "smp3d-export."
NOT_RUN: Literal["not run"] = "not run"

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Model:
    """The network: its class and encoder, the constructor's arguments, and where its weights come from.

    A network of the user's has no encoder, and its `architecture` is its name.
    """

    architecture: str
    encoder: str
    arguments: Mapping[str, Any]
    parameters: int
    weights: str
    sha256: str
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.architecture.lower()}/{self.encoder}" if self.encoder else self.architecture

    def difference(self, other: Model) -> tuple[str, str] | None:
        """What tells this network and another one apart, weights aside: how to call each; None if they are the same.

        An argument that only one of them names is taken as equal: earlier versions left out those of which the default
        was used.
        """
        if self.name != other.name:
            return self.name, other.name
        for name in sorted({*self.arguments} & {*other.arguments} - {"encoder_weights", "encoder_name"}):
            mine, theirs = self.arguments[name], other.arguments[name]
            if mine != theirs:
                return f"{self.name} with {name} {mine}", f"{other.name} with {name} {theirs}"
        if self.parameters != other.parameters:
            return f"{self.name} with {self.parameters} parameters", f"{other.name} with {other.parameters}"
        return None

    def to_dict(self) -> dict[str, Any]:
        return {
            "architecture": self.architecture,
            "encoder": self.encoder,
            "arguments": dict(self.arguments),
            "parameters": self.parameters,
            "weights": {"source": self.weights, "sha256": self.sha256},
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, fields: Fields) -> Model:
        weights = fields.inner("weights")
        return cls(
            architecture=fields.read("architecture", str),
            encoder=fields.read("encoder", str),
            arguments=fields.read("arguments", Mapping),
            parameters=fields.read("parameters", int),
            weights=weights.read("source", str),
            sha256=weights.read("sha256", str),
            notes=tuple(fields.read("notes", Sequence, ())),
        )


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that an artifact says of itself.

    Attributes:
        model: the network.
        contract: the shapes it takes.
        outputs: the names of its outputs and their numbers of axes.
        target, precision, device: what it was exported to, and the device that it was captured and measured on.
        label_threshold: above which a voxel of a one-class mask is labelled.
        gflop: work of the network as it was captured, at the optimum shape, in 10⁹ operations.
        versions: of Python and the packages.
        made_on: the machine that the artifact was made on, as a manifest that was read has it.
        files: size and SHA-256 of every file but the manifest; empty until the artifact is complete.
        run: `here`, or why the artifact was not run.
        parity, throughput: the verdicts as JSON has them.
        facts: what the exporter adds: opset, memory format, layers kept in fp32, and so on.
    """

    model: Model
    contract: ShapeContract
    outputs: Mapping[str, int]
    target: str = ""
    precision: Precision = Precision.FP32
    device: str = "cpu"
    label_threshold: float = 0.0
    gflop: float | None = None
    versions: Mapping[str, str] = field(default_factory=hardware.versions)
    made_on: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    run: str = NOT_RUN
    parity: Mapping[str, Any] | Literal["not run"] = NOT_RUN
    throughput: Mapping[str, Any] | Literal["not run"] = NOT_RUN
    facts: Mapping[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """What is known before the artifact has been run. An ONNX file carries it too."""
        return {
            "model": self.model.to_dict(),
            "contract": self.contract.to_dict(),
            "inputs": [{"name": INPUT, "axes": list(AXES), "type": "float32"}],
            "outputs": [{"name": name, "axes": list(output_axes(axes))} for name, axes in self.outputs.items()],
            "gflop": self.gflop,
            "label_threshold": self.label_threshold,
            "device": self.device,
            "versions": dict(self.versions),
            "target": self.target,
            "precision": str(self.precision),
            **self.facts,
        }

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "format": FORMAT,
            **self.describe(),
            "hardware": hardware.describe(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "files": dict(self.files),
            "run": self.run,
            "parity": self.parity,
            "throughput": self.throughput,
        }

    def embedded(self) -> dict[str, str]:
        """What is known before the artifact has been run, as files carry it: JSON under names of ours."""
        return {f"{PREFIX}{name}": json.dumps(value, ensure_ascii=False) for name, value in self.describe().items()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], where: str) -> Manifest:
        """The manifest in a mapping; `where` is what messages call it.

        Raises:
            UsageError: a key is missing, or its value is of another kind.
        """
        fields = Fields(content, where)
        return cls(
            model=Model.from_dict(fields.inner("model")),
            contract=fields.made("contract", ShapeContract.from_dict),
            outputs=fields.made("outputs", checked_outputs),
            target=fields.read("target", str, ""),
            precision=fields.made("precision", Precision, Precision.FP32),
            device=fields.read("device", str, "cpu"),
            label_threshold=fields.read("label_threshold", float, 0.0),
            gflop=fields.read("gflop", float, None),
            versions=fields.read("versions", Mapping, {}),
            made_on=fields.read("hardware", Mapping, {}),
            files=fields.made("files", checked_files, {}),
            run=fields.read("run", str, NOT_RUN),
            parity=fields.read("parity", Mapping, NOT_RUN),
            throughput=fields.read("throughput", Mapping, NOT_RUN),
            facts={name: value for name, value in content.items() if name not in OWN},
        )

    def fact(self, name: str, kind: type[Value], default: Any = ...) -> Value:
        """A fact that the exporter wrote.

        Raises:
            UsageError: it is missing, or of another kind.
        """
        return Fields(self.facts, f"the {FILE} of this {self.target} artifact").read(name, kind, default)

    @property
    def name(self) -> str:
        return self.model.name


def checked_outputs(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The names of outputs and their numbers of axes.

    Raises:
        KeyError, TypeError, ValueError: there are none, or one has no name or no axes.
    """
    outputs = {row["name"]: len(row["axes"]) for row in rows}
    if not outputs or not all(isinstance(name, str) and name for name in outputs):
        raise ValueError("an output has a name")
    if not all(axes > 0 for axes in outputs.values()):
        raise ValueError("an output has axes")
    return outputs


def checked_files(files: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
    """The files that a manifest lists.

    Raises:
        AttributeError, KeyError, TypeError: they are not listed with size and hash.
    """
    if not all(isinstance(found["bytes"], int) and isinstance(found["sha256"], str) for found in files.values()):
        raise TypeError("a size is a number, and a hash a text")
    return files


OWN = frozenset(
    (
        *("format", "model", "contract", "inputs", "outputs", "gflop", "label_threshold", "device", "versions"),
        *("target", "precision", "hardware", "created", "files", "run", "parity", "throughput"),
    )
)
"""The keys that are not facts of an exporter."""


@dataclass(frozen=True)
class Fields:
    """A mapping that was read from a file, whose every value may be missing or wrong."""

    content: Mapping[str, Any]
    where: str

    def read(self, name: str, kind: type[Value], default: Any = ...) -> Value:
        """The value of a key, or the default, if there is one, for a key that is missing.

        Raises:
            UsageError: the key is missing, or its value is of another kind.
        """
        value = self.content.get(name, default)
        if value is ...:
            raise UsageError(f"{self.where} is damaged: it lacks {name!r}")
        kinds = (int, float) if kind is float else (kind,)
        wrong = not isinstance(value, kinds) or (kind is not bool and isinstance(value, bool))
        wrong |= kind is Sequence and isinstance(value, str)
        if wrong and value != default:
            raise UsageError(f"{self.where} is damaged: {name!r} is {json.dumps(value, default=str)[:60]}")
        return cast("Value", value)

    def inner(self, name: str) -> Fields:
        return Fields(self.read(name, Mapping), self.where)

    def made(self, name: str, make: Any, default: Any = ...) -> Any:
        """What a function makes of the value of a key.

        Raises:
            UsageError: the key is missing, or the function cannot use its value.
        """
        value = self.content.get(name, default)
        if value is ...:
            raise UsageError(f"{self.where} is damaged: it lacks {name!r}")
        try:
            return make(value)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            raise UsageError(f"{self.where} is damaged: {name!r} is {json.dumps(value, default=str)[:60]}") from None


def write(folder: Path, manifest: Manifest) -> None:
    text = json.dumps(manifest.to_dict(), indent=2, ensure_ascii=False)
    (folder / FILE).write_text(text + "\n", "utf-8")


def read(folder: Path) -> Manifest:
    """The manifest of an artifact.

    Raises:
        UsageError: there is none, it is damaged, or a later version of this tool wrote it.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError:
        raise UsageError(f"{str(folder)!r} is not an artifact: it has no {FILE}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{str(path)!r} is not valid JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UsageError(f"{str(path)!r} does not have the format {FORMAT!r}")
    return Manifest.from_dict(content, repr(str(path)))


def content_of(folder: Path) -> Mapping[str, Any]:
    """What a manifest of ours holds, of whatever version; nothing if there is none."""
    try:
        content = json.loads((folder / FILE).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    ours = isinstance(content, dict) and str(content.get("format")).startswith("smp3d-export/")
    return content if ours else {}


def is_artifact(folder: Path) -> bool:
    """Whether a folder has a manifest of ours, of whatever version."""
    return bool(content_of(folder))


def target_of(folder: Path) -> str | None:
    """The target of an artifact, as far as its manifest can be read."""
    target = content_of(folder).get("target")
    return target if isinstance(target, str) else None

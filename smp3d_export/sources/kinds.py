"""The text after `from` -> the kind of source that it names. A new kind is a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from smp3d_export.errors import UsageError
from smp3d_export.sources.factory import Factory, is_factory
from smp3d_export.sources.onnx import OnnxSource
from smp3d_export.sources.request import Source
from smp3d_export.sources.saved import SavedModel


def source_from(
    text: str,
    *,
    arguments: Mapping[str, Any] | None = None,
    checkpoint: Path | None = None,
    weights_key: str | None = None,
    keep_outputs: tuple[str, ...] = (),
    name: str | None = None,
    revision: str | None = None,
    seed: int = 0,
    spelled: Callable[[str], str] = str,
) -> Source:
    """The source that a text names: code of the user's, an ONNX file, or a saved model.

    Args:
        text: `package.module:factory`, `file.py:factory`, a `.onnx` file, a folder, or a repository on the hub.
        arguments, checkpoint, weights_key, keep_outputs, name: for code of the user's.
        revision: for a repository on the hub.
        seed: for random weights and inputs.
        spelled: how messages call these arguments.

    Raises:
        UsageError: an option does not go with this kind of source.
    """
    own = {
        "factory_arg": arguments,
        "checkpoint": checkpoint,
        "weights_key": weights_key,
        "keep_output": keep_outputs or None,
        "name": name,
    }

    def refuse(source: str, **given: Any) -> None:
        for argument, value in given.items():
            if value is not None:
                raise UsageError(f"{spelled(argument)} does not go with {source}: leave it out")

    if is_factory(text):
        refuse("code of your own", revision=revision)
        return Factory(
            target=text,
            arguments=arguments or {},
            checkpoint=checkpoint,
            weights_key=weights_key,
            keep_outputs=keep_outputs,
            name=name,
            seed=seed,
        )
    if text.endswith(".py"):
        raise UsageError(f"{text!r} is a file of code: name the function or class in it, such as {text}:build")
    if text.lower().endswith(".onnx"):
        refuse("an ONNX file", **own, revision=revision)
        return OnnxSource(path=Path(text), seed=seed)
    refuse("a folder or a file", **own)
    return SavedModel(source=text, revision=revision, seed=seed)

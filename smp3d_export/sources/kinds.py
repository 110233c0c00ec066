"""The text after `from` -> the kind of source that it names. A new kind is a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from smp3d_export.errors import UsageError
from smp3d_export.sources.bundle import Bundle, is_bundle
from smp3d_export.sources.factory import Factory, is_factory
from smp3d_export.sources.nnunet import FINAL, Results, is_results
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
    folds: tuple[str, ...] | None = None,
    configuration: str | None = None,
    checkpoint_name: str | None = None,
    revision: str | None = None,
    seed: int = 0,
    spelled: Callable[[str], str] = str,
) -> Source:
    """The source that a text names: code of the user's, ONNX, results of nnU-Net, a MONAI bundle, or a saved model.

    Args:
        text: `package.module:factory`, `file.py:factory`, a `.onnx` file, a folder, a zip file, or a repository on the
            hub.
        arguments: for code of the user's.
        checkpoint, weights_key: for code of the user's and bundles.
        keep_outputs, name: for a network that this package does not define.
        folds, configuration, checkpoint_name: for results of nnU-Net.
        revision: for a repository on the hub.
        seed: for random weights and inputs.
        spelled: how messages call these arguments.

    Raises:
        UsageError: an option does not go with this kind of source.
    """
    code = {"factory_arg": arguments, "checkpoint": checkpoint, "weights_key": weights_key}
    foreign = {"keep_output": keep_outputs or None, "name": name}
    nnunet = {"fold": folds, "configuration": configuration, "checkpoint_name": checkpoint_name}

    def refuse(source: str, **given: Any) -> None:
        for argument, value in given.items():
            if value is not None:
                raise UsageError(f"{spelled(argument)} does not go with {source}: leave it out")

    if is_factory(text):
        refuse("code of your own", **nnunet, revision=revision)
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
        refuse("an ONNX file", **code, **foreign, **nnunet, revision=revision)
        return OnnxSource(path=Path(text), seed=seed)
    if is_results(Path(text)):
        refuse("results of nnU-Net", **code, revision=revision)
        return Results(
            path=Path(text),
            folds=folds,
            configuration=configuration,
            checkpoint_name=checkpoint_name or FINAL,
            keep_outputs=keep_outputs,
            name=name,
            seed=seed,
        )
    if is_bundle(Path(text)):
        refuse("a MONAI bundle", factory_arg=arguments, **nnunet, revision=revision)
        return Bundle(
            path=Path(text),
            checkpoint=checkpoint,
            weights_key=weights_key,
            keep_outputs=keep_outputs,
            name=name,
            seed=seed,
        )
    refuse("a folder or a file", **code, **foreign, **nnunet)
    return SavedModel(source=text, revision=revision, seed=seed)

"""A manifest of which any key is missing or wrong: one line that says so, or an artifact that runs."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from earlier import EARLIER

from smp3d_export import runtime
from smp3d_export.errors import ParityError, Smp3dExportError, TargetUnavailableError, UsageError
from smp3d_export.validators.bench import bench
from smp3d_export.validators.verify import verify

MISSING = object()
WRONG = (MISSING, None, True, -1, 0, 2**70, 0.5, float("nan"), "", "x", "../x", [], [[]], [1] * 5, {}, {"a": 1})
"""What may stand in a manifest in place of what should."""

Keys = tuple[str | int, ...]


def keys(value: Any, *above: str | int) -> Iterator[Keys]:
    """The way to every value in JSON."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield (*above, key)
        yield from keys(inner, *above, key)


def changed(content: Any, at: Keys, value: Any) -> Any:
    """JSON with another value, or without one."""
    content = copy.deepcopy(content)
    *above, last = at
    inner = content
    for key in above:
        inner = inner[key]
    if value is MISSING:
        del inner[last]
    else:
        inner[last] = value
    return content


# What nothing reads below its top: the verdicts of the past, and what the exporter did.
UNREAD = ("hardware", "versions", "parity", "throughput", "inputs", "optimisations", "optimise")
# What runners differ in. Each takes a while to load, so that they are tried with nothing else.
OWN = ("outputs", "device", "precision", "arithmetic", "memory_format")


def damaged(target: str) -> Iterator[tuple[str, Any]]:
    """Damaged manifests, each with what was done to it: for ONNX, which loads fast, all of them."""
    content = json.loads((EARLIER / target / "manifest.json").read_text())
    for at in keys(content):
        tried = (len(at) == 1 or at[0] not in UNREAD) if target == "onnx" else at[0] in OWN
        for value in WRONG if tried else ():
            what = "missing" if value is MISSING else json.dumps(value)
            yield f"{'.'.join(map(str, at))} is {what}", changed(content, at, value)
    if target == "onnx":
        yield from ((f"the whole is {json.dumps(value)}", value) for value in WRONG[1:])


def error_of_verify(artifact: Path) -> Smp3dExportError | None:
    try:
        return verify(artifact).verdicts[0].error
    except UsageError as error:  # it is not an artifact any more
        return error


@pytest.mark.parametrize("target", ["onnx", "openvino", "torchscript"])
def test_it_is_refused_in_a_line_or_the_artifact_runs(target: str, tmp_path: Path) -> None:
    if target == "openvino":
        pytest.importorskip("openvino")
    artifact = Path(shutil.copytree(EARLIER / target, tmp_path / "net"))
    image = np.load(artifact / "golden.npz")["image"]
    bad, ran, refused = [], 0, 0
    for what, content in damaged(target):
        (artifact / "manifest.json").write_text(json.dumps(content))
        error = error_of_verify(artifact)
        if error is None:
            ran += 1
            continue
        if not isinstance(error, UsageError | TargetUnavailableError | ParityError) or "\n" in str(error):
            bad.append(f"verify: {what}: {error}")
        try:
            runtime.load(artifact)(image)
        except (UsageError, TargetUnavailableError):
            refused += 1
        except Exception as failure:  # noqa: BLE001  which is what is looked for
            bad.append(f"load: {what}: {type(failure).__name__}: {failure}")
    assert bad == []
    assert ran > 10
    assert refused > 10


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (("model",), MISSING),
        (("model", "architecture"), "x"),
        (("model", "architecture"), 3),
        (("model", "encoder"), "x"),
        (("model", "arguments"), []),
        (("model", "arguments"), {"nonsense": 1}),
        (("model", "arguments", "classes"), "three"),
        (("model", "arguments", "classes"), 0),
        (("model", "arguments", "decoder_channels"), [8]),
        (("model", "arguments", "decoder_channels"), 8),
        (("model", "arguments", "encoder_depth"), 99),
        (("model", "arguments", "strides"), [[2, 2]]),
        (("model", "arguments", "activation"), "x"),
        (("model", "arguments", "aux_params"), {"a": 1}),
        (("contract", 2, "min"), 3),
        (("contract", 1, "opt"), 2),
        (("gflop",), "x"),
        (("precision",), "fp8"),
        (("target",), "x"),
    ],
)
def test_bench_refuses_it_in_a_line(at: Keys, value: Any, tmp_path: Path) -> None:
    artifact = Path(shutil.copytree(EARLIER / "onnx", tmp_path / "net"))
    content = json.loads((artifact / "manifest.json").read_text())
    (artifact / "manifest.json").write_text(json.dumps(changed(content, at, value)))
    with pytest.raises(UsageError) as error:
        bench([artifact])
    assert "\n" not in str(error.value)

"""What several tests share: the command line, a small exported network, and a tiny one to export."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_encoder
from small import SMALL
from typer.testing import CliRunner, Result

from smp3d_export.cli.main import app


def pytest_configure(config: pytest.Config) -> None:
    """Give each of several test processes a core of its own: the networks' threads would wait for each other."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw")
    if worker != "gw" and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.fixture(scope="session", autouse=True)
def table_of_operators() -> Iterator[None]:
    """PyTorch's exporter lists all its operators anew for every export, in almost a second; here it does so once."""
    from torch.onnx._internal.exporter import _registration

    with pytest.MonkeyPatch.context() as patch:
        registry = _registration.ONNXRegistry
        patch.setattr(registry, "from_torchlib", staticmethod(functools.cache(registry.from_torchlib)))
        yield


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs the command line in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    return lambda *args: runner.invoke(app, [str(arg) for arg in args])


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """The words of a command that exports a tiny network, whose encoder is in the registry during the test."""
    tiny_encoder.register(monkeypatch)
    return tiny_encoder.TINY


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of the small network, made once by the command line."""
    folder = tmp_path_factory.mktemp("exported") / "unet-resnet18"
    result = CliRunner().invoke(app, [*SMALL, "--aux-params", "classes=2", "--classes", "3", "-o", str(folder)])
    assert result.exit_code == 0, result.output
    return folder

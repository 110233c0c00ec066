"""What several tests share: the command line, and a small exported network."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from small import SMALL
from typer.testing import CliRunner, Result

from smp3d_export.cli.main import app


def pytest_configure(config: pytest.Config) -> None:
    """Give each of several test processes a core of its own: the networks' threads would wait for each other."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw")
    if worker != "gw" and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs the command line in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    return lambda *args: runner.invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of the small network, made once by the command line."""
    folder = tmp_path_factory.mktemp("exported") / "unet-resnet18"
    result = CliRunner().invoke(app, [*SMALL, "--aux-params", "classes=2", "--classes", "3", "-o", str(folder)])
    assert result.exit_code == 0, result.output
    return folder

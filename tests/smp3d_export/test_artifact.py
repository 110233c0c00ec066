"""An artifact's folder appears whole or not at all, and never in place of what is not one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import making
import pytest

from smp3d_export.artifact.folder import remove_stale, staged
from smp3d_export.artifact.manifest import read, write
from smp3d_export.contract import ShapeContract
from smp3d_export.errors import UsageError


def fill(folder: Path, text: str = "new") -> None:
    (folder / "model.bin").write_text(text)
    write(folder, making.manifest("t", ShapeContract.of((1, 1, 8, 8, 8), multiple=(8, 8, 8))))


def test_it_appears_whole(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "er" / "net"
    with staged(place) as staging:
        fill(staging.folder("t"))
        assert not place.exists()
    assert sorted(p.name for p in place.iterdir()) == ["manifest.json", "model.bin"]
    assert [p.name for p in place.parent.iterdir()] == ["net"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_of_one_that_broke(tmp_path: Path, error) -> None:
    with pytest.raises(error), staged(tmp_path / "deep" / "net") as staging:
        fill(staging.folder("t"))
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_is_replaced_and_kept_when_its_replacement_breaks(tmp_path: Path) -> None:
    place = tmp_path / "net"
    for text in ("old", "new"):
        with staged(place) as staging:
            fill(staging.folder("t"), text)
    assert (place / "model.bin").read_text() == "new"
    with pytest.raises(RuntimeError), staged(place) as staging:
        raise RuntimeError
    assert (place / "model.bin").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["net"]


def test_several_targets_have_a_subfolder_each_and_a_failed_one_goes_beside(tmp_path: Path) -> None:
    place = tmp_path / "net"
    for _ in range(2):  # the second replaces the first
        with staged(place, several=True) as staging:
            for target in ("good", "bad", "broken"):
                fill(staging.folder(target))
            staging.set_aside("bad")
            staging.discard("broken")
    assert [p.name for p in place.iterdir()] == ["good"]
    assert [p.name for p in (tmp_path / "net.failed").iterdir()] == ["bad"]


def test_a_single_failed_one_goes_beside(tmp_path: Path) -> None:
    with staged(tmp_path / "net") as staging:
        fill(staging.folder("t"))
        staging.set_aside("t")
    assert [p.name for p in tmp_path.iterdir()] == ["net.failed"]
    assert (tmp_path / "net.failed" / "model.bin").exists()


@pytest.mark.parametrize("manifest", [None, "{", '{"format": "other/1"}', "[]"])
def test_other_folders_are_not_overwritten(tmp_path: Path, manifest: str | None) -> None:
    place = tmp_path / "net"
    place.mkdir()
    (place / "thesis.tex").write_text("years")
    if manifest is not None:
        (place / "manifest.json").write_text(manifest)
    with pytest.raises(UsageError, match="is not overwritten"), staged(place):
        pytest.fail("entered")
    assert (place / "thesis.tex").read_text() == "years"


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for place, says in (
        (file, "is a file"),
        (file / "net", "cannot be written"),
        (file / "a" / "net", "not a directory"),
    ):
        with pytest.raises(UsageError, match=says), staged(place):
            pytest.fail("entered")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_remains_of_killed_exports_are_removed_and_those_of_running_ones_are_not(tmp_path: Path) -> None:
    dead, running, other = (
        tmp_path / name for name in (".net.999999999.partial", f".net.{os.getppid()}.partial", ".no.9.partial")
    )
    for folder in (dead, running, other):
        folder.mkdir()
    remove_stale(tmp_path / "net")
    assert {p.name for p in tmp_path.iterdir()} == {running.name, other.name}


def test_manifests_of_others_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no manifest"):
        read(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UsageError, match="not valid JSON"):
        read(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "smp3d-export/99"}))
    with pytest.raises(UsageError, match="does not have the format"):
        read(tmp_path)

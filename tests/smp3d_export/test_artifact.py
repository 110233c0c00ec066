"""An artifact's folder appears whole or not at all, never in place of what is not ours, and takes nothing away."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import making
import pytest

from smp3d_export.artifact import folder, lock, place
from smp3d_export.artifact.manifest import Manifest, read, write
from smp3d_export.artifact.place import Place
from smp3d_export.artifact.staging import staged
from smp3d_export.contract import ShapeContract
from smp3d_export.errors import UsageError
from smp3d_export.precision import Precision

CONTRACT = ShapeContract.of((1, 1, 8, 8, 8), multiple=(8, 8, 8))
FILES = {"onnx": ["model.onnx"], "openvino": ["model.xml", "model.bin"], "trt": ["model.engine"]}


def fill(where: Path, target: str = "onnx", text: str = "new", **model: Any) -> Path:
    """A small artifact whose files say `text`."""
    where.mkdir(parents=True, exist_ok=True)
    for name in (*FILES[target], folder.GOLDEN):
        (where / name).write_text(text)
    manifest = making.manifest(target, CONTRACT, files=folder.describe_files(where))
    write(where, replace(manifest, model=replace(manifest.model, **model)) if model else manifest)
    return where


def export(path: Path, *targets: str, text: str = "new") -> None:
    with staging_of(path, *targets) as staging:
        for target in targets:
            fill(staging.folder(target), target, text)
            staging.publish(target)


def staging_of(path: Path, *targets: str):
    return staged(path, {target: FILES[target] for target in targets})


def tree(top: Path) -> dict[str, str]:
    """The files below a folder with their texts, links with what they name; manifests by their target."""
    found = {}
    for path in sorted(top.rglob("*")):
        name = path.relative_to(top).as_posix()
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.name == "manifest.json":
            found[name] = read(path.parent).target
        elif path.is_file():
            found[name] = path.read_text()
    return found


def artifact(text: str, target: str = "onnx", at: str = "") -> dict[str, str]:
    return {at + name: text for name in (*FILES[target], folder.GOLDEN)} | {f"{at}manifest.json": target}


def test_it_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "net"
    with staging_of(path, "onnx") as staging:
        fill(staging.folder("onnx"))
        assert not path.exists()
        assert staging.publish("onnx") == path
    assert tree(tmp_path) == artifact("new", at="deep/er/net/")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_of_one_that_broke(tmp_path: Path, error) -> None:
    with pytest.raises(error), staging_of(tmp_path / "deep" / "net", "onnx") as staging:
        fill(staging.folder("onnx"))
        raise error
    assert list(tmp_path.iterdir()) == []


def test_what_is_finished_stays_when_the_rest_breaks(tmp_path: Path) -> None:
    export(tmp_path / "net", "onnx", "openvino", text="old")
    with pytest.raises(KeyboardInterrupt), staging_of(tmp_path / "net", "onnx", "openvino") as staging:
        fill(staging.folder("onnx"))
        staging.publish("onnx")
        fill(staging.folder("openvino"), "openvino")
        raise KeyboardInterrupt
    assert tree(tmp_path) == artifact("new", at="net/onnx/") | artifact("old", "openvino", at="net/openvino/")


def test_several_targets_have_a_subfolder_each_and_a_failed_one_goes_beside(tmp_path: Path) -> None:
    path = tmp_path / "net"
    for text in ("old", "new"):
        with staging_of(path, *FILES) as staging:
            for target in FILES:
                fill(staging.folder(target), target, text)
            assert staging.publish("onnx") == path / "onnx"
            assert staging.set_aside("openvino") == tmp_path / "net.failed" / "openvino"
            staging.discard("trt")
    assert tree(tmp_path) == artifact("new", at="net/onnx/") | artifact("new", "openvino", "net.failed/openvino/")


def test_a_single_failed_one_goes_beside(tmp_path: Path) -> None:
    with staging_of(tmp_path / "net", "onnx") as staging:
        fill(staging.folder("onnx"))
        staging.set_aside("onnx")
    assert tree(tmp_path) == artifact("new", at="net.failed/")


@pytest.mark.parametrize("steps", ["one step", "two steps"])
@pytest.mark.parametrize(
    ("there", "targets", "after"),
    [
        ([], ["onnx"], artifact("new")),
        (["onnx"], ["onnx"], artifact("new")),
        (["onnx"], ["openvino"], artifact("new", "openvino")),
        ([], ["onnx", "openvino"], artifact("new", at="onnx/") | artifact("new", "openvino", "openvino/")),
        # The artifact in the folder itself is replaced by the same target's in a subfolder, and by no other's.
        (["onnx"], ["onnx", "trt"], artifact("new", at="onnx/") | artifact("new", "trt", "trt/")),
        (["onnx"], ["openvino", "trt"],
         artifact("old") | artifact("new", "openvino", "openvino/") | artifact("new", "trt", "trt/")),
        # A single target goes to its subfolder where there are such, and the others stay.
        (["onnx", "openvino"], ["onnx"], artifact("new", at="onnx/") | artifact("old", "openvino", "openvino/")),
        (["onnx", "openvino"], ["trt"],
         artifact("old", at="onnx/") | artifact("old", "openvino", "openvino/") | artifact("new", "trt", "trt/")),
        (["onnx", "openvino"], ["openvino", "trt"],
         artifact("old", at="onnx/") | artifact("new", "openvino", "openvino/") | artifact("new", "trt", "trt/")),
    ],
)  # fmt: skip
def test_only_what_is_exported_anew_is_replaced(
    tmp_path: Path, there, targets, after, steps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And files that are not part of an artifact stay, wherever they lie."""
    if steps == "two steps":
        monkeypatch.setattr(place, "exchange", lambda one, other: False)
    path = tmp_path / "net"
    homes: list[Path] = []
    if there:
        export(path, *there, text="old")
        foreign = {"notes.txt": "mine", "figures/a/loss.csv": "mine", "link": "-> notes.txt", "gone": "-> nowhere"}
        homes = [path, *(path / target for target in there if len(there) > 1)]
        for home in homes:
            (home / "figures" / "a").mkdir(parents=True)
            (home / "empty").mkdir()
            (home / "notes.txt").write_text("mine")
            (home / "figures/a/loss.csv").write_text("mine")
            (home / "link").symlink_to("notes.txt")
            (home / "gone").symlink_to("nowhere")
            at = home.relative_to(path).as_posix()
            after = after | {name if at == "." else f"{at}/{name}": text for name, text in foreign.items()}
    export(path, *targets)
    assert tree(path) == after
    assert all((home / "empty").is_dir() for home in homes)
    assert [entry.name for entry in tmp_path.iterdir()] == ["net"]


def note(path: Path, text: str = "years") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("make", "targets", "says"),
    [
        (lambda net: note(net / "thesis.tex"), ["onnx"], "net' is a folder with other things in it"),
        (lambda net: note(net / "manifest.json", "{"), ["onnx"], "is not overwritten"),
        (lambda net: note(net / "manifest.json", '{"format": "other/1"}'), ["onnx"], "is not overwritten"),
        (lambda net: note(net / "manifest.json", "[]"), ["onnx"], "is not overwritten"),
        (lambda net: note(net / "thesis.tex"), ["onnx", "trt"], "net' is a folder with other things in it"),
        (lambda net: note(net), ["onnx"], "net' is a file"),
        (lambda net: note(net.parent / "net.failed"), ["onnx"], "net.failed' is a file"),
        (lambda net: note(net.parent / "net.failed" / "a"), ["onnx"], "net.failed' is a folder with other things"),
        (lambda net: [fill(net / "onnx"), note(net / "trt")], ["onnx", "trt"], "trt' is a file"),
        (lambda net: [fill(net / "onnx"), note(net / "trt" / "a")], ["trt"], "trt' is a folder with other things"),
        (lambda net: [fill(net), note(net / "model.bin")], ["openvino"], "model.bin' is not part of the artifact"),
        # Projects side by side, which are not the targets of one.
        (lambda net: [fill(net / "a"), fill(net / "b")], ["onnx"], "net' is a folder with other things in it"),
        (lambda net: os.chdir(fill(net)), ["onnx"], "net' is the working directory"),
        (lambda net: os.chdir(fill(net / "onnx")), ["trt", "onnx"], "onnx' is the working directory"),
    ],
)  # fmt: skip
def test_what_is_in_the_way_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], object], targets, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "net")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=says), staging_of(tmp_path / "net", *targets):
        pytest.fail("entered")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for path, says in (
        (file, "is a file"),
        (file / "net", "cannot be written"),
        (file / "a" / "net", "not a directory"),
        (tmp_path / ("long" * 99), "cannot be written"),
        (Path("/"), "cannot be replaced"),
    ):
        with pytest.raises(UsageError, match=says), staging_of(path, "onnx"):
            pytest.fail("entered")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    for name in ("net", "whole/onnx"):
        link = tmp_path / name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(fill(tmp_path / "disk" / link.name, text="old"))
    export(tmp_path / "net", "onnx")
    export(tmp_path / "whole", "onnx", "trt")
    assert tree(tmp_path / "disk") == artifact("new", at="net/") | artifact("new", at="onnx/")
    assert (tmp_path / "net").is_symlink()
    assert (tmp_path / "whole" / "onnx").is_symlink()


def test_the_working_directory_can_hold_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export(Path(), "onnx", "trt")
    assert tree(Path()) == artifact("new", at="onnx/") | artifact("new", "trt", at="trt/")


def test_what_comes_in_the_way_later_takes_nothing_away(tmp_path: Path) -> None:
    path = tmp_path / "net"
    with staging_of(path, "onnx", "trt") as staging:
        for target in ("onnx", "trt"):
            fill(staging.folder(target), target)
        note(path / "onnx" / "thesis.tex")
        (tmp_path / "net.onnx").mkdir()
        with pytest.raises(UsageError, match=r"The artifact is finished: it is in '.*net\.onnx2'"):
            staging.publish("onnx")
        staging.publish("trt")
    assert tree(path) == {"onnx/thesis.tex": "years"} | artifact("new", "trt", at="trt/")
    assert tree(tmp_path / "net.onnx2") == artifact("new")


def test_a_manifest_cannot_name_files_outside_its_folder(tmp_path: Path) -> None:
    note(tmp_path / "thesis.tex")
    path = fill(tmp_path / "net")
    content = json.loads((path / "manifest.json").read_text())
    content["files"] |= {name: {} for name in ("../thesis.tex", str(tmp_path / "thesis.tex"), "", ".", "a\\b")}
    (path / "manifest.json").write_text(json.dumps(content))
    assert folder.listed(path) == ["golden.npz", "model.onnx"]
    export(path, "onnx", "trt")
    assert (tmp_path / "thesis.tex").read_text() == "years"


def dies_at(step: int, action: Callable[[], None]) -> bool:
    """Do something in another process, which dies at a file operation by its number; whether it came so far."""
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9)
        return code == 9
    left = iter(range(step))

    def dying(function: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **kwargs: object) -> object:
            if next(left, None) is None:
                os._exit(9)
            return function(*args, **kwargs)

        return run

    try:
        for name in ("rename", "mkdir", "rmdir", "unlink", "link", "symlink"):
            setattr(os, name, dying(getattr(os, name)))
        place.exchange = dying(place.exchange)
        action()
        os._exit(0)
    except BaseException:  # noqa: BLE001  nothing of pytest may run twice
        traceback.print_exc()
    os._exit(1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is killed in the middle of its work")
@pytest.mark.parametrize("steps", ["one step", "two steps"])
def test_killed_at_any_time_it_leaves_the_old_or_the_new(
    tmp_path: Path, steps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if steps == "two steps":
        monkeypatch.setattr(place, "exchange", lambda one, other: False)
    elif not place.exchange(fill(tmp_path / "a"), fill(tmp_path / "b")):
        pytest.skip("this file system cannot exchange two names")
    states = {text: artifact(text) | {"figures/notes.txt": "years"} for text in ("old", "new")}
    found = []
    while True:
        home = tmp_path / str(len(found))
        path = fill(home / "net", text="old")
        note(path / "figures" / "notes.txt")
        alive = not dies_at(len(found), lambda path=path: export(path, "onnx"))
        found.append(next((text for text, files in states.items() if files == tree(path)), "nothing"))
        if alive:
            break
        export(path, "onnx", text="newer")
        assert tree(home) == {f"net/{name}": text.replace("old", "newer") for name, text in states["old"].items()}
    assert len(found) > 10
    assert found[0] == "old"
    assert found[-1] == "new"
    # In two steps the name is free in between; the next export puts the old folder back before it does anything.
    assert found.count("nothing") == (steps == "two steps")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is killed in the middle of its work")
def test_a_swap_that_was_cut_off_is_finished_by_the_next_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "exchange", lambda one, other: False)
    old = fill(tmp_path / "net" / "onnx", text="old")
    old.rename(place.beside(old))
    with pytest.raises(KeyboardInterrupt), staging_of(tmp_path / "net", "trt"):
        raise KeyboardInterrupt
    assert tree(tmp_path) == artifact("old", at="net/onnx/")


def test_an_export_to_the_same_place_is_refused_while_one_is_running(tmp_path: Path) -> None:
    path = tmp_path / "net"
    code = (
        "import sys; from pathlib import Path; from smp3d_export.artifact.staging import staged\n"
        "with staged(Path(sys.argv[1]), {'onnx': []}) as staging:\n"
        "    staging.folder('onnx'); print('ready', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-P", "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        for targets in (["onnx"], ["onnx", "trt"]):
            with pytest.raises(UsageError, match=r"another export to '.*net' is running"), staging_of(path, *targets):
                pytest.fail("entered")
        export(tmp_path / "other", "onnx")
        process.kill()
    # Its folder is still there, and its number may be anybody's by now.
    assert [entry.name for entry in tmp_path.iterdir() if entry.name != "other"] == [".net.smp3d-export"]
    export(path, "onnx")
    assert tree(tmp_path) == artifact("new", at="net/") | artifact("new", at="other/")


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot tell who is alive: a folder that is there is somebody's."""

    def take(number: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(lock, "take", take)
    export(tmp_path / "net", "onnx")
    assert tree(tmp_path) == artifact("new", at="net/")
    (tmp_path / ".net.smp3d-export").mkdir()
    with (
        pytest.raises(UsageError, match=r"is running, or was killed.* remove '.*\.net\.smp3d-export'"),
        staging_of(tmp_path / "net", "onnx"),
    ):
        pytest.fail("entered")


def remarks(there: Place, new: Manifest, *targets: str, force: bool = False) -> list[str]:
    return [*there.check_network(new.model, new.contract, new.precision, targets, force=force)]


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({}, None),
        ({"sha256": "others"}, None),
        ({"arguments": {"classes": 3}}, None),  # an earlier version left out defaults, so this may be the same
        ({"arguments": {"strides": [[2, 2, 1]], "encoder_weights": "imagenet"}}, None),
        ({"arguments": {"strides": [[2, 2, 2]]}}, r"with strides \[\[2, 2, 2\]\], and this is .* \[\[2, 2, 1\]\]"),
        ({"architecture": "FPN"}, "it is an artifact of fpn/resnet18, and this is unet/resnet18"),
        ({"encoder": "resnet34"}, "it is an artifact of unet/resnet34, and this is unet/resnet18"),
        ({"parameters": 7}, "unet/resnet18 with 7 parameters"),
    ],
)
def test_another_network_is_replaced_by_force_alone(tmp_path: Path, model: dict[str, Any], says: str | None) -> None:
    new = making.manifest("onnx", CONTRACT)
    new = replace(new, model=replace(new.model, arguments={"strides": [[2, 2, 1]]}))
    fill(tmp_path / "alone", **model)
    fill(tmp_path / "several" / "openvino", "openvino", **model)
    for path in (tmp_path / "alone", tmp_path / "several"):
        there = Place.of(path, several=False)
        if says is None:
            remarks(there, new, "onnx")
        else:
            with pytest.raises(UsageError, match=f"{says}.*with --force"):
                remarks(there, new, "onnx")
        remarks(there, new, "onnx", force=True)


def test_what_is_replaced_is_said_if_it_differs(tmp_path: Path) -> None:
    there = Place.of(fill(tmp_path / "net"), several=False)
    same = making.manifest("onnx", CONTRACT)
    other = replace(
        same,
        model=replace(same.model, sha256="others"),
        contract=ShapeContract.of((1, 1, 16, 8, 8), multiple=(8, 8, 8)),
        precision=Precision.FP16,
    )
    assert remarks(there, same, "onnx") == []
    assert remarks(there, other, "onnx") == [
        f"{tmp_path / 'net'} is replaced: it is in fp32, it has other weights, it has other shapes"
    ]
    assert remarks(there, same, "trt") == [f"{tmp_path / 'net'} is replaced: it is for onnx"]
    assert remarks(Place.of(tmp_path / "net", several=True), same, "trt", "openvino") == []
    assert remarks(Place.of(tmp_path / "net", several=True), other, "trt", "openvino") == [
        f"{tmp_path / 'net'} stays as it is: it has other weights"
    ]
    (tmp_path / "net" / "manifest.json").write_text('{"format": "smp3d-export/99"}')
    with pytest.raises(UsageError, match="does not have the format"):
        remarks(there, same, "onnx")
    (said,) = remarks(there, same, "onnx", force=True)
    assert "is replaced" in said


def test_manifests_of_others_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no manifest"):
        read(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UsageError, match="not valid JSON"):
        read(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "smp3d-export/99"}))
    with pytest.raises(UsageError, match="does not have the format"):
        read(tmp_path)

"""`bench`: artifacts side by side. Nothing here depends on how long anything takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from earlier import EARLIER

from smp3d_export.contract import ShapeContract
from smp3d_export.validators.bench import default_shapes


def test_against_eager_at_a_shape_of_ones_own(cli, exported: Path) -> None:
    result = cli("bench", exported, "--shape", "1,1,16,16,8", "--seconds", "0", "--json")
    assert result.exit_code == 0, result.output
    measured = json.loads(result.stdout)
    eager, best, ours = measured["rows"]
    assert best["name"] == "best eager"
    assert (eager["name"], eager["ratio"], ours["name"], ours["shape"]) == (
        "eager", None, exported.name, [1, 1, 16, 16, 8],
    )  # fmt: skip
    assert ours["rounds"] == eager["rounds"] == 5
    low, high = ours["ratio"]["interval"]
    assert low <= ours["ratio"]["speedup"] <= high
    assert ours["timing"]["voxels_per_second"] == pytest.approx(16 * 16 * 8 / ours["timing"]["p50"])
    work = json.loads((exported / "manifest.json").read_text())["gflop"]
    assert ours["gflops"] == pytest.approx(work * (16 * 16 * 8) / (32 * 24 * 16) / ours["timing"]["p50"])
    assert ours["peak_memory"] is None  # it was not asked for
    assert measured["precisions"] == {exported.name: "fp32"}


def test_peak_memory_is_measured_at_each_shape_if_it_is_asked_for(cli, exported: Path) -> None:
    shutil.copytree(exported, "again")
    shapes = ("--shape", "2,1,64,48,32", "--shape", "1,1,8,8,8")
    result = cli("bench", exported, "--against", "again", *shapes, "--seconds", "0", "--memory", "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    large, small = (
        [row["peak_memory"] for row in rows if row["shape"][0] == n and row["name"] == exported.name] for n in (2, 1)
    )
    assert len(rows) == 4 and all(row["peak_memory"] > 1e7 for row in rows)
    assert large >= small
    assert {row["device_peak"] for row in rows} == {None}


def test_one_artifact_against_another_in_80_columns(cli, exported: Path) -> None:
    shutil.copytree(exported, "again")
    result = cli("bench", exported, "--against", "again", "--shape", "1,1,8,8,8", "--seconds", "0", "--memory")
    assert result.exit_code == 0, result.output
    assert "against again" in result.stdout
    assert "again: 0." in result.stdout and "GB of peak memory, alone in a process" in result.stdout
    assert "matrix product in fp32 reached" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none"], "there is no folder 'none'"),
        (["{exported}", "{earlier}/onnx"], "do not compare. --force compares them"),
        (["{exported}", "--against", "{earlier}"], "holds 3 artifacts: name one of them"),
        (["{exported}", "--against", "none"], "there is no folder 'none'"),
        (["{exported}", "--shape", "1,1,33,32,32"], "H is 33, outside the contract"),
    ],
)
def test_wrong_input_is_one_line(cli, exported: Path, arguments: list[str], says: str) -> None:
    result = cli("bench", *(text.format(exported=exported, earlier=EARLIER) for text in arguments))
    assert result.exit_code == 2
    assert says in result.stderr


def test_default_shapes_show_how_cost_grows() -> None:
    contract = ShapeContract.of((1, 1, 64, 64, 32), multiple=(32, 32, 32), max=(2, 1, 128, 96, 64))
    assert default_shapes(contract) == [(1, 1, 64, 64, 32), (1, 1, 32, 32, 32), (1, 1, 128, 96, 64)]

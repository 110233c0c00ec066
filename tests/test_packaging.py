"""The wheel holds every module of the tree, under the one import name."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAPPED = ("encoders", "architectures", "validators")


def test_the_wheel_holds_the_tree(tmp_path: Path) -> None:
    # From a copy, for setuptools leaves a build folder beside the sources.
    source = tmp_path / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    for name in tracked:
        if (
            name.split("/")[0] in ("smp3d_export", *MAPPED, "pyproject.toml", "README.md", "LICENSE")
            and (ROOT / name).exists()
        ):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, source],
        check=True,
        capture_output=True,
    )
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = {
        f"smp3d_export/{name}" if name.split("/")[0] in MAPPED else name
        for name in tracked
        if name.split("/")[0] in ("smp3d_export", *MAPPED) and (ROOT / name).exists()
    }
    assert files == expected

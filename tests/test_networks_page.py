"""What docs/networks.md says of the networks, beside the networks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from smp3d_export.architectures import ARCHITECTURES, ArchitectureSpec
from smp3d_export.cli import parsing
from smp3d_export.encoders import ENCODERS, EncoderSpec
from smp3d_export.encoders.spec import STAGES, product

PAGE = (Path(__file__).parents[1] / "docs/networks.md").read_text("utf-8")


def table(mark: str) -> list[list[str]]:
    """The cells of the table behind a mark, the rule under its head left out."""
    lines = PAGE.partition(f"<!-- {mark} -->\n")[2].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]


def verdict(architecture: ArchitectureSpec, encoder: EncoderSpec) -> str:
    if architecture.refusal(encoder):
        return "no"
    if architecture.refusal(encoder, STAGES - 1):
        return f"depth {STAGES}"
    needs = architecture.needs(encoder)
    return f"output stride {needs['encoder_output_stride']}" if needs else "yes"


def test_the_table_of_pairs_is_the_one_that_is_enforced() -> None:
    head, *rows = table("pairs")
    families = {spec.family: spec for spec in ENCODERS.values()}
    assert head == ["", *families]
    expected = [[a.name, *(verdict(a, encoder) for encoder in families.values())] for a in ARCHITECTURES.values()]
    assert rows == expected


@pytest.mark.parametrize(("strides", "multiples", "example"), table("strides")[1:])
def test_strides_have_the_multiples_that_the_page_says(strides: str, multiples: str, example: str) -> None:
    found = product(parsing.strides(re.findall(r"`(.+?)`", strides)[0]))  # pyright: ignore[reportArgumentType]
    assert ", ".join(map(str, found)) == multiples
    assert all(int(size) % k == 0 for size, k in zip(re.findall(r"\d+", example)[:3], found, strict=True))


def test_the_first_example_runs() -> None:
    code = re.findall(r"```python\n(.+?)```", PAGE, re.DOTALL)[0]
    *lines, last = code.strip().splitlines()
    expression, _, comment = last.partition("  # ")
    names: dict[str, object] = {}
    exec("\n".join(lines), names)
    assert eval(expression, names) == eval(comment.partition(": ")[0])

"""The pages of the built-in data and model say of their files what is in them."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from carft_sweep.carft_core.data.families.icon_shift import DATA, SHIFTS
from tools.builtin.icon_shift import SCHEMA
from tools.builtin.manifest import read_benchmark, split_names

DOCS = Path(__file__).parents[2] / "docs"
SPLITS = split_names(read_benchmark())


@cache
def page(name: str) -> str:
    """A page, each run of white space as one space."""
    return " ".join((DOCS / name).read_text().split())


@cache
def drawings() -> list[dict[str, Any]]:
    """Every row of the packed file, without its pixels."""
    table = pq.read_table(DATA, columns=[name for name in SCHEMA.names if name != "png"])
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def cells(name: str, first: str) -> list[str]:
    """The cells of the table's row that begins with this one."""
    lines = (DOCS / name).read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


@pytest.mark.parametrize(
    ("subset", "family"), [("report", "icon_shift"), ("development", "icon_shift_dev")]
)
def test_the_table_of_drawings_is_that_of_the_file(subset: str, family: str) -> None:
    rows = [row for row in drawings() if row["subset"] == subset]
    counts = Counter(row["split"] for row in rows)
    expected = [len({row["class"] for row in rows}), *(counts[split] for split in SPLITS)]
    assert cells("icon-shift.md", f"`{family}`") == [str(number) for number in expected]
    names = ", ".join(sorted({row["class"] for row in rows}))
    assert subset != "report" or f"The **report** classes: {names}." in page("icon-shift.md")


@pytest.mark.parametrize("split", SPLITS)
def test_the_table_of_designers_is_that_of_the_file(split: str) -> None:
    counts = Counter(row["designer"] for row in drawings() if row["split"] == split)
    first = f"{split} (solid)" if split not in SHIFTS else split
    (designers,) = cells("icon-shift.md", first)
    numbers = [int(number) for number in re.findall(r"\((\d+)\)", designers)]
    assert sum(numbers) == sum(counts.values())
    more = re.search(r"and (\d+) more", designers)
    named = len(numbers) - 1 if more else len(numbers)
    assert numbers[:named] == [count for _, count in counts.most_common(named)]
    assert named + (int(more[1]) if more else 0) == len(counts)

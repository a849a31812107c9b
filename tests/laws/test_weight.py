"""The tree weighs no more than it is meant to.

Whoever needs more raises the number in the same change, and says in the commit what it is for.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINES = {
    ("carft_core",): 16_068,
    ("sweeps",): 19_615,
    ("tracking",): 11_496,
    ("tests",): 50_000,
    ("benchmarks", "tools"): 6_611,
}
"""Of Python, blank ones too."""
WORDS, PAGES = 36_000, 36
"""Of docs/, without the decisions, the tables made from the code, and the files of examples/."""
WRITTEN = re.compile(r"(?:(?:\|.*\n)+|```\w+\n(?:(?!```).*\n)*```\n)\n<!-- end -->")


@pytest.mark.parametrize(("folders", "most"), LINES.items(), ids=map(" and ".join, LINES))
def test_code_has_no_more_lines_than_are_meant(folders: tuple[str, ...], most: int) -> None:
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    lines = sum(len(file.read_text("utf-8").splitlines()) for file in files)
    assert 0 < lines <= most


def test_the_docs_have_no_more_words_and_pages_than_are_meant() -> None:
    docs = ROOT / "docs"
    pages = [page for page in docs.rglob("*.md") if docs / "decisions" not in page.parents]
    assert 0 < len(pages) <= PAGES
    texts = [WRITTEN.sub("", page.read_text("utf-8")) for page in pages]
    assert sum(len(text.split()) for text in texts) <= WORDS

"""The tree weighs no more than it is meant to.

Whoever needs more raises the number in the same change, and says in the commit what it is for.
"""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINES = {
    ("carft_core",): 14_900,
    ("sweeps",): 19_550,
    ("tracking",): 11_470,
    ("tests",): 57_125,
    ("benchmarks", "tools"): 6_400,
}
"""Of Python, blank ones too."""
WORDS, PAGES = 36_250, 36
"""Of docs/, without the decisions."""


@pytest.mark.parametrize(("folders", "most"), LINES.items(), ids=map(" and ".join, LINES))
def test_code_has_no_more_lines_than_are_meant(folders: tuple[str, ...], most: int) -> None:
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    lines = sum(len(file.read_text("utf-8").splitlines()) for file in files)
    assert 0 < lines <= most


def test_the_docs_have_no_more_words_and_pages_than_are_meant() -> None:
    docs = ROOT / "docs"
    pages = [page for page in docs.rglob("*.md") if docs / "decisions" not in page.parents]
    assert 0 < len(pages) <= PAGES
    assert sum(len(page.read_text("utf-8").split()) for page in pages) <= WORDS

"""Write the tables of commands, keys and what is registered into the pages of docs/."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))
from docs.hooks import reference, registry  # noqa: E402 - of the clone


def with_tables(markdown: str) -> str:
    """Return a page with all its tables as they are now."""
    return registry.on_page_markdown(reference.on_page_markdown(markdown), written=True)


def main() -> None:
    """Write the tables into every page."""
    for page in (ROOT / "docs").rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        page.write_text(with_tables(text), encoding="utf-8")


if __name__ == "__main__":
    main()

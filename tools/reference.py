"""Write into the pages of docs/ the tables of commands, keys and what is registered, and the files
of examples/ that a page names: `<!-- example: examples/swa.py -->`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))
from docs.hooks import reference, registry  # noqa: E402 - of the clone

EXAMPLE = re.compile(r"(<!-- example: (\S+) -->)(?:\n\n```.*?\n```\n\n<!-- end -->)?", re.DOTALL)


def with_tables(markdown: str) -> str:
    """Return a page with all its tables and examples as they are now."""
    tables = registry.on_page_markdown(reference.on_page_markdown(markdown), written=True)
    return EXAMPLE.sub(_with_file, tables)


def _with_file(mark: re.Match[str]) -> str:
    file = ROOT / mark[2]
    language = {".py": "python", ".yaml": "yaml"}[file.suffix]
    return f"{mark[1]}\n\n```{language}\n{file.read_text()}```\n\n<!-- end -->"


def main() -> None:
    """Write the tables into every page."""
    for page in (ROOT / "docs").rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        page.write_text(with_tables(text), encoding="utf-8")


if __name__ == "__main__":
    main()

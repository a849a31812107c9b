"""Decisions and the Python reference stay out of the site's search, which is for users' pages."""

from __future__ import annotations

from typing import Any

FOLDERS = ("decisions/", "reference/")
BOOST = {"python.md": 0.2, "slurm.md": 0.7, "own-images.md": 1.5, "tracking.md": 2}
"""How much more a hit on a page counts: python.md has every docstring, and would come first."""


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """MkDocs calls this for every page; a page by itself says so in its front matter."""
    if page.file.src_uri.startswith(FOLDERS):
        page.meta["search"] = {"exclude": True}
    elif page.file.src_uri in BOOST:
        page.meta["search"] = {"boost": BOOST[page.file.src_uri]}
    return markdown

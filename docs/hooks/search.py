"""Decisions and the Python reference stay out of the site's search, which is for users' pages."""

from __future__ import annotations

from typing import Any

FOLDERS = ("decisions/", "reference/")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """MkDocs calls this for every page; a page by itself says so in its front matter."""
    if page.file.src_uri.startswith(FOLDERS):
        page.meta["search"] = {"exclude": True}
    return markdown

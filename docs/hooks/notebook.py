"""An executed notebook, put into a page where it says `<!-- notebook: example.ipynb -->`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

MARK = re.compile(r"<!-- notebook: (\S+) -->")
# Pandas' own class would keep the theme from styling its tables as all others.
PANDAS = '<table border="1" class="dataframe">'


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """MkDocs calls this for every page; a notebook's path is relative to its page.

    Raises OSError for a notebook that is not there, ValueError for one that cannot be shown.
    """
    folder = Path(page.file.abs_src_path).parent

    def shown(mark: re.Match[str]) -> str:
        return rendered(json.loads((folder / mark.group(1)).read_text(encoding="utf-8")))

    return MARK.sub(shown, markdown)


def rendered(notebook: Mapping[str, Any]) -> str:
    """Its cells with their stored outputs as Markdown, in order.

    An image has the words of its cell's metadata `alt`. Raises ValueError for an output that is an
    error, for an image without words, and for an output of no kind that a page can show.
    """
    return "\n\n".join(part for cell in notebook["cells"] for part in _cell(cell))


def _cell(cell: Mapping[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
    elif source:
        yield _fenced(source, "python")
        for output in cell["outputs"]:
            yield _output(output, cell["metadata"].get("alt", ""))


def _output(output: Mapping[str, Any], alt: str) -> str:
    if output["output_type"] == "error":
        raise ValueError(f"a cell ended with {output['ename']}: {output['evalue']}")
    if output["output_type"] == "stream":
        return _fenced("".join(output["text"]), "text")
    data = output["data"]
    if "image/png" in data:
        if not alt:
            raise ValueError("a cell that draws says in its metadata, as `alt`, what is to be seen")
        encoded = "".join(data["image/png"]).replace("\n", "")
        return f'<p><img alt="{escape(alt)}" src="data:image/png;base64,{encoded}"></p>'
    if "text/html" in data:
        # A blank line would end the block of HTML for some renderers of Markdown.
        lines = "".join(data["text/html"]).replace(PANDAS, "<table>").splitlines()
        return "\n".join(["<div>", *(line for line in lines if line.strip()), "</div>"])
    if "text/plain" in data:
        return _fenced("".join(data["text/plain"]), "text")
    raise ValueError(f"a page cannot show an output of only {', '.join(data)}")


def _fenced(text: str, language: str) -> str:
    """A block of code, in more backticks than it has in a row itself."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"

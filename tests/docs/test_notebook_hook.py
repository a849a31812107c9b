"""A stored notebook becomes part of a page: cells, outputs, and nothing that cannot be shown."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from docs.hooks.notebook import on_page_markdown, rendered

PIXEL = "iVBORw0KGgo="


def code(source: str, *outputs: dict[str, Any], **metadata: str) -> dict[str, Any]:
    return {
        "cell_type": "code",
        "metadata": metadata,
        "source": source.splitlines(keepends=True),
        "outputs": list(outputs),
    }


def result(**data: str) -> dict[str, Any]:
    kinds = {"text": "text/plain", "html": "text/html", "png": "image/png", "json": "text/x-json"}
    return {"output_type": "execute_result", "data": {kinds[k]: v for k, v in data.items()}}


def page_of(*cells: dict[str, Any]) -> str:
    return rendered({"cells": list(cells)})


def test_the_mark_gives_way_to_the_cells_of_the_file_beside_the_page(tmp_path: Path) -> None:
    words = {"cell_type": "markdown", "metadata": {}, "source": ["# A *title*\n", "\n", "words"]}
    (tmp_path / "x.ipynb").write_text(json.dumps({"cells": [words, code("1 + 1")]}))
    page = SimpleNamespace(file=SimpleNamespace(abs_src_path=str(tmp_path / "page.md")))
    shown = on_page_markdown("before\n\n<!-- notebook: x.ipynb -->\n\nafter", page=page)
    assert shown == "before\n\n# A *title*\n\nwords\n\n```python\n1 + 1\n```\n\nafter"
    with pytest.raises(FileNotFoundError):
        on_page_markdown("<!-- notebook: y.ipynb -->", page=page)


def test_of_an_output_the_richest_kind_is_shown_and_what_is_printed_stays_text() -> None:
    assert page_of(code("x", result(text="3"))).endswith("\n\n```text\n3\n```")
    shown = page_of(code("x", result(text="3", html="<b>3</b>\n\n<i>4</i>")))
    assert shown.endswith("\n\n<div>\n<b>3</b>\n<i>4</i>\n</div>")
    drawn = page_of(code("x", result(text="3", png=f"{PIXEL}\n"), alt='a "dot" & more'))
    alt = "a &quot;dot&quot; &amp; more"
    assert drawn.endswith(f'<p><img alt="{alt}" src="data:image/png;base64,{PIXEL}"></p>')
    stream = {"output_type": "stream", "name": "stdout", "text": ["a\n", "``` <b>\n"]}
    assert page_of(code("x", stream)).endswith("\n\n````text\na\n``` <b>\n````")
    frame = '<table border="1" class="dataframe">\n<tr></tr>\n</table>'
    assert "<table>\n<tr>" in page_of(code("x", result(html=frame)))  # as those of the page
    assert page_of(code("")) == ""


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"output_type": "error", "ename": "KeyError", "evalue": "'a'"}, "KeyError: 'a'"),
        (result(png=PIXEL), "as `alt`, what is to be seen"),
        (result(json="{}"), "cannot show an output of only text/x-json"),
    ],
)
def test_what_no_page_should_show_stops_the_build(output: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        page_of(code("x", output))

"""The example notebook is executed, names no machine, uses only what there is, and becomes a page
with its cells, outputs, and nothing that cannot be shown.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from nbformat import NotebookNode, validate

from carft_sweep.sweeps.api import run_sweep
from carft_sweep.sweeps.results.loading import load_comparison
from carft_sweep.sweeps.spec.spec import load_spec
from carft_sweep.tracking.comparison.compare import Comparison
from docs.hooks.notebook import on_page_markdown, rendered
from tests.docs.notebook import execute, read

PAGE = Path(__file__).parents[2] / "docs" / "notebooks.md"
FUNCTIONS: dict[str, Any] = {"run_sweep": run_sweep, "load_comparison": load_comparison}
ABSOLUTE = re.compile(r"(?<![\w<./])(/[\w.-]+){2,}|\b[A-Z]:\\")
"""A path from the root of some machine."""


@pytest.fixture(scope="module")
def stored() -> NotebookNode:
    return read()


def codes(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: NotebookNode) -> list[list[str]]:
    """Of each output of a cell what it is."""
    return [sorted(output.get("data", {output.output_type: ""})) for output in cell.outputs]


def texts(notebook: NotebookNode) -> Iterator[str]:
    """All that a reader can read: sources, and outputs but for pictures."""
    for cell in notebook.cells:
        yield cell.source
        for output in cell.get("outputs", ()):
            yield output.get("text", "")
            yield from (
                text for kind, text in output.get("data", {}).items() if "image" not in kind
            )


def sources() -> list[str]:
    """The code of the notebook and of the page that explains it."""
    shown = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return ["\n".join(cell.source for cell in codes(read())), *shown]


def test_every_cell_was_executed_in_order_and_none_failed_or_warned(stored: NotebookNode) -> None:
    validate(stored)
    assert [cell.execution_count for cell in codes(stored)] == [*range(1, len(codes(stored)) + 1)]
    assert all(cell.outputs for cell in codes(stored))
    kinds_of_output = {output.output_type for cell in codes(stored) for output in cell.outputs}
    assert kinds_of_output <= {"execute_result", "display_data"}
    assert sum(["text/html", "text/plain"] in kinds(cell) for cell in codes(stored)) >= 4
    assert sum(["image/png", "text/plain"] in kinds(cell) for cell in codes(stored)) == 1


def test_it_names_no_machine_and_no_time_and_shows_the_verdict_of_its_sweep(
    stored: NotebookNode,
) -> None:
    paths = [hit.group() for text in texts(stored) for hit in ABSOLUTE.finditer(text)]
    assert paths == []
    assert all("execution" not in cell.metadata for cell in stored.cells)
    assert stored.metadata.language_info == {"name": "python"}
    first = codes(stored)[0].outputs[0].data
    assert "<Comparison of 'kl_weight_small'" in first["text/plain"]
    assert "UNDECIDED: " in first["text/html"]


def test_its_sweep_is_a_valid_one(stored: NotebookNode, tmp_path: Path) -> None:
    (sweep,) = (
        ast.literal_eval(node.value)
        for node in ast.parse(codes(stored)[0].source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SWEEP"
    )
    file = tmp_path / "shown.yaml"
    file.write_text(yaml.safe_dump(sweep, sort_keys=False))
    assert load_spec(file).name == "kl_weight_small"


@pytest.mark.parametrize("source", sources())
def test_what_is_imported_called_and_asked_is_there(source: str) -> None:
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] == "carft_sweep":
                imported = importlib.import_module(module)
                assert all(hasattr(imported, alias.name) for alias in node.names), module
            case ast.Call(func=ast.Name(id=name)) if name in FUNCTIONS:
                inspect.signature(FUNCTIONS[name]).bind(*node.args, **keywords(node))
            case ast.Call(func=ast.Attribute(value=ast.Name(id="comparison"), attr=name)):
                asked = inspect.signature(getattr(Comparison, name))
                asked.bind(None, *node.args, **keywords(node))


def keywords(call: ast.Call) -> Mapping[str, Any]:
    return {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg is not None}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_executed_anew_it_gives_outputs_of_the_same_kinds(
    stored: NotebookNode, tmp_path: Path
) -> None:
    again = execute(read(), tmp_path)
    assert [kinds(cell) for cell in codes(again)] == [kinds(cell) for cell in codes(stored)]
    assert (tmp_path / ".carft" / "sweeps" / "kl_weight_small").is_dir()
    before, now = (codes(notebook)[0].outputs[0].data["text/html"] for notebook in (stored, again))
    names = re.compile(r'scope="row"[^>]*>\s*▸?\s*([^<]+)')
    assert names.findall(now) == names.findall(before)


PIXEL = "iVBORw0KGgo="


def code(source: str, *outputs: dict[str, Any], **metadata: str) -> dict[str, Any]:
    cell = {"cell_type": "code", "metadata": metadata, "outputs": list(outputs)}
    return {**cell, "source": source.splitlines(keepends=True)}


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

"""The house rules of CONTRIBUTING.md that a program can check."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for package in ("carft_core", "sweeps", "tracking")
    for path in (ROOT / package).rglob("*.py")
)
BANNED_NAMES = re.compile(
    r"(utils?|helpers?|common|misc|manager)\.py$|_(utils?|helpers?|manager)\.py$"
)
LONGEST_FILE = 350
LONGEST_FUNCTION = 40

each_source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))


@each_source
def test_a_module_begins_with_one_claim(path: Path) -> None:
    told = ast.get_docstring(ast.parse(path.read_text()))
    assert told
    first = told.split("\n\n")[0]
    assert "\n" not in first
    assert first.endswith((".", "?"))


@each_source
def test_a_file_is_one_thing(path: Path) -> None:
    assert not BANNED_NAMES.search(path.name)
    assert len(path.read_text().splitlines()) <= LONGEST_FILE


@each_source
def test_a_function_fits_on_a_screen(path: Path) -> None:
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lengths = {function.name: body_lines(function) for function in functions}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FUNCTION} == {}


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the first statement behind the docstring to the last."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


@each_source
def test_nothing_is_left_for_later(path: Path) -> None:
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", path.read_text())


@each_source
def test_who_swallows_everything_says_why(path: Path) -> None:
    lines = path.read_text().splitlines()
    silent = [
        handler.lineno
        for handler in ast.walk(ast.parse(path.read_text()))
        if isinstance(handler, ast.ExceptHandler)
        and (handler.type is None or ast.unparse(handler.type) in {"Exception", "BaseException"})
        and not any(isinstance(node, ast.Raise) for node in ast.walk(handler))
        and not any("#" in line for line in lines[handler.lineno - 1 : handler.end_lineno])
    ]
    assert silent == []


@pytest.mark.parametrize("folder", ["algorithms", "merges"])
def test_files_of_a_registry_know_only_their_base(folder: str) -> None:
    package = f"carft_core.{folder}"
    for path in sorted((ROOT / "carft_core" / folder).glob("*.py")):
        if path.stem == "__init__":
            continue
        imported = {
            name
            for node in ast.walk(ast.parse(path.read_text()))
            for name in imports(node)
            if name.startswith(package)
        }
        assert imported <= {f"{package}.base"}, path.name


def imports(node: ast.AST) -> list[str]:
    """The modules that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module]
    return []

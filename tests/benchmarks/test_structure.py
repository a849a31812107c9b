"""Circles are found wherever imports stand, and walks are in the order of the data."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.structure import circles, imports_of

ROOT = Path(__file__).parents[2]


def test_modules_that_reach_each_other_are_a_circle() -> None:
    imports = {"a": ["b"], "b": ["c"], "c": ["a", "d"], "d": [], "e": ["f"], "f": ["e"], "g": ["a"]}
    assert circles(imports) == [["a", "b", "c"], ["e", "f"]]


@pytest.mark.parametrize(
    ("text", "imported"),
    [
        ("import p.b", {"p.b"}),
        ("from p import b, name", {"p", "p.b"}),
        ("from p.b import name", {"p.b"}),
        ("from .b import name", {"p.b"}),
        ("from . import b", {"p.b"}),
        ("def late():\n    import p.b", {"p.b"}),
        ("if TYPE_CHECKING:\n    from p.b import name", {"p.b"}),
        ("import json\nfrom p.a import itself", set()),
    ],
)
def test_every_import_counts(text: str, imported: set[str], tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text(text)
    modules = {"p": tmp_path / "__init__.py", "p.a": file, "p.b": tmp_path / "b.py"}
    assert imports_of("p.a", file, modules) == imported


@functools.cache
def walk(name: str) -> list[str]:
    """The functions' names in order, from a process of its own: an audit hook never goes."""
    command = [sys.executable, "-m", "benchmarks.structure", "walk", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [line.split()[-1] for line in done.stdout.splitlines()[:-1]]


def test_the_walk_of_an_image_goes_from_the_file_to_the_result() -> None:
    functions = walk("image")
    passed = [
        "carft_sweep.carft_core.train:train",
        "carft_sweep.carft_core.run:finish",
        "carft_sweep.carft_core.data.images:read_rgb",
        "carft_sweep.carft_core.metrics:top1",
        "carft_sweep.carft_core.evaluate:summary",
    ]
    assert [name for name in functions if name in passed] == passed


def test_the_walk_of_the_kl_weight_goes_from_the_config_to_the_loss() -> None:
    functions = walk("kl_weight")
    assert functions.index("carft_sweep.carft_core.config:trial_config") < functions.index(
        "carft_sweep.carft_core.train:Run.epochs"
    )
    assert any(
        name.startswith("carft_sweep.carft_core.algorithms.car_ft:CarFt.") for name in functions
    )
    assert not any(name.startswith("carft_sweep.carft_core.run:") for name in functions)


@pytest.mark.parametrize(("name", "most"), [("image", 15), ("kl_weight", 7)])
def test_the_walks_of_the_docs_are_short_and_go_through_the_code_as_it_is(
    name: str, most: int
) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    table = page.split(f"<!-- walk: {name} -->")[1].split("\n### ")[0]
    told = re.findall(r"^\| `([\w.]+)` \|", table, re.MULTILINE)
    assert 0 < len(told) <= most
    functions = {function.replace(":", ".") for function in walk(name)}
    assert {f"carft_sweep.carft_core.{function}" for function in told} <= functions

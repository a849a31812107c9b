"""Every command block of README and docs is run, or says why not; every call in one is right."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

import carft_sweep
from carft_sweep.carft_core.data.families.declaration import Declaration
from carft_sweep.carft_core.models.prompts import TemplateFile
from carft_sweep.sweeps.cli import main
from carft_sweep.sweeps.cli.parser import parse
from carft_sweep.sweeps.spec.document import parse as parse_yaml
from carft_sweep.sweeps.spec.normalize import IGNORED
from carft_sweep.sweeps.spec.normalize import KEYS as ALL_KEYS
from carft_sweep.sweeps.spec.spec import load_spec, recipes
from tests.docs.blocks import PAGES, ROOT, Block, blocks_of, calls, every_block
from tests.docs.tiny import tiny
from tests.services.processes import ended

KEYS = {*ALL_KEYS} - {"import"}  # a page's modules are not there
ELSEWHERE = ("docs/add-an-algorithm.md", "docs/add-a-family.md")
"""Their sweep files import a file of the page; tests/test_docs.py runs them."""
APART = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "CARFT_HOME", "CARFT_DATA")


def test_a_mark_is_directly_above_its_block_and_a_block_that_is_not_run_says_why() -> None:
    for page in PAGES:
        marks = re.findall(r"(?m)^[ \t]*<!-- (?:not run|slow|run)\b", (ROOT / page).read_text())
        assert len(marks) == sum(block.mark is not None for block in blocks_of(page)), page
    silent = [b.place for b in every_block() if b.mark == "not run" and not b.reason]
    assert silent == []


def test_every_call_of_the_program_is_one_that_it_understands(
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrong = []
    count = 0
    for block in every_block():
        for words in calls(block):
            count += 1
            try:
                arguments = parse(words)
            except SystemExit as leaving:
                if leaving.code:
                    wrong.append(f"{block.place}: {' '.join(words)}\n{capsys.readouterr().err}")
                continue
            file = getattr(arguments, "file", None)
            if file is not None and not is_there(file):
                wrong.append(f"{block.place}: there is no recipe or file {file}")
    assert wrong == []
    assert count > 50


def is_there(file: str) -> bool:
    """Whether it is a recipe, a file of this repository, or one that a reader has."""
    if Path(file).suffix:
        ours = file.startswith(("sweeps/", "benchmarks/"))
        return not ours or (ROOT / file).exists()
    return file in recipes()


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a `carft-sweep` that does as little as it can."""
    folder = tmp_path_factory.mktemp("program")
    file = folder / "carft-sweep"
    file.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.docs.tiny "$@"\n')
    file.chmod(0o755)
    return folder


def environment(program: Path, folder: Path) -> dict[str, str]:
    outer = {name: value for name, value in os.environ.items() if name not in APART}
    path = f"{program}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = {"PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    return outer | own


def failure_of(script: str, program: Path, folder: Path) -> str | None:
    """What a script says when it fails, as a reader would run it, within two minutes beside other
    tests; None when it does not."""
    try:
        environ, words = environment(program, folder), ("bash", "-euo", "pipefail", "-c", script)
        done = ended(*words, environ=environ, folder=folder, stderr=subprocess.STDOUT)
    except subprocess.TimeoutExpired as error:
        return f"takes longer than {error.timeout} s"
    return None if done.returncode == 0 else f"exit code {done.returncode}\n{done.stdout[-3000:]}"


ALONE = re.compile(r'carft-sweep ([^|&;<>()$`*#"]|"[^"$`]*")*(> [\w.]+ *)?(#.*)?')
"""A line that a shell does nothing to, but that it may write to a file what is printed."""


def failure_in_process(block: Block) -> str | None:
    """The same of a block of calls alone, in this process: a start takes longer than most do."""
    for words in calls(block):
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
            code = main(tiny(words))
        if code:
            return f"exit code {code}\n{out.getvalue()[-3000:]}"
    return None


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_clip_files: Path) -> Path:
    """A home with a sweep that has ended, for the pages' `compare`, `export` and the like."""
    home = tmp_path_factory.mktemp("finished") / ".carft"
    words = ["run", "kl_weight", "--in-process", "--set", "report={page: false, model: false}"]
    words += ["--set", f"model.name={tiny_clip_files}"]
    assert main([*tiny(words), "--home", str(home)]) == 0
    return home


@pytest.mark.timeout(900)  # with the home that is made for the first of them
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.is_shell and not b.mark for b in blocks_of(page))]
)
def test_the_commands_of_a_page_run_in_their_order(
    page: str, program: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / ".carft")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in APART:
        monkeypatch.delenv(name, raising=False)
    wrong = []
    for block in blocks_of(page):
        if block.is_shell and block.mark is None:
            lines = block.text.replace("\\\n", " ").splitlines()
            is_plain = all(ALONE.fullmatch(line) for line in lines)
            script = (block.text, program, tmp_path)
            failure = failure_in_process(block) if is_plain else failure_of(*script)
            if failure is not None:
                wrong.append(f"{block.place}: {failure}")
    assert wrong == [], "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "block",
    [b for b in every_block() if b.is_shell and b.mark == "slow"],
    ids=lambda block: block.place,
)
def test_a_block_that_takes_long_runs(
    block: Block, program: Path, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / ".carft")
    if "learning_rate" in block.text:
        assert failure_of("carft-sweep run learning_rate", program, tmp_path) is None
    assert failure_of(block.text, program, tmp_path) is None


PYTHON = [b for b in every_block() if b.language in ("python", "py")]


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.place)
def test_python_compiles_and_its_imports_are_there(block: Block) -> None:
    tree = ast.parse(block.text, block.place)
    if block.mark == "not run":
        return
    text = (ROOT / block.page).read_text()
    for module, names in imports(tree):
        if f"{module}.py" in text:
            continue  # a file of the page's
        assert find_spec(module) is not None, module
        for name in names:
            is_attribute = hasattr(importlib.import_module(module), name)
            assert is_attribute or find_spec(f"{module}.{name}") is not None, f"{module}.{name}"


def imports(tree: ast.AST) -> Iterator[tuple[str, list[str]]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, [alias.name for alias in node.names]


@pytest.mark.parametrize(
    "block", [b for b in PYTHON if b.mark == "run"], ids=lambda block: block.place
)
def test_python_that_is_marked_runs(
    block: Block, tiny_clip_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"train_fraction": 0.1, "shifts": ["pixel"]}
    small = {"model": {"name": str(tiny_clip_files)}, "data": data, "merges": []}
    config = carft_sweep.trial_config
    monkeypatch.setattr(carft_sweep, "trial_config", lambda fields: config({**small, **fields}))
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(block.text, block.place, "exec"), {})
    assert printed.getvalue()


YAML = [b for b in every_block() if b.language in ("yaml", "yml")]


def sweep_files() -> Iterator[tuple[str, dict[str, Any]]]:
    """The sweep files on the pages; one without a name is a part, laid over `kl_weight`."""
    recipe = yaml.safe_load((ROOT / "sweeps" / "kl_weight.yaml").read_text())
    for block in YAML:
        if block.page in ELSEWHERE or "birds.family.yaml" in block.text:
            continue
        shown = parse_yaml(block.text).data
        if isinstance(shown, dict) and not shown.keys() - KEYS:
            trial = {**recipe["trial"], **shown.get("trial", {})}
            whole = shown if "name" in shown else {**recipe, **shown, "trial": trial}
            yield block.place, whole


def test_every_sweep_file_that_is_shown_is_valid(tmp_path: Path) -> None:
    file = tmp_path / "shown.yaml"
    for place, shown in sweep_files():
        file.write_text(yaml.safe_dump(shown, sort_keys=False))
        assert load_spec(file).name == shown["name"], place


def test_yaml_is_a_sweep_a_family_or_templates_or_says_what_else_it_is() -> None:
    """A key that is misspelt would make a sweep file pass for something else."""
    family, templates = {*Declaration.model_fields}, {*TemplateFile.model_fields}
    unknown = []
    for block in YAML:
        shown = parse_yaml(block.text).data if block.mark is None else None
        if not isinstance(shown, dict) or shown.keys() & {"apiVersion", "services"}:
            continue  # of Kubernetes, or of compose
        if all(shown.keys() - known for known in ({*ALL_KEYS, *IGNORED}, family, templates)):
            unknown.append(f"{block.place}: {', '.join(shown)}")
    assert unknown == []


def test_the_marks_are_read_as_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.docs.blocks.ROOT", tmp_path)
    (tmp_path / "page.md").write_text(
        "<!-- not run: no cluster -->\n```sh\ncarft-sweep list \\\n  --json | cat\n```\n"
        "* item\n\n  <!-- slow -->\n  ```sh\n"
        "  A=1 carft-sweep sync && srun carft-sweep sync --home=http://x:1/y\n  ```\n"
        "<!-- slow -->\n\nwords\n```text\ncarft-sweep: no call\ncarft-sweep show x\n```\n"
    )
    first, second, third = blocks_of("page.md")
    assert (first.mark, first.reason, first.line) == ("not run", "no cluster", 2)
    assert list(calls(first)) == [["list", "--json"]]
    assert (second.mark, second.line) == ("slow", 9)
    assert list(calls(second)) == [["sync"], ["sync", "--home=http://x:1/y"]]
    assert (third.mark, list(calls(third))) == (None, [["show", "x"]])

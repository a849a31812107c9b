"""What the docs show works: their examples are run as they stand. The pages of the built-in
data and model tell what is in their files.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from carft_sweep.carft_core.algorithms import ALGORITHMS, Algorithm
from carft_sweep.carft_core.data import FAMILIES, open_data
from carft_sweep.carft_core.data.families.declaration import Declaration, Prompts, ShiftFolders
from carft_sweep.carft_core.data.families.icon_shift import DATA, SHIFTS
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.merges import MERGES
from carft_sweep.carft_core.models.prompts import template_set
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.testing import check_algorithm
from carft_sweep.sweeps.cli import main
from carft_sweep.sweeps.spec.spec import load_spec
from tests.docs.blocks import DOCS, ROOT, blocks_of
from tools.builtin.icon_shift import SCHEMA
from tools.builtin.manifest import read_benchmark, split_names
from tools.reference import with_tables


def blocks(page: str, language: str) -> list[str]:
    return [block.text for block in blocks_of(page) if block.language == language]


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registries: None) -> Iterator[Path]:
    """A folder of a user's own; what is imported from it is forgotten after the test."""
    del registries
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("lwf", "swa", "task_res", "my_family"):
        sys.modules.pop(name, None)


def module(name: str, folder: Path) -> ModuleType:
    """A module of examples/, imported from a user's own folder."""
    (file,) = (ROOT / "examples").rglob(f"{name}.py")
    shutil.copy(file, folder)
    return importlib.import_module(name)


def run_block(page: str, part: str = "") -> dict[str, Any]:
    """Execute the one of Python that has this in it; the names that it gives."""
    (source,) = (block for block in blocks(page, "python") if part in block)
    names: dict[str, Any] = {}
    exec(compile(source, page, "exec"), names)
    return names


def run_the_test(page: str) -> None:
    shown = run_block(page, "\ndef test_").items()
    (test,) = (value for name, value in shown if name.startswith("test_"))
    test()


def test_the_algorithm_of_the_page_keeps_the_contract_in_the_test_that_it_shows(
    own_folder: Path,
) -> None:
    assert module("lwf", own_folder).Lwf is ALGORITHMS["lwf"]
    run_the_test("docs/add-an-algorithm.md")


@pytest.mark.parametrize("name", ["lwf", "swa", "task_res"])
def test_each_worked_example_is_under_60_lines_and_keeps_every_law(
    name: str, own_folder: Path, teacher: Teacher
) -> None:
    source = inspect.getsource(module(name, own_folder))
    assert len(source.splitlines()) < 60
    assert source in blocks("docs/add-an-algorithm.md", "python")
    check_algorithm(ALGORITHMS[name], teacher)


def test_the_averaging_example_ends_with_the_mean_of_its_second_half(
    own_folder: Path, teacher: Teacher
) -> None:
    algorithm = module("swa", own_folder).Swa()
    model = algorithm.build(teacher)
    weight, values = model.current.head.weight, []
    with torch.no_grad():
        for step in range(4):
            weight.add_(step)
            values.append(weight.clone())
            algorithm.after_step(model, step, 4)
    averaged = algorithm.classifier(model, teacher).head.weight
    torch.testing.assert_close(averaged, (values[2] + values[3]) / 2)


def test_the_example_is_a_sweep_of_its_algorithm_on_its_images_and_refused_without(
    own_folder: Path,
) -> None:
    run_block("docs/own-images.md")
    shutil.copytree(ROOT / "examples" / "own_method", own_folder, dirs_exist_ok=True)
    spec = load_spec(own_folder / "lwf.yaml")
    configs = [spec.config_for(point) for point in spec.points()]
    assert [config.algorithm.model_dump()["weight"] for config in configs] == [0.3, 1, 3]
    assert {*open_data(configs[0].data).shifts} == {"blur", "night"}
    (own_folder / "lwf.py").unlink()
    with pytest.raises(RequestError, match=r"lwf\.py does not exist"):
        load_spec(own_folder / "lwf.yaml")


def test_the_page_lists_every_decision_that_an_algorithm_has() -> None:
    text = (DOCS / "add-an-algorithm.md").read_text()
    listed = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    names = {*vars(Algorithm), *vars(Algorithm)["__annotations__"]}
    own = {name for name in names if name[0] != "_"}
    pydantics = {"model_config", "model_fields", "model_computed_fields"}
    # `takes_steps` is no decision: it follows from `trains` and `solves`.
    assert listed == own - pydantics - {"registry", "name", "summary", "takes_steps"}


def test_the_family_of_the_page_keeps_the_contract_and_is_imported_by_its_sweep_file(
    own_folder: Path,
) -> None:
    rng = np.random.default_rng(0)
    root = own_folder / "data" / "my_family"
    root.mkdir(parents=True)
    for name in ("train", "test", "sketch"):
        pixels = rng.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
        np.savez(root / f"{name}.npz", pixels=pixels, labels=np.arange(6) % 2)
    assert module("my_family", own_folder).MY_FAMILY is FAMILIES["my_family"]
    run_the_test("docs/add-a-family.md")
    (text,) = blocks("docs/add-a-family.md", "yaml")
    file = own_folder / "on_my_family.yaml"
    file.write_text(text)
    config = load_spec(file).config_for({"algorithm.kl_weight": 0.3})
    assert (config.data.family, config.optim.batch_size) == ("my_family", 128)


def test_the_declared_family_of_the_page_is_swept_by_the_file_of_the_page(own_folder: Path) -> None:
    declared, sweep = blocks("docs/own-images.md", "yaml")
    (own_folder / "birds.family.yaml").write_text(declared)
    (own_folder / "birds.yaml").write_text(sweep)
    spec = load_spec(own_folder / "birds.yaml")
    config = spec.config_for(spec.points()[0])
    assert (config.data.family, config.data.val_fraction, config.optim.epochs) == ("birds", 0.2, 8)
    assert len(template_set(config.prompts.contexts).templates) == 3


def test_the_example_of_own_images_makes_the_folder_that_init_counts(
    own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_block("docs/own-images.md")
    assert main(["init", str(own_folder / "photos")]) == 0
    printed = capsys.readouterr().out.splitlines()
    shown = next(block for block in blocks("docs/own-images.md", "text") if "all classes" in block)
    assert [line for line in shown.splitlines() if line not in [*printed, "..."]] == []


def test_a_sweep_file_of_wandb_is_answered_as_the_page_says(own_folder: Path) -> None:
    before, answer, planned = blocks("docs/from-wandb.md", "text")
    (after,) = blocks("docs/from-wandb.md", "yaml")
    file = own_folder / "photos_search.yaml"
    file.write_text(before)
    with pytest.raises(RequestError) as mistakes:
        load_spec(Path(file.name))
    assert f"carft-sweep: {mistakes.value}" == answer.strip()
    file.write_text(after)
    spec = load_spec(Path(file.name))
    assert spec.run_cap == 12
    shown = [line[2:] for line in planned.splitlines() if line.startswith("! ")]
    assert {*shown} <= {*spec.warnings}


def test_the_page_lists_every_key_of_a_family_file() -> None:
    text = (DOCS / "own-images.md").read_text()
    keys = {*Declaration.model_fields, *ShiftFolders.model_fields, *Prompts.model_fields}
    rows = "".join(re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE))
    listed = {name.removeprefix("prompts.") for name in re.findall(r"`([a-z_.]+)`", rows)}
    assert listed >= keys - {"prompts"}


def test_the_tables_in_the_pages_are_those_of_the_code() -> None:
    """`make reference` writes them."""
    pages = {page: page.read_text() for page in DOCS.rglob("*.md")}
    assert [page for page, text in pages.items() if with_tables(text) != text] == []
    assert sum(text.count("<!-- end -->") for text in pages.values()) > 40


def test_the_readme_and_the_first_page_show_the_recipe_that_is_shipped() -> None:
    shipped = (ROOT / "sweeps" / "kl_weight.yaml").read_text()
    for page in ("README.md", "docs/start.md"):
        assert blocks(page, "yaml")[0] == shipped, page


def test_the_page_of_methods_has_a_section_for_each() -> None:
    sections = re.findall(r"^## (\w+)$", (DOCS / "methods.md").read_text(), re.MULTILINE)
    optimisers = {"sam", "spd"}  # each of a paper of its own
    assert set(sections) == {*ALGORITHMS, *MERGES} | optimisers


def test_the_architecture_names_what_there_is() -> None:
    page = (DOCS / "architecture.md").read_text()
    paths = re.findall(r"`((?:carft_core|sweeps|tracking)/[\w/.]*)`", page)
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []
    picture = (DOCS / "images" / "architecture.svg").read_text()
    rooms = {*" · ".join(re.findall(r">([\w · ]+)</text>", picture)).split(" · ")}
    for package in ("sweeps", "tracking"):
        folder = ROOT / package
        modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__"}
        packages = {path.parent.name for path in folder.glob("*/__init__.py")}
        assert modules | packages <= rooms, package


@pytest.mark.parametrize("walk", ["image", "kl_weight"])
def test_the_functions_of_a_walk_exist(walk: str) -> None:
    page = (DOCS / "architecture.md").read_text()
    table = page.split(f"<!-- walk: {walk} -->")[1].split("\n### ")[0]
    functions = re.findall(r"^\| `([\w.]+)` \|", table, re.MULTILINE)
    assert functions
    for function in functions:
        assert callable(pkgutil.resolve_name(f"carft_sweep.carft_core.{function}"))


ANSWERS = {
    "from-wandb": ["wandb", "W&B"],
    "troubleshooting": ["OOM", "CUDA out of memory", "database locked", "openai weights"],
    "commands": ["remove", "resume"],
    **{"tracking": ["delete"], "models": ["ViT-B-32"], "tables": ["LaTeX"], "server": ["docker"]},
    **{name: [name] for name in ("slurm", "kubernetes")},
    **{"notebooks": ["notebook"], "search": ["early termination"]},
}


def test_what_people_type_into_the_sites_search_is_in_a_heading_of_the_page_that_answers() -> None:
    for page, searches in ANSWERS.items():
        text = (DOCS / f"{page}.md").read_text()
        assert not re.match(r"---\nsearch:\n  exclude: true\n", text), page
        headings = " | ".join(re.findall(r"^#+ (.+)$", text, re.MULTILINE))
        assert all(words.lower() in headings.lower() for words in searches), page


SPLITS = split_names(read_benchmark())


@cache
def page_text(name: str) -> str:
    """A page, each run of white space as one space."""
    return " ".join((DOCS / name).read_text().split())


@cache
def drawings() -> list[dict[str, Any]]:
    """Every row of the packed file, without its pixels."""
    table = pq.read_table(DATA, columns=[name for name in SCHEMA.names if name != "png"])
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def cells(name: str, first: str) -> list[str]:
    """The cells of the table's row that begins with this one."""
    lines = (DOCS / name).read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


@pytest.mark.parametrize(
    ("subset", "family"), [("report", "icon_shift"), ("development", "icon_shift_dev")]
)
def test_the_table_of_drawings_is_that_of_the_file(subset: str, family: str) -> None:
    rows = [row for row in drawings() if row["subset"] == subset]
    counts = Counter(row["split"] for row in rows)
    expected = [len({row["class"] for row in rows}), *(counts[split] for split in SPLITS)]
    assert cells("icon-shift.md", f"`{family}`") == [str(number) for number in expected]
    names = ", ".join(sorted({row["class"] for row in rows}))
    assert subset != "report" or f"The **report** classes: {names}." in page_text("icon-shift.md")


@pytest.mark.parametrize("split", SPLITS)
def test_the_table_of_designers_is_that_of_the_file(split: str) -> None:
    counts = Counter(row["designer"] for row in drawings() if row["split"] == split)
    first = f"{split} (solid)" if split not in SHIFTS else split
    (designers,) = cells("icon-shift.md", first)
    numbers = [int(number) for number in re.findall(r"\((\d+)\)", designers)]
    assert sum(numbers) == sum(counts.values())
    more = re.search(r"and (\d+) more", designers)
    named = len(numbers) - 1 if more else len(numbers)
    assert numbers[:named] == [count for _, count in counts.most_common(named)]
    assert named + (int(more[1]) if more else 0) == len(counts)

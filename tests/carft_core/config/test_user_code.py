"""Which edits of a user's own files make other runs, and which do not."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from carft_sweep.carft_core.algorithms import ALGORITHMS
from carft_sweep.carft_core.config import user_code as own_code
from carft_sweep.carft_core.data import FAMILIES
from carft_sweep.carft_core.runs import identity
from carft_sweep.carft_core.runs.models import models_of
from carft_sweep.carft_core.training import setup as prepare
from tests.carft_core.refusals import refused
from tests.carft_core.trained import Config

METHOD = """
from __future__ import annotations
from carft_sweep.carft_core.algorithms.fine_tune import FineTune
import numpy as np
{more}
class Mine(FineTune):
    name = "mine"
    summary = "Mine"
"""
Write = Callable[[Mapping[str, str]], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a user's files; whatever of them is imported is forgotten after the test."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def files(contents: Mapping[str, str]) -> None:
        for name, text in contents.items():
            path = tmp_path / f"{name}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)

    yield files
    for name in set(sys.modules) - before:
        del sys.modules[name]


def imported(name: str) -> ModuleType:
    importlib.invalidate_caches()
    return importlib.import_module(name)


@pytest.mark.parametrize(
    ("edited", "counts"),
    [
        ("my_lab/methods", True),
        ("my_lab/losses", True),
        ("my_lab/unused", True),  # of its package every file counts
        ("my_base", True),  # beside it, and imported
        ("my_deep", True),  # by what is imported, in a function
        ("my_late/__init__", True),
        ("unrelated", False),
        ("carft_core/beside", False),  # the product, in a clone that the user works in
    ],
)
def test_files_of_a_package_and_its_imports_count(write: Write, edited: str, counts: bool) -> None:
    files = {
        "my_lab/__init__": "",
        "my_lab/methods": METHOD.format(more="from my_lab.losses import LOSS\nimport my_base"),
        "my_lab/losses": "LOSS = 1\n",
        "my_lab/unused": "broken (",
        "my_base": "def f():\n    import my_deep\n",
        "my_deep": "from my_late import X\n",
        "my_late/__init__": "X = 1\n",
        "unrelated": "",
        "carft_core/beside": "",
    }
    write(files)
    mine = imported("my_lab.methods").Mine
    before = own_code.own_code_digest(mine)
    assert "my_deep" not in sys.modules  # read, not imported
    write({edited: f"{files[edited]}# edited"})
    assert (own_code.own_code_digest(mine) != before) == counts
    for name in [module for module in sys.modules if module.startswith("my_")]:
        del sys.modules[name]
    assert (own_code.own_code_digest(imported("my_lab.methods").Mine) != before) == counts


@pytest.mark.usefixtures("registries")
def test_an_edit_of_an_algorithm_counts_in_another_too(write: Write, toy_config: Config) -> None:
    write({"my_inner": METHOD.format(more="")})
    ALGORITHMS.register(imported("my_inner").Mine)
    config = toy_config({"algorithm": {"name": "ema", "of": "mine"}})
    before = identity.own_code_of(config)
    assert identity.own_code_of(toy_config()) is None, "the product's is known by its revision"
    assert before == identity.own_code_of(toy_config({"algorithm": "mine"}))
    write({"my_inner": METHOD.format(more="# edited")})
    assert identity.own_code_of(config) != before


def test_what_an_installed_package_imports_is_its_own_affair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    folder = tmp_path / "site-packages"
    monkeypatch.syspath_prepend(folder)
    lab, other = "site-packages/my_installed_lab", "site-packages/my_other"
    write({lab: METHOD.format(more="import my_other"), other: ""})
    mine = imported("my_installed_lab").Mine
    before = own_code.own_code_digest(mine)
    write({other: "# edited"})
    assert own_code.own_code_digest(mine) == before
    write({lab: METHOD.format(more="import my_other  # edited")})
    assert own_code.own_code_digest(mine) != before


@pytest.mark.usefixtures("registries")
def test_an_edit_of_a_merge_measures_its_models_anew(write: Write, toy_config: Config) -> None:
    text = """
from carft_sweep.carft_core.merges import MERGES
from carft_sweep.carft_core.merges.wise_ft import WiseFt
@MERGES.register
class Mine(WiseFt):
    name = "mine"
    summary = "Mine"
"""
    merges = [{"name": name, "alphas": [0.5]} for name in ("wise_ft", "mine")]

    def digests() -> dict[str, str]:
        sys.modules.pop("my_merge", None)
        imported("my_merge")
        config = toy_config({"merges": merges})
        return {
            label: identity.evaluation_digest("a" * 64, model, config)
            for label, model in models_of(config).items()
        }

    write({"my_merge": text})
    before = digests()
    write({"my_merge": f"{text}# edited"})
    after = digests()
    assert {label for label, digest in after.items() if digest != before[label]} == {"mine@0.5"}


def test_what_no_file_defines_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = ModuleType("typed_in")
    exec("def opens(config): ...", vars(nowhere))
    monkeypatch.setitem(sys.modules, "typed_in", nowhere)
    words = r"opens is defined in no file.*put it into a module"
    refused(words, own_code.own_code_digest, nowhere.opens)


def test_an_edit_of_a_family_makes_new_views(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features and views that were kept are of the code before it."""
    write({"my_family": "def opens(config): ..."})
    family = replace(FAMILIES["icon_shift"], open=imported("my_family").opens)
    monkeypatch.setitem(FAMILIES, "mine", family)
    before = prepare.views_digest("mine", "d1")
    assert before == prepare.views_digest("mine", "d1") != "d1"
    write({"my_family": "def opens(config): return 1"})
    assert prepare.views_digest("mine", "d1") != before
    assert prepare.views_digest("icon_shift", "d1") == "d1"

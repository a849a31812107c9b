"""Which edits of a user's own files make other runs, and which do not."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from carft_core import identity, sources
from carft_core.algorithms.base import Algorithm
from carft_core.algorithms.car_ft import CarFt
from carft_core.algorithms.fine_tune import FineTune
from carft_core.config import TrialConfig
from carft_core.data.icon_shift import ICON_SHIFT
from carft_core.errors import RequestError
from carft_core.sources import sources_behind

METHOD = '''
from __future__ import annotations
from typing import ClassVar
from carft_core.algorithms import ALGORITHMS, Algorithm
from carft_core.algorithms.fine_tune import FineTune
from carft_core.data.photo_views import training_view
from carft_core.errors import RequestError
import numpy as np

{more}

class Mine(FineTune):
    """Mine."""
    name: ClassVar[str] = "mine"
    summary: ClassVar[str] = "Mine"
'''
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


def names(thing: Any) -> set[str]:
    return {f"{file.parent.name}/{file.name}" for file in sources_behind(thing)}


def imported(name: str) -> ModuleType:
    importlib.invalidate_caches()
    return importlib.import_module(name)


CORE = {"algorithms/base.py", "algorithms/fine_tune.py", "data/photo_views.py"}


def test_the_products_own_stand_on_what_they_stood_on() -> None:
    assert names(FineTune) == {"algorithms/fine_tune.py", "algorithms/base.py"}
    assert names(CarFt) == {"algorithms/car_ft.py", "algorithms/base.py", "carft_core/clip.py"}
    assert names(Algorithm) == {"algorithms/base.py"}
    files = ("base", "held_out", "icon_shift", "icon_views")
    assert names(ICON_SHIFT.open) == {f"data/{name}.py" for name in files}


def test_a_users_file_stands_on_itself_on_its_base_and_on_what_it_imports_of_the_core(
    write: Write, tmp_path: Path
) -> None:
    write({"my_methods": METHOD.format(more=""), "unrelated": "X = 1\n"})
    mine = imported("my_methods").Mine
    imported("unrelated")
    assert names(mine) == {f"{tmp_path.name}/my_methods.py", *CORE}


def test_files_beside_it_count_when_they_are_imported_a_constant_or_late_or_through_others(
    write: Write, tmp_path: Path
) -> None:
    write(
        {
            "my_methods": METHOD.format(
                more="from my_scale import SCALE\ndef f():\n    import my_late\n"
            ),
            "my_scale": "from my_deep import *\nSCALE = 1.0\n",
            "my_deep": "import my_methods\nDEPTH = 2\n",
            "my_late": "",
            "unrelated": "",
        }
    )
    mine = imported("my_methods").Mine
    own = {
        f"{tmp_path.name}/{name}.py" for name in ("my_methods", "my_scale", "my_deep", "my_late")
    }
    assert names(mine) == own | CORE
    assert "my_late" not in sys.modules


def test_of_a_package_those_files_count_that_it_draws_on(write: Write) -> None:
    write(
        {
            "my_lab/__init__": "from my_lab import other\n",
            "my_lab/methods": METHOD.format(
                more="from . import losses\nfrom .consts import SCALE\n"
            ),
            "my_lab/losses": "import my_lab.deep\n",
            "my_lab/deep": "",
            "my_lab/consts": "SCALE = 1\n",
            "my_lab/other": "",
        }
    )
    mine = imported("my_lab.methods").Mine
    own = {f"my_lab/{name}.py" for name in ("methods", "losses", "deep", "consts")}
    assert names(mine) == own | CORE


def test_what_a_package_gives_at_its_top_counts_with_all_that_it_draws_on(write: Write) -> None:
    write(
        {
            "my_lab/__init__": "from my_lab.consts import SCALE\n",
            "my_lab/methods": METHOD.format(more="from my_lab import SCALE\n"),
            "my_lab/consts": "SCALE = 1\n",
        }
    )
    mine = imported("my_lab.methods").Mine
    own = {f"my_lab/{name}.py" for name in ("__init__", "methods", "consts")}
    assert names(mine) == own | CORE


def test_a_base_class_in_another_package_of_the_users_counts(write: Write, tmp_path: Path) -> None:
    write(
        {
            "my_base": METHOD.format(more=""),
            "my_methods": "from my_base import Mine\nclass Sub(Mine):\n    name = 'sub'\n",
        }
    )
    sub = imported("my_methods").Sub
    own = {f"{tmp_path.name}/my_base.py", f"{tmp_path.name}/my_methods.py"}
    assert names(sub) == own | CORE


def test_what_is_found_does_not_depend_on_what_else_is_loaded(
    write: Write,
) -> None:
    write(
        {"my_methods": METHOD.format(more="def f():\n    import my_late\n"), "my_late": "X = 1\n"}
    )
    before = identity.source_digest(sources_behind(imported("my_methods").Mine))
    imported("my_late")
    sources._behind_a_users.cache_clear()
    assert identity.source_digest(sources_behind(sys.modules["my_methods"].Mine)) == before


def test_an_edit_of_the_users_file_changes_the_digest_and_that_of_another_does_not(
    write: Write,
) -> None:
    def digest() -> str:
        for name in ("my_methods", "my_scale", "unrelated"):
            sys.modules.pop(name, None)
        # A process reads each file once.
        sources._behind_a_users.cache_clear()
        identity._file_digest.cache_clear()
        return identity.source_digest(sources_behind(imported("my_methods").Mine))

    more = "from my_scale import SCALE\n"
    write(
        {"my_methods": METHOD.format(more=more), "my_scale": "SCALE = 1\n", "unrelated": "X = 1\n"}
    )
    before = digest()
    write({"unrelated": "X = 2\n"})
    assert digest() == before
    write({"my_scale": "SCALE = 2\n"})
    scaled = digest()
    assert scaled != before
    write({"my_methods": METHOD.format(more=f"{more}# edited")})
    assert digest() not in {before, scaled}


@pytest.mark.usefixtures("registries")
def test_an_edit_of_a_users_merge_measures_its_models_anew_and_no_others(
    write: Write, toy_config: Callable[..., TrialConfig]
) -> None:
    text = """
from carft_core.merges import MERGES
from carft_core.merges.wise_ft import WiseFt
@MERGES.register
class Mine(WiseFt):
    name = "mine"
    summary = "Mine"
"""
    merges = [{"name": name, "alphas": [0.5]} for name in ("wise_ft", "mine")]

    def digests() -> dict[str, str]:
        sys.modules.pop("my_merge", None)
        identity._file_digest.cache_clear()
        imported("my_merge")
        config = toy_config({"merges": merges})
        labels = ("wise_ft@0.5", "mine@0.5", "unmerged")
        return {label: identity.evaluation_digest("a" * 64, label, config) for label in labels}

    write({"my_merge": text})
    before = digests()
    write({"my_merge": f"{text}# edited"})
    after = digests()
    assert {label for label, digest in after.items() if digest != before[label]} == {"mine@0.5"}


def test_what_no_file_defines_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = ModuleType("typed_in")
    exec("def opens(config): ...", vars(nowhere))
    monkeypatch.setitem(sys.modules, "typed_in", nowhere)
    with pytest.raises(RequestError, match=r"opens is defined in no file.*put it into a module"):
        sources_behind(nowhere.opens)

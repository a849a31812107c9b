"""Running a sweep from Python."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from carft_sweep.carft_core.algorithms import ALGORITHMS
from carft_sweep.carft_core.algorithms.fine_tune import FineTune
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.api import SweepFailed, _loaded, run_sweep
from carft_sweep.sweeps.engines.local import InProcessEngine
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.ledger import find_ledger
from carft_sweep.sweeps.spec.user_code import register_family
from carft_sweep.tracking.errors import TrackingError
from carft_sweep.tracking.report.formats import to_json
from tests.sweeps.conftest import TOY, ToySweep
from tests.tracking.memory_store import MemoryTracker


def test_a_mapping_is_a_sweep_file_and_overrides_go_before_it(
    toy_cli: ToySweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "elsewhere"
    compared = run_sweep(TOY, home=home, overrides={"seeds": [7], "name": "mine"}, quiet=True)
    assert (compared.sweep, compared.seeds) == ("mine", (7,))
    assert find_ledger(Home(home), "mine").spec["seeds"] == [7]
    assert not toy_cli.home.sweep("mine").exists()
    assert capsys.readouterr().err == ""
    # The second call trains nothing again.
    first = run_sweep(TOY)
    capsys.readouterr()
    assert to_json(run_sweep(TOY)) == to_json(first)
    shown = capsys.readouterr().err
    assert "reused" in shown
    assert "epoch" not in shown


def test_a_text_in_a_mapping_stays_a_text() -> None:
    for text in ("1e4", "no", "2026-11-27", "~", "a: λ 😀 #"):
        assert _loaded({**TOY, "description": text}, {}, ()).description == text
        assert _loaded(TOY, {"description": text}, ()).description == text


def test_the_second_call_sees_data_that_changed_meanwhile(
    tmp_path: Path, tiny_clip_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carft_sweep.sweeps.api.open_store", lambda *_, **__: MemoryTracker())
    noise = np.random.default_rng(0)

    def add(place: str) -> None:
        file = tmp_path / "data" / f"{place}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file)

    for folder in ("train", "test", "shifts/grey"):
        for item in ("bell/0", "bell/1", "cat/0", "cat/1"):
            add(f"{folder}/{item}")
    trial = {
        "model": {"name": str(tiny_clip_files)},
        "data": {"family": "image_folder", "root": str(tmp_path / "data")},
        "prompts": {"classes": "simple", "contexts": "simple"},
        "optim": {"epochs": 1, "batch_size": 2},
        **{"algorithm": "fine_tune", "device": "cpu"},
    }
    sweep = {"name": "one", "seeds": [0], "baselines": [], "trial": trial}

    def trained() -> int:
        run_sweep(sweep, home=tmp_path / "home", in_process=True, quiet=True)
        return len(list((tmp_path / "home/runs").glob("*/run.json")))

    assert trained() == 1
    add("train/cat/2")
    assert trained() == 2


def test_a_sweep_of_which_no_run_succeeds_raises_with_the_cause(toy_cli: ToySweep) -> None:
    acts = [{"do": "raise", "error": "nan"}] * 9
    toy_cli.plan({f"{weight}/{seed}": acts for weight in (0.1, 0.3) for seed in (0, 1)})
    with pytest.raises(SweepFailed, match="nan: train/loss is nan"):
        run_sweep({**TOY, "baselines": []}, quiet=True)


@pytest.mark.usefixtures("toy_cli")
def test_an_engine_is_closed_when_the_tracker_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []

    class Closing(InProcessEngine):
        def close(self) -> None:
            closed.append("engine")

    def refuse(_: Path, **__: str) -> None:
        raise TrackingError("the database lies on a network file system")

    monkeypatch.setattr("carft_sweep.sweeps.api.make_engine", lambda *_, **__: Closing())
    monkeypatch.setattr("carft_sweep.sweeps.api.open_store", refuse)
    with pytest.raises(TrackingError):
        run_sweep(TOY, quiet=True)
    assert closed == ["engine"]


def test_a_wrong_request_says_what_is_wrong(toy_cli: ToySweep) -> None:
    wrong: list[tuple[Any, str]] = [
        ({**TOY, "metod": "grid"}, "unknown key 'metod'"),
        ({**TOY, "seed": {1, 2}}, "numbers, texts, lists and mappings"),
        ("kl_wieght", "kl_weight"),
    ]
    for sweep, message in wrong:
        with pytest.raises(RequestError, match=message):
            run_sweep(sweep)
    assert not toy_cli.home.path.exists()


OWN = """
from typing import ClassVar
from carft_sweep import ALGORITHMS, FAMILIES, MERGES, Family, FineTune, Merge

@ALGORITHMS.register
class Mine(FineTune):
    name: ClassVar[str] = "mine"
    summary: ClassVar[str] = "Mine"

@MERGES.register
class Halfway(Merge):
    name: ClassVar[str] = "halfway"
    summary: ClassVar[str] = "Halfway"
    def points(self):
        return []

def opens(config):
    raise AssertionError("it is refused before it is opened")

FAMILIES.register(Family("crows", "Crows", opens))
"""
BIRDS = "test: test\nroot: /nowhere\n"


@pytest.fixture
def own_module(
    registries: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], None]]:
    """Imports a module of this name, beside the notebook, into this process."""
    del registries
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    before = set(sys.modules)

    def imported(name: str) -> None:
        importlib.invalidate_caches()
        importlib.import_module(name)

    yield imported
    for name in set(sys.modules) - before:
        if name.startswith("my_"):
            del sys.modules[name]


VARIED = {"algorithm.name": {"values": ["fine_tune", "mine"]}}


def test_what_only_this_process_has_imported_is_refused_before_anything_runs(
    toy_cli: ToySweep, tmp_path: Path, own_module: Callable[[str], None]
) -> None:
    (tmp_path / "my_own.py").write_text(OWN)
    own_module("my_own")
    changes: list[tuple[dict[str, Any], str]] = [
        ({"trial": {"algorithm": {"name": "ema", "of": "mine"}}, "parameters": None}, "'mine'"),
        ({"parameters": VARIED, "trial": {"device": "cpu"}, "baselines": []}, "algorithm 'mine'"),
        ({"baselines": ["mine"]}, "algorithm 'mine'"),
        ({"trial": {"algorithm": "car_ft", "merges": ["halfway"]}}, "merge 'halfway'"),
        ({"trial": {"algorithm": "car_ft", "data": {"family": "crows"}}}, "family 'crows'"),
    ]
    for change, cause in changes:
        with pytest.raises(RequestError) as refused:
            run_sweep({**TOY, **change})
        for text in (cause, str(tmp_path / "my_own.py"), 'imports=["my_own.py"]'):
            assert text in str(refused.value)
    assert not toy_cli.home.path.exists()
    # What the sweep imports may bring more that lies beside it.
    (tmp_path / "my_all.py").write_text("import my_own\n")
    own_module("my_all")
    sweep = {**TOY, "baselines": ["mine"]}
    for item in ("my_own.py", "my_own", "my_all.py"):
        assert _loaded(sweep, {}, [item]).imports
    assert _loaded({**sweep, "import": ["my_all"]}, {}, ()).imports


def test_a_family_file_of_an_earlier_call_is_refused_where_the_sweep_does_not_name_it(
    tmp_path: Path, own_module: Callable[[str], None]
) -> None:
    del own_module
    file = tmp_path / "birds.yaml"
    file.write_text(BIRDS)
    register_family(file)
    trial = {"algorithm": "car_ft", "data": {"family": "birds"}}
    with pytest.raises(RequestError, match=r'family \'birds\' .*imports=\["birds.yaml"\]'):
        _loaded({**TOY, "trial": trial}, {}, ())
    assert _loaded({**TOY, "trial": trial}, {}, ["birds.yaml"]).imports
    assert _loaded({**TOY, "trial": {**trial, "data": {"family": "birds.yaml"}}}, {}, ()).imports


@pytest.mark.usefixtures("registries")
def test_a_class_of_a_notebooks_cell_is_refused_before_anything_runs(toy_cli: ToySweep) -> None:
    fields = {"name": "celled", "summary": "Typed into a cell", "__module__": "__main__"}
    ALGORITHMS.register(type("Celled", (FineTune,), fields))
    with pytest.raises(RequestError, match=r"'celled'.*no file.*imports=\[\"celled.py\"\]"):
        run_sweep({**TOY, "baselines": ["celled"]})
    assert not toy_cli.home.path.exists()

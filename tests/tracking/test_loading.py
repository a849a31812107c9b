"""Comparisons loaded from Python are those of the commands."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.ledger.ledger import find_ledger
from carft_sweep.sweeps.ledger.runs import RunStore
from carft_sweep.sweeps.results.loading import load_comparison
from carft_sweep.sweeps.results.records import comparison, load_part
from carft_sweep.sweeps.results.report import publish
from carft_sweep.tracking.comparison.compare import Comparison
from carft_sweep.tracking.comparison.spec import ComparisonSpec, SelectionRule
from carft_sweep.tracking.errors import TrackingError
from carft_sweep.tracking.location import EXPERIMENT, home_id
from carft_sweep.tracking.report.formats import to_json
from carft_sweep.tracking.store.mlflow_store import MlflowStore
from tests.sweeps.conftest import ToySweep, toy_in


@pytest.fixture(scope="module")
def told(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> ToySweep:
    """A sweep in its home, and the home's own database that was told of it."""
    folder = tmp_path_factory.mktemp("told")
    with pytest.MonkeyPatch.context() as patched:
        toy = toy_in(folder, patched)
        home = toy.home.path
        home.mkdir()
        shutil.copy(migrated, home / "mlflow.db")
        toy.tracker = MlflowStore(  # type: ignore[assignment]
            f"sqlite:///{home / 'mlflow.db'}", EXPERIMENT, home / "mlartifacts", home=home_id(home)
        )
        toy.run()
    return toy


def of_home(toy: ToySweep) -> Comparison:
    return comparison(find_ledger(toy.home, "toy"), RunStore(toy.home.runs))


def test_from_a_home_it_is_what_compare_prints_and_needs_no_mlflow(
    told: ToySweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    copy = tmp_path / "home"
    shutil.copytree(told.home.path, copy, ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts"))
    assert to_json(load_comparison("toy", home=copy)) == to_json(of_home(told))


def test_a_published_folder_is_read_too(told: ToySweep, tmp_path: Path) -> None:
    ledger, runs = find_ledger(told.home, "toy"), RunStore(told.home.runs)
    publish(tmp_path / "toy", ledger, load_part(ledger, runs, with_fields=True))
    found = load_comparison(tmp_path / "toy")
    assert found.verdict == of_home(told).verdict
    assert [row.arm.label for row in found.rows] == [row.arm.label for row in of_home(told).rows]


def test_from_a_server_it_is_named_by_its_address(told: ToySweep) -> None:
    uri = f"sqlite:///{told.home.path / 'mlflow.db'}"
    found = load_comparison("toy", tracking_uri=uri)
    assert to_json(found) == to_json(of_home(told))


def test_one_condition_may_stand_alone_and_a_rule_goes_before_the_sweeps_own(
    told: ToySweep,
) -> None:
    home = told.home.path
    alone = load_comparison("toy", home=home, conditions="kl_weight>=0.3")
    assert alone == load_comparison("toy", home=home, conditions=["kl_weight>=0.3"])
    spec = ComparisonSpec(rule=SelectionRule(metric="id/val/nll", goal="minimize"))
    found = load_comparison("toy", home=home, spec=spec)
    assert found.rule.metric == "id/val/nll"


def test_what_is_not_there_is_told_with_the_nearest_name(told: ToySweep, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"'toi' in .*; did you mean 'toy'"):
        load_comparison("toi", home=told.home.path)
    with pytest.raises(RequestError, match="no sweep"):
        load_comparison("toy", home=tmp_path)
    uri = f"sqlite:///{told.home.path / 'mlflow.db'}"
    with pytest.raises(TrackingError, match=r"'toi'; did you mean 'toy'"):
        load_comparison("toi", tracking_uri=uri)
    assert not list(tmp_path.iterdir())
    with pytest.raises(TypeError, match="name of a sweep"):
        load_comparison()

"""Trials are proposed whole, go on under their numbers, and are told once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from carft_core.errors import RequestError
from sweeps.difference import changes, effect
from sweeps.home import Home
from sweeps.ledger import LOST, Ledger, storage
from sweeps.named import find

SPEC = {"name": "toy", "seeds": [0], "metric": {"name": "id/val/top1", "goal": "maximize"}}
SPACE = {"lr": CategoricalDistribution([0.1, 0.2])}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    home.prepare()
    return home


@pytest.fixture
def ledger(home: Home) -> Ledger:
    return Ledger.create(home, "toy", 1, goals=["maximize"], spec=SPEC)


def proposed(ledger: Ledger, point: int, lr: float = 0.1) -> int:
    trial = ledger.propose(
        point,
        stored={"lr": lr},
        distributions=SPACE,
        attributes={
            "params": {"optim.lr": lr},
            "algorithm": "car_ft",
            "runs": {"0": "d"},
            "merges": ["wise_ft@0.5"],
        },
    )
    return trial.number


def again(home: Home) -> Ledger:
    """As the next driver sees it."""
    found = Ledger.newest(home, "toy")
    assert found is not None
    return found


def test_a_proposed_trial_is_running_with_all_that_is_known_of_it(
    home: Home, ledger: Ledger
) -> None:
    proposed(ledger, 0)
    (trial,) = again(home).trials()
    assert trial.state == "running"
    assert trial.params == {"optim.lr": 0.1}
    assert trial.runs == {"0": "d"}
    assert trial.merges == ["wise_ft@0.5"]
    (frozen,) = again(home).study.trials
    assert frozen.params == {"lr": 0.1}
    assert frozen.datetime_start is not None


def test_a_running_trial_of_a_dead_driver_is_told_by_its_number(home: Home, ledger: Ledger) -> None:
    """Pins what Optuna documents only by example: `tell` takes the number of a RUNNING trial."""
    for point in range(3):
        proposed(ledger, point, 0.1 + point % 2 / 10)
    later = again(home)
    assert later.reconcile() == 0
    later.complete(1, [0.75])
    later.fail(2, "crashed", "it broke")
    states = [(t.number, t.state, t.value) for t in again(home).trials()]
    assert states == [(0, "running", None), (1, "complete", 0.75), (2, "failed", None)]
    assert again(home).trials()[2].reason == {"kind": "crashed", "message": "it broke"}
    frozen = again(home).study.trials[1]
    assert frozen.datetime_complete is not None
    assert again(home).study.best_trial.number == 1


def test_a_trial_is_told_once(ledger: Ledger) -> None:
    number = proposed(ledger, 0)
    ledger.complete(number, [0.5])
    with pytest.raises(ValueError, match="Cannot tell a COMPLETE trial"):
        ledger.complete(number, [0.6])


def test_a_trial_that_was_asked_and_never_proposed_is_given_up(home: Home, ledger: Ledger) -> None:
    asked = ledger.study.ask()
    number = proposed(ledger, 0)
    later = again(home)
    assert later.reconcile() == 1
    lost = later.study.trials[asked.number]
    assert lost.state is TrialState.FAIL
    assert lost.user_attrs["reason"]["kind"] == LOST
    assert [trial.number for trial in later.trials()] == [number]
    assert later.reconcile() == 0


def test_a_point_tried_again_is_its_newest_trial(ledger: Ledger) -> None:
    ledger.fail(proposed(ledger, 0), "crashed", "m")
    proposed(ledger, 1)
    second = proposed(ledger, 0)
    assert [(t.point, t.number) for t in ledger.trials()] == [(0, second), (1, 1)]


def test_a_crash_while_proposing_leaves_no_trial(
    home: Home, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = ledger.study._storage._backend  # type: ignore[attr-defined]

    def dying(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(opened, "_set_trial_attr_without_commit", dying)
    with pytest.raises(KeyboardInterrupt):
        proposed(ledger, 0)
    monkeypatch.undo()
    assert again(home).study.trials == []


def test_the_newest_whole_generation_counts(home: Home, ledger: Ledger) -> None:
    Ledger.create(home, "toy", 2, goals=["minimize"], spec={**SPEC, "seeds": [0, 1]})
    # A crash between the study and its attributes.
    optuna.create_study(storage=storage(home), study_name="toy@3")
    assert again(home).generation == 2
    assert again(home).spec["seeds"] == [0, 1]
    assert ledger.generation == 1


def test_sweeps_whose_names_begin_alike_are_different(home: Home, ledger: Ledger) -> None:
    Ledger.create(home, "toy.2", 1, goals=["maximize"], spec=SPEC)
    Ledger.create(home, "toy2", 4, goals=["maximize"], spec=SPEC)
    assert again(home).generation == ledger.generation == 1


def test_an_unknown_sweep_names_the_near_ones(home: Home) -> None:
    with pytest.raises(RequestError, match="no sweep 'toi' in"):
        find(home, "toi")


def test_a_file_that_is_no_database_is_refused(home: Home) -> None:
    home.optuna.write_text("not a database at all")
    with pytest.raises(RequestError, match="not an SQLite database"):
        storage(home)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("parameters.algorithm.kl_weight.values", "anew"),
        ("metric.name", "anew"),
        ("selection", "anew"),
        ("method", "anew"),
        ("seed", "anew"),
        ("trial.optim.lr", "anew"),
        ("trial.data.family", "anew"),
        ("seeds", "told again"),
        ("trial.keep.result", "told again"),
        ("trial.data.root", "goes on"),
        ("trial.merges", "goes on"),
        ("baselines", "goes on"),
        ("run_cap", "goes on"),
        ("retries", "goes on"),
        ("description", "goes on"),
        ("resources.cpus", "goes on"),
    ],
)
def test_what_a_change_does_is_decided_by_its_field(field: str, expected: str) -> None:
    def nested(value: object) -> dict[str, Any]:
        data: Any = value
        parts = ["parameters", "algorithm.kl_weight", "values"]
        for part in reversed(field.split(".") if "kl_weight" not in field else parts):
            data = {part: data}
        return dict(data)

    (change,) = changes(nested(1), nested(2))
    assert (change.field, change.effect) == (field, expected)
    assert str(change) == f"{field}: 1 -> 2"
    (gone,) = changes(nested(1), {})
    assert gone.effect == expected
    assert str(gone).endswith("-> (not given)")


def test_equal_sweeps_do_not_differ_and_the_strongest_change_decides() -> None:
    assert effect(changes({"a": {"b": [1]}}, {"a": {"b": [1]}})) is None
    both = changes({"seeds": [0], "run_cap": 1}, {"seeds": [1], "run_cap": 2})
    assert effect(both) == "told again"
    assert effect([*both, *changes({"method": "grid"}, {"method": "tpe"})]) == "anew"

"""The Optuna study says what the ledger says, and is written anew where it says anything else."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, event

from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.ledger import Ledger, find_ledger
from carft_sweep.sweeps.ledger.optuna_copy import (
    StudySync,
    check_storage,
    frozen_trial,
    named_database,
    open_storage,
    parameters_of,
    study_file,
    study_name,
)
from carft_sweep.tracking.errors import TrackingError
from tests.mounts import mount
from tests.sweeps.conftest import SEARCH, ToySweep

PARAMETERS: dict[str, Any] = {
    "optim.lr": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-2},
    "optim.clip": {"values": [None, 1.0]},
    "merges": {"values": [[], [{"name": "wise_ft", "alphas": [0.5]}]]},
    "optim.warmup": {"min": 0.0, "max": 0.5, "when": {"optim.clip": 1.0}},
}
TOP1 = {"name": "id/val/top1", "goal": "maximize", "merge": None}
NLL = {"name": "id/val/nll", "goal": "minimize", "merge": None}
GENERATION = "NSGAIISampler:generation"

IN_POSTGRES = pytest.param("postgres", marks=pytest.mark.xdist_group("services"))
EVERYWHERE = ["optuna.db", "optuna.journal", IN_POSTGRES]


@pytest.fixture(params=["optuna.db"])
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """On a local disk, on a network file system, and with a database that the environment names."""
    home = Home(tmp_path / "home")
    if request.param != "optuna.db":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
        mount(monkeypatch, tmp_path, "nfs4")
    if request.param == "postgres":
        postgres = request.getfixturevalue("postgres")
        monkeypatch.setenv("CARFT_OPTUNA_STORAGE", postgres.url(postgres.new_database()))
    home.prepare()
    assert (named_database() is not None) == (request.param == "postgres")
    assert named_database() or study_file(home).name == request.param
    return home


everywhere = pytest.mark.parametrize("home", EVERYWHERE, indirect=True)


def begin(home: Home, generation: int = 1, *goals: Any, earlier: Sequence[Ledger] = ()) -> Ledger:
    named = {"metrics": list(goals)} if len(goals) > 1 else {"metric": TOP1}
    spec = {"name": "toy", "seeds": [0], "parameters": PARAMETERS, **named}
    return Ledger.create(home.sweep("toy"), generation, spec, {}, earlier)


@pytest.fixture
def ledger(home: Home) -> Ledger:
    return begin(home)


def propose(ledger: Ledger, point: int, **params: Any) -> int:
    params = {"optim.lr": 1e-3, "optim.clip": None, "merges": [], **params}
    setting = {"params": params, "algorithm": "car_ft", "runs": {"0": "d"}, "merges": ["m@0.5"]}
    return ledger.add_trial(point, setting, {GENERATION: point // 2}).number


def fill(ledger: Ledger) -> None:
    """Trials in every state, reports that are no numbers, a point that is tried again."""
    ledger.complete(propose(ledger, 0), [0.5])
    pruned = propose(ledger, 1, **{"optim.clip": 1.0, "optim.warmup": 0.25})
    ledger.report(pruned, 1, 0.25)
    ledger.report(pruned, 2, 0.125)
    ledger.prune(pruned, "asha", "not in the best quarter")
    diverged = propose(ledger, 2, merges=[{"name": "wise_ft", "alphas": [0.5]}])
    ledger.report(diverged, 1, math.nan)
    ledger.fail(diverged, "nan", "train/loss is nan")
    propose(ledger, 2)
    ledger.report(propose(ledger, 3), 1, 0.5)


def load(home: Home, generation: int = 1) -> optuna.Study:
    """Load the study as another process does."""
    name = study_name(home, "toy", generation)
    return optuna.load_study(study_name=name, storage=open_storage(home))


def facts(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    """All of a trial that the ledger has too."""
    return {
        "number": trial.number,
        "state": trial.state.name,
        "values": trial.values,
        "params": trial.params,
        "distributions": {name: str(kind) for name, kind in trial.distributions.items()},
        "user": dict(trial.user_attrs),
        "system": trial.system_attrs,
        "reports": str(sorted(trial.intermediate_values.items())),
        "began": trial.datetime_start,
    }


def wanted(ledger: Ledger) -> list[dict[str, Any]]:
    goals = ledger.spec.get("metrics") or [ledger.spec["metric"]]
    parameters = parameters_of(ledger.spec)
    return [facts(frozen_trial(t, parameters, len(goals))) for t in ledger.proposals()]


def assert_equal(home: Home, ledger: Ledger) -> None:
    study = load(home, ledger.generation)
    assert [facts(trial) for trial in study.get_trials()] == wanted(ledger)
    assert study.user_attrs == {"generation": ledger.generation, "spec": ledger.spec}


@everywhere
def test_each_generation_has_a_study_and_each_trial_is_there(home: Home, ledger: Ledger) -> None:
    fill(ledger)
    StudySync(home, ledger).update()
    assert_equal(home, ledger)
    before = load(home)
    trials = before.get_trials()
    states = [trial.state.name for trial in trials]
    assert states == ["COMPLETE", "PRUNED", "FAIL", "RUNNING", "RUNNING"]
    assert [trial.values for trial in trials] == [[0.5], [0.125], None, None, None]
    assert trials[1].user_attrs["reason"] == {"kind": "asha", "message": "not in the best quarter"}
    assert trials[1].params["optim.warmup"] == 0.25
    assert trials[4].system_attrs == {GENERATION: 1}
    assert trials[0].datetime_complete is not None
    assert before.best_trial.number == 0
    ledger.complete(3, [0.25])
    propose(ledger, 4)
    StudySync(home, find_ledger(home, "toy")).update()
    assert_equal(home, ledger)
    assert load(home)._study_id == before._study_id, "the same study, further on"
    written = [trial.datetime_complete for trial in load(home).trials[:3]]
    assert written == [trial.datetime_complete for trial in trials[:3]]
    second = begin(home, 2, TOP1, NLL, earlier=[ledger])
    second.complete(propose(second, 0), [0.5, 2.0])
    pruned = propose(second, 1)
    second.report(pruned, 1, 0.5)
    second.prune(pruned, "asha", "m")
    StudySync(home, second).update()
    assert_equal(home, ledger)
    assert_equal(home, second)
    study = load(home, 2)
    assert [trial.values for trial in study.trials] == [[0.5, 2.0], None], "as Optuna has it"
    assert study.trials[1].intermediate_values == {}, "its samplers take none of several goals"
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    names = optuna.get_all_study_names(open_storage(home))
    prefix = study_name(home, "toy", 1).removesuffix("toy")
    assert sorted(names) == [f"{prefix}toy", f"{prefix}toy@2"]
    assert (prefix == "") == (named_database() is None)


KINDS = ["propose", "report", "complete", "fail", "prune", "update", "restart"]
CHANGES = st.lists(st.tuples(st.sampled_from(KINDS), st.floats(0, 1)), max_size=16)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes=CHANGES, goals=st.sampled_from([(), (TOP1, NLL)]))
def test_whenever_it_is_written_the_study_equals_the_ledger_in_the_end(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, float]], goals: Any
) -> None:
    home = Home(tmp_path_factory.mktemp("home"))
    home.prepare()
    ledger = begin(home, 1, *goals)
    values = max(1, len(goals))
    study, running = StudySync(home, ledger), list[int]()
    for index, (change, value) in enumerate(changes):
        if change == "update":
            study.update()
        elif change == "restart":
            ledger = find_ledger(home, "toy")
            study = StudySync(home, ledger)
        elif change == "propose" or not running:
            running.append(propose(ledger, index % 4))
        elif change == "report":
            ledger.report(running[-1], 1 + len(ledger.trials()), value)
        elif change == "complete":
            ledger.complete(running.pop(), [value] * values)
        elif change == "fail":
            ledger.fail(running.pop(), "crashed", "it broke")
        else:
            ledger.prune(running.pop(), "asha", "not in the best quarter")
    study.update()
    assert_equal(home, ledger)


def delete(study: optuna.Study) -> None:
    optuna.delete_study(study_name=study.study_name, storage=study._storage)


def replace_study(study: optuna.Study) -> None:
    delete(study)
    other = optuna.create_study(study_name=study.study_name, storage=study._storage)
    other.add_trial(optuna.trial.create_trial(value=1.0))


def turn_around(study: optuna.Study) -> None:
    trials = study.trials
    delete(study)
    named: Any = {"study_name": study.study_name, "storage": study._storage}
    optuna.create_study(**named, direction="minimize").add_trials(trials)


HARMS: list[Callable[[optuna.Study], object]] = [
    *(delete, replace_study, turn_around),
    lambda study: study.ask(),
    lambda study: study.tell(3, 0.99),
]


def test_a_study_that_is_missing_or_another_is_written_anew(home: Home, ledger: Ledger) -> None:
    fill(ledger)
    StudySync(home, ledger).update()
    for harm in HARMS:
        harm(load(home))
        StudySync(home, ledger).update()
        assert_equal(home, ledger)
    # As after the ledger was cut at a damaged line, and went on otherwise: an equal point.
    lines = ledger.file.read_bytes()
    ledger.complete(3, [0.5])
    StudySync(home, ledger).update()
    ledger.file.write_bytes(lines)
    ledger = find_ledger(home, "toy")
    ledger.complete(3, [0.75])
    StudySync(home, ledger).update()
    assert_equal(home, ledger)


def test_killed_among_the_first_tables_it_leaves_no_database(tmp_path: Path) -> None:
    """They would lack the index that lets no two studies have one name."""
    home = Home(tmp_path / "{home}")

    class Killed(BaseException):
        """The process ends here."""

    def kill(*seen: Any) -> None:
        if "INDEX" in seen[2]:  # the statement
            raise Killed

    event.listen(Engine, "before_cursor_execute", kill)
    try:
        with pytest.raises(Killed):
            open_storage(home)
    finally:
        event.remove(Engine, "before_cursor_execute", kill)
    assert not study_file(home).exists()
    (home.path / ".optuna.db.abcdefgh").touch()  # of one that was killed for good
    for _ in range(2):
        optuna.create_study(storage=open_storage(home), study_name="a", load_if_exists=True)
    assert len(open_storage(home).get_all_studies()) == 1
    assert {file.name for file in home.path.iterdir()} == {"optuna.db", ".lock-optuna.db"}


@everywhere
def test_a_write_that_failed_behind_its_commit_is_there_once_and_a_deleted_study_again(
    home: Home, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = StudySync(home, ledger)
    study.update()

    def lost(storage: type[optuna.storages.BaseStorage]) -> Callable[..., int]:
        create_new_trial = storage.create_new_trial

        def create(*args: Any, **named: Any) -> int:
            create_new_trial(*args, **named)
            raise ConnectionError("the answer never came")

        return create

    propose(ledger, 0)
    propose(ledger, 1)
    with monkeypatch.context() as patch:
        for storage in (optuna.storages.RDBStorage, optuna.storages.JournalStorage):
            patch.setattr(storage, "create_new_trial", lost(storage))
        with pytest.raises(ConnectionError):
            study.update()
    study.update()
    assert_equal(home, ledger)
    delete(load(home))
    ledger.complete(0, [0.5])
    with pytest.raises(KeyError):
        study.update()
    study.update()
    assert_equal(home, ledger)


@pytest.mark.parametrize("home", ["optuna.db", "optuna.journal"], indirect=True)
def test_a_broken_file_is_left_alone_until_deleted(home: Home, ledger: Ledger) -> None:
    fill(ledger)
    study_file(home).write_text("another program's\nfile\n")
    study = StudySync(home, ledger)
    with pytest.raises(Exception, match=r"not a database|Expecting value"):
        study.update()
    assert study_file(home).read_text() == "another program's\nfile\n"
    study_file(home).unlink()
    study.update()
    assert_equal(home, ledger)
    if study_file(home).name == "optuna.journal":  # a torn line of it is passed over
        with study_file(home).open("ab") as file:
            file.write(b'{"op_code":4,"wor')
        ledger.complete(3, [0.25])
        StudySync(home, ledger).update()
        assert_equal(home, ledger)


def test_the_study_of_a_sweep_that_ran_equals_its_ledger(toy: ToySweep) -> None:
    keys: dict[str, Any] = {**SEARCH, "method": "nsga2", "run_cap": 22}
    early = {"type": "threshold", "metric": "id/val/top1", "lower": 0.18}
    toy.plan({"0.3/0": [{"do": "raise", "error": "nan"}]})
    toy.run(**keys, early_terminate=early)
    study, trials = toy.study(), toy.ledger().proposals()
    parameters = parameters_of(toy.ledger().spec)
    for shown, trial in zip(study.trials, trials, strict=True):
        assert facts(shown) == facts(frozen_trial(trial, parameters, 1))
    assert study.metric_names == ["id/val/top1"]
    assert {t.system_attrs[GENERATION] for t in study.trials} == {0, 1}
    assert toy.complaints == []


def test_a_study_that_cannot_be_written_costs_a_sweep_nothing(
    toy: ToySweep, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: Home) -> None:
        raise RuntimeError("no such dialect")

    with monkeypatch.context() as patch:
        patch.setattr("carft_sweep.sweeps.ledger.optuna_copy.open_storage", broken)
        patch.setattr("carft_sweep.sweeps.scheduler.session.PATIENCE", 0.2)
        with caplog.at_level(logging.ERROR):
            assert toy.run().state == "done"
    assert toy.complaints == [
        "the Optuna study is behind (no such dialect); nothing is lost: the next run writes what "
        "it lacks, all of it where its database was deleted"
    ]
    assert len(toy.tracked()) == 7
    assert toy.run().state == "done"
    assert [trial.state.name for trial in toy.study().trials] == ["COMPLETE", "COMPLETE"]
    assert toy.complaints == []


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("sqlite://", "in memory: write sqlite:////"),
        ("no URL", "must be like postgresql://"),
        ("postgres://u:s3cret@db/optuna", "not postgres://"),
        ("postgresql://u:p@s3cret@db/optuna", "write @ as %40"),
    ],
)
def test_what_no_database_can_be_is_refused_beforehand(
    monkeypatch: pytest.MonkeyPatch, uri: str, expected: str
) -> None:
    monkeypatch.setenv("CARFT_OPTUNA_STORAGE", uri)
    with pytest.raises(TrackingError, match=expected) as raised:
        check_storage()
    assert "s3cret" not in str(raised.value)

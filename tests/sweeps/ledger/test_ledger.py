"""Trials are proposed whole, go on under their numbers, and are told once."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from carft_core.errors import RequestError
from sweeps.home import Home
from sweeps.ledger.generations import changes, effect
from sweeps.ledger.snapshot import find
from sweeps.ledger.storage import storage
from sweeps.ledger.trials import LOST, Ledger
from tests.mounts import mount

SPEC = {"name": "toy", "seeds": [0], "metric": {"name": "id/val/top1", "goal": "maximize"}}
SPACE = {"lr": CategoricalDistribution([0.1, 0.2])}


IN_POSTGRES = pytest.param("postgres", marks=pytest.mark.xdist_group("services"))


@pytest.fixture(params=["optuna.db", "optuna.journal", IN_POSTGRES])
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """On a local disk and on a network file system, where another file holds the trials or, with
    several machines, a database does.
    """
    home = Home(tmp_path / "home")
    if request.param != "optuna.db":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
        mount(monkeypatch, tmp_path, "nfs4")
    if request.param == "postgres":
        postgres = request.getfixturevalue("postgres")
        monkeypatch.setenv("CARFT_OPTUNA_STORAGE", postgres.url(postgres.new_database()))
    home.prepare()
    assert (home.database is not None) == (request.param == "postgres")
    assert home.database or home.optuna == home.path / request.param
    return home


in_the_database = pytest.mark.parametrize("home", ["optuna.db"], indirect=True)
in_a_file = pytest.mark.parametrize("home", ["optuna.db", "optuna.journal"], indirect=True)
in_the_journal = pytest.mark.parametrize("home", ["optuna.journal"], indirect=True)


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


@in_the_database
def test_a_crash_while_proposing_leaves_no_trial(
    home: Home, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = ledger.study._storage._backend  # type: ignore[attr-defined]
    before = opened._set_trial_attr_without_commit

    def dying(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(opened, "_set_trial_attr_without_commit", dying)
    with pytest.raises(KeyboardInterrupt):
        proposed(ledger, 0)
    monkeypatch.setattr(opened, "_set_trial_attr_without_commit", before)
    assert again(home).study.trials == []


@in_the_journal
@pytest.mark.parametrize("written", [1, 100, -1])
def test_a_kill_while_a_line_is_written_leaves_no_trial_and_harms_nothing_after_it(
    home: Home, ledger: Ledger, written: int
) -> None:
    first = proposed(ledger, 0)
    whole = home.optuna.read_bytes()
    proposed(ledger, 1)
    line = home.optuna.read_bytes()[len(whole) :]
    assert line.count(b"\n") == 1, "all that is known of a trial is one line"
    torn = line[:written]
    home.optuna.write_bytes(whole + torn)
    later = again(home)
    assert [trial.number for trial in later.trials()] == [first]
    assert home.optuna.read_bytes() == whole + torn, "who only reads changes nothing"
    second = proposed(later, 1)
    later.complete(first, [0.5])
    assert [(t.number, t.state) for t in again(home).trials()] == [
        (first, "complete"),
        (second, "running"),
    ]


@in_the_journal
def test_a_torn_line_longer_than_a_block_goes_as_a_whole(home: Home, ledger: Ledger) -> None:
    whole = home.optuna.read_bytes()
    with home.optuna.open("ab") as file:
        file.write(b'{"op_code":8,' + b" " * 3 * 4096)
    ledger.remember("key", 1)
    assert home.optuna.read_bytes().startswith(whole + b'{"op_code":2,')
    assert again(home).recall("key") == 1


@in_the_journal
def test_the_lock_of_a_driver_that_was_killed_is_taken_over(home: Home, ledger: Ledger) -> None:
    home.optuna.with_name("optuna.journal.lock").touch()
    ledger.study._storage._backend._lock.grace_period = 0.2  # type: ignore[attr-defined]
    proposed(ledger, 0)
    assert [trial.point for trial in again(home).trials()] == [0]
    assert not home.optuna.with_name("optuna.journal.lock").exists()


@in_the_journal
def test_a_lock_that_was_taken_away_while_it_was_held_is_an_os_error(
    home: Home, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def stolen(file: int) -> None:
        sync(file)
        home.optuna.with_name("optuna.journal.lock").unlink()

    monkeypatch.setattr(os, "fsync", stolen)
    with pytest.raises(OSError, match=r"its lock was lost.*optuna\.journal"):
        ledger.remember("key", 1)


@in_the_journal
def test_a_driver_of_another_sweep_writes_between_ours(home: Home, ledger: Ledger) -> None:
    other = Ledger.create(home, "other", 1, goals=["maximize"], spec=SPEC)
    numbers = [(proposed(ledger, point), proposed(other, point)) for point in range(3)]
    assert numbers == [(0, 0), (1, 1), (2, 2)]
    other.complete(1, [0.5])
    assert [trial.state for trial in again(home).trials()] == ["running"] * 3


@in_a_file
def test_a_home_goes_on_with_its_own_file_wherever_it_lies(
    home: Home, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposed(ledger, 0)
    before = home.optuna
    mount(monkeypatch, home.path, "ext4" if before.name == "optuna.journal" else "lustre")
    assert home.optuna == before
    proposed(again(home), 1)
    assert len(again(home).trials()) == 2
    assert home.optuna_files() == [before]


@in_a_file
def test_two_files_of_trials_are_refused(home: Home, ledger: Ledger) -> None:
    del ledger
    for name in ("optuna.db", "optuna.journal"):
        (home.path / name).touch()
    with pytest.raises(RequestError, match=r"two files of trials, optuna\.db and optuna\.journal"):
        storage(home)


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


@in_a_file
def test_a_file_that_is_another_programs_is_refused_and_kept(home: Home) -> None:
    home.optuna.write_text("another program's")
    said = r"is not an? (SQLite database|journal of Optuna's); move"
    with pytest.raises(RequestError, match=said):
        storage(home)
    assert home.optuna.read_text() == "another program's"


@in_the_journal
def test_a_journal_that_is_broken_before_its_end_is_refused(home: Home, ledger: Ledger) -> None:
    proposed(ledger, 0)
    lines = home.optuna.read_bytes().splitlines(keepends=True)
    home.optuna.write_bytes(b"".join([lines[0], lines[1][:20] + b"\n", *lines[2:]]))
    with pytest.raises(RequestError, match=r"optuna\.journal is a broken journal.*move it away"):
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


def writes(ledger: Ledger, number: int) -> list[Callable[[], object]]:
    """Everything that writes, with a running trial's number."""
    return [
        lambda: proposed(ledger, 1),
        lambda: ledger.complete(number, [0.5]),
        lambda: ledger.fail(number, "nan", "m"),
        lambda: ledger.report(number, 1, 0.5),
        lambda: ledger.remember("key", 1),
    ]


@in_the_database
def test_a_database_that_cannot_be_written_is_an_os_error_and_keeps_what_it_has(
    home: Home, ledger: Ledger
) -> None:
    number = proposed(ledger, 0)

    def refuse(cursor: Any, statement: str) -> None:
        del cursor
        if statement.startswith(("INSERT", "UPDATE")):
            raise sqlite3.OperationalError("database or disk is full")

    engine = ledger.study._storage._backend.engine  # type: ignore[attr-defined]
    sqlalchemy.event.listen(engine, "before_cursor_execute", lambda *told: refuse(*told[1:3]))
    for write in writes(ledger, number):
        with pytest.raises(OSError, match="database or disk is full") as raised:
            write()
        assert raised.value.errno == errno.ENOSPC
    kept = again(home).trials()
    assert [(trial.number, trial.state) for trial in kept] == [(number, "running")]


@in_the_journal
def test_a_journal_that_cannot_be_written_is_an_os_error_and_keeps_what_it_has(
    home: Home, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = proposed(ledger, 0)
    sync = os.fsync

    def full(file: int) -> None:
        os.ftruncate(file, os.fstat(file).st_size - 7)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for write in writes(ledger, number):
        with pytest.raises(OSError, match=r"No space left on device: .*optuna\.journal") as raised:
            write()
        assert raised.value.errno == errno.ENOSPC
    kept = again(home).trials()
    assert [(trial.number, trial.state) for trial in kept] == [(number, "running")]
    monkeypatch.setattr(os, "fsync", sync)
    ledger.complete(number, [0.5])
    assert again(home).trials()[0].value == 0.5

"""Studies in a real PostgreSQL: shared, refused, away for a while; no sweep depends on it."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest

from carft_sweep.sweeps.cli import main
from carft_sweep.sweeps.engines.local import InProcessEngine
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.ledger import Ledger, find_ledger
from carft_sweep.sweeps.ledger.optuna_copy import StudySync
from carft_sweep.sweeps.results.sync_thread import SyncThread
from tests.mounts import mount
from tests.services.postgres import Postgres
from tests.sweeps import toy_core
from tests.sweeps.conftest import ONE_RUN, SEARCH, Carft, ToySweep

VALUE = pytest.approx(0.8)
"""Of the trial of ONE_RUN."""
PASSWORD = "s3cret of ours"


@pytest.fixture
def database(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a fresh database, which the environment names for Optuna."""
    name = postgres.new_database()
    monkeypatch.setenv("CARFT_OPTUNA_STORAGE", postgres.url(name))
    return name


@pytest.fixture
def shared(toy_cli: ToySweep, database: str) -> ToySweep:
    """The commands in a home whose studies are in the database."""
    del database
    return toy_cli


def trials(home: Home) -> Mapping[int, tuple[str, float | None]]:
    ledger = find_ledger(home, "toy")
    return {trial.number: (trial.state, trial.value) for trial in ledger.trials()}


def test_two_homes_that_share_a_database_have_equal_trials_and_studies_of_their_own(
    shared: ToySweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, carft: Carft
) -> None:
    """A search asks there what it asks in a file, and each home knows its own sweep alone."""
    trials_in, url = {}, os.environ["CARFT_OPTUNA_STORAGE"]
    for name in ("a", "b", "file"):
        if name == "file":
            monkeypatch.delenv("CARFT_OPTUNA_STORAGE")
        file = str(shared.file(**(ONE_RUN if name == "b" else SEARCH)))
        assert main(["--home", str(tmp_path / name), "run", file]) == 0
        ledger = find_ledger(Home(tmp_path / name), "toy")
        trials_in[name] = [(trial.params, trial.value) for trial in ledger.trials()]
    assert len(trials_in["a"]) == SEARCH["run_cap"]
    assert trials_in["a"] == trials_in["file"]
    assert len(trials_in["b"]) == 1
    ids = {name: (tmp_path / name / "id").read_text()[:12] for name in ("a", "b")}
    names = optuna.get_all_study_names(url)
    assert sorted(names) == sorted(f"{prefix}/toy" for prefix in ids.values())
    assert not [*(tmp_path / "a").glob("optuna.[dj]*")], "no file of studies beside them"
    monkeypatch.setenv("CARFT_OPTUNA_STORAGE", url)
    items = carft("--home", tmp_path / "a", "clean", "--json").json["items"]
    assert not [item for item in items if item["reason"] == "a run that no sweep uses"]


def complaint(toy: ToySweep, carft: Carft) -> str:
    """What a whole sweep says of its study in the end, in one line without a password."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("carft_sweep.sweeps.scheduler.session.PATIENCE", 1.0)
        printed = carft("run", toy.file(**ONE_RUN), "--in-process")
    for secret in (PASSWORD, "s3cret", "sesame"):
        assert secret not in printed.err + printed.out
    assert trials(toy.home) == {0: ("complete", VALUE)}
    assert len(toy.tracked()) == 1
    (line,) = (text for text in printed.err.splitlines() if "the Optuna study is behind" in text)
    assert line.endswith("all of it where its database was deleted")
    return line


TROUBLES: Mapping[str, tuple[Callable[[Postgres, str], str], str]] = {
    "wrong password": (
        lambda postgres, name: postgres.url(name, password=PASSWORD),
        "denied access .*password authentication failed.*CARFT_OPTUNA_STORAGE",
    ),
    "missing database": (
        lambda postgres, _: postgres.url("nowhere"),
        'database "nowhere" does not exist.*CARFT_OPTUNA_STORAGE',
    ),
    "nobody there": (
        lambda *_: f"postgresql://u:{PASSWORD}@127.0.0.1:9/optuna",
        r"database at postgresql://127\.0\.0\.1:9/optuna does not answer",
    ),
    "no rights": (
        lambda postgres, name: postgres.url(name, postgres.new_user(PASSWORD), PASSWORD),
        "permission denied for schema public",
    ),
    "a missing driver": (
        lambda *_: f"mysql+pymysql://u:{PASSWORD}@127.0.0.1:{{port}}/optuna",
        r"No module named 'pymysql'",
    ),
}


@pytest.mark.parametrize("case", TROUBLES)
def test_a_database_that_cannot_be_used_costs_a_sweep_nothing_and_is_said(
    toy_cli: ToySweep, postgres: Postgres, monkeypatch: pytest.MonkeyPatch, carft: Carft, case: str
) -> None:
    url, expected = TROUBLES[case]
    named_url = url(postgres, postgres.new_database()).replace("{port}", str(postgres.port))
    monkeypatch.setenv("CARFT_OPTUNA_STORAGE", named_url)
    text = complaint(toy_cli, carft)
    assert re.search(expected, text), text


VERSION = "UPDATE alembic_version SET version_num = "
TABLES = [f"CREATE TABLE {name} AS SELECT '1' AS id" for name in ("experiments", "runs")]
ANY = "CREATE TABLE alembic_version AS SELECT '1' AS version_num"
FOREIGN: Mapping[str, tuple[list[str], str]] = {
    "of an older Optuna": ([f"{VERSION}'v3.0.0.d'"], "upgrading the storage"),
    "of a newer Optuna": ([f"{VERSION}'v9.9.9'"], "pip install -U optuna"),
    "of MLflow": (TABLES, "is MLflow's .*one of its own"),
    "of another program": ([ANY], "another program"),
}
"""What is done to the tables of a database, and what is said of it."""


@pytest.mark.parametrize("case", FOREIGN)
def test_a_database_of_another_program_or_of_another_optuna_is_left_as_it_is(
    shared: ToySweep, database: str, postgres: Postgres, carft: Carft, case: str
) -> None:
    statements, expected = FOREIGN[case]
    if "Optuna" in case:
        optuna.storages.RDBStorage(postgres.url(database))
    for statement in statements:
        postgres.sql(statement, database)

    def held() -> dict[str, Any]:
        tables = postgres.tables(database)
        return {table: postgres.sql(f"SELECT * FROM {table}", database) for table in tables}

    before = held()
    text = complaint(shared, carft)
    assert re.search(expected, text), text
    assert held() == before


def test_sqlite_on_a_network_file_system_is_refused_and_elsewhere_taken(
    toy_cli: ToySweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, carft: Carft
) -> None:
    monkeypatch.setenv("CARFT_OPTUNA_STORAGE", f"sqlite:///{tmp_path / 'share' / 'optuna.db'}")
    with monkeypatch.context() as patched:
        (tmp_path / "share").mkdir()
        mount(patched, tmp_path / "share", "nfs4")
        text = carft("run", toy_cli.file(), code=2).err.strip()
        assert text.startswith("carft-sweep: ")
        assert "network file system (nfs4)" in text
        assert "\n" not in text
    assert toy_cli.command(**ONE_RUN) == 0
    assert (tmp_path / "share" / "optuna.db").exists()
    assert trials(toy_cli.home) == {0: ("complete", VALUE)}


def test_several_homes_may_begin_in_a_new_database_at_once(
    database: str, postgres: Postgres, tmp_path: Path
) -> None:
    homes = [Home(tmp_path / str(number)) for number in range(4)]
    failed: list[BaseException] = []

    def begin(home: Home) -> None:
        try:
            home.prepare()
            spec = {"name": "toy", "parameters": {}, "metric": {"name": "m", "goal": "maximize"}}
            ledger = Ledger.create(home.sweep("toy"), 1, spec, {})
            thread = SyncThread("study", StudySync(home, ledger).update, pace=0.1)
            done, error = thread.flush(60), thread.last_error
            thread.close(60)
            assert done, error
        except BaseException as error:  # whatever it is: the test says it
            failed.append(error)

    threads = [threading.Thread(target=begin, args=[home]) for home in homes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(optuna.get_all_study_names(postgres.url(database))) == len(homes)


def meddling(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Let something happen in the first epoch of a run."""
    done: list[int] = []

    def entry(config: Any, seed: int, *, report: Any, **places: Any) -> Any:
        def watched(epoch: Any) -> Any:
            if not done:
                done.append(1)
                act()
            return report(epoch)

        return toy_core.train_run(config, seed, report=watched, **places)

    monkeypatch.setattr(f"{__name__}.entry", entry, raising=False)
    engine = InProcessEngine(f"{__name__}:entry")
    monkeypatch.setattr("carft_sweep.sweeps.api.make_engine", lambda *_, **__: engine)


def test_a_database_that_goes_away_during_the_run_costs_nothing_and_catches_up_later(
    shared: ToySweep, postgres: Postgres, monkeypatch: pytest.MonkeyPatch, carft: Carft
) -> None:
    with monkeypatch.context() as patched:
        meddling(patched, postgres.stop)
        try:
            text = complaint(shared, carft)
        finally:
            postgres.start()
    assert "onnection" in text
    assert "Optuna study" not in carft("resume", "toy", "--in-process").err
    assert shared.command(**ONE_RUN) == 0
    assert [trial.values for trial in shared.study().trials] == [[VALUE]]
    assert set(shared.trained().values()) <= {toy_core.EPOCHS + 1}, "no epoch twice"

"""MLflow as the store: found again, not hijacked, clear about what is wrong, whole when killed."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Metric as MlflowMetric
from mlflow.entities import Run, RunTag
from mlflow.utils.validation import MAX_BATCH_LOG_REQUEST_SIZE

from carft_sweep.tracking.errors import ServiceUnreachable, TrackingError
from carft_sweep.tracking.location import home_id
from carft_sweep.tracking.ownership import SHARED_HOMES_VARIABLE
from carft_sweep.tracking.store.base import GROUP, Kind, Metric, RunKey, RunStart, RunsView
from carft_sweep.tracking.store.mlflow_client import check_reachable, get
from carft_sweep.tracking.store.mlflow_pages import SWEEPS, VIEW, runs_page
from carft_sweep.tracking.store.mlflow_store import METRICS, TAGS, MlflowStore, batches
from tests.services.answering import Answer, Asked, answering
from tests.tracking.conftest import NewDatabase
from tests.tracking.made_up import known
from tests.tracking.store.test_mlflow_pages import state_of
from tests.tracking.subjects import all_runs

SWEEP = RunKey("kl_weight")
NOW = 1_790_000_000_000
PARENT = RunStart(SWEEP, "kl_weight", NOW)


def child(number: int) -> RunStart:
    return RunStart(RunKey("kl_weight", f"{number:064x}"), f"run {number}", NOW, parent=SWEEP)


def unique() -> str:
    return f"test-{uuid.uuid4().hex}"


def noted(uri: str, experiment: str) -> tuple[Run, str]:
    """The only run, and its description."""
    (run,) = all_runs(uri, experiment)
    return run, run.data.tags["mlflow.note.content"]


HOSTILE = (
    "![](http://evil.example/a) ![x][1] ![a ![b](artifact:id_ood.png)](http://evil.example/c) "
    '<img src="http://evil.example/d"> <iframe src="http://evil.example/e"> p < 0.05'
)
HARMLESS = (
    "!\\[](http://evil.example/a) !\\[x][1] !\\[a ![b](SOURCE)](http://evil.example/c) "
    '&lt;img src="http://evil.example/d"> &lt;iframe src="http://evil.example/e"> p &lt; 0.05'
)


def test_a_description_leads_to_artifacts_and_loads_nothing(new_database: NewDatabase) -> None:
    uri, name = new_database(), unique()
    store = MlflowStore(uri, name)
    store.start_run(replace(PARENT, tags={"mlflow.note.content": HOSTILE}))
    run, begun = noted(uri, name)
    assert begun == HARMLESS.replace("SOURCE", "artifact:id_ood.png")
    text = f"See [the page](artifact:report.html) and [the site](https://example.org). {HOSTILE}"
    store.set_tags(SWEEP, {"mlflow.note.content": text, "carft.note": text})
    run, linked = noted(uri, name)
    page = f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}/artifacts/report.html"
    source = f"get-artifact?run_uuid={run.info.run_id}&path=id_ood.png"
    assert linked == (
        f"See [the page]({page}?workflowType=machine_learning) and [the site](https://example.org)."
        f" {HARMLESS.replace('SOURCE', source)}"
    )
    assert run.data.tags["carft.note"] == text


def test_a_name_and_a_description_that_somebody_gave_a_run_stay(new_database: NewDatabase) -> None:
    uri, name = new_database(), unique()
    client, store = MlflowClient(uri), MlflowStore(uri, name)
    store.start_run(replace(PARENT, tags={"mlflow.note.content": "begun"}))
    store.set_tags(SWEEP, {"mlflow.note.content": "newer"})
    run, text = noted(uri, name)
    assert text == "newer"
    client.set_tag(run.info.run_id, "mlflow.note.content", "a note of mine")
    client.update_run(run.info.run_id, name="my name")
    store.set_tags(SWEEP, {"mlflow.note.content": "newest"})
    for replaces in (False, True):
        again = {"mlflow.note.content": "begun again"}
        store.start_run(replace(PARENT, params={"p": 2}, tags=again, replaces=replaces))
        renewed, text = noted(uri, name)
        assert (renewed.info.run_id != run.info.run_id) == replaces
        assert (renewed.info.run_name, text) == ("my name", "a note of mine")


@pytest.mark.parametrize(("shared", "mode"), [(False, 0o700), (True, 0o755)])
def test_artifacts_are_their_owners_alone_unless_the_home_is_shared(
    new_database: NewDatabase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shared: bool,
    mode: int,
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv(SHARED_HOMES_VARIABLE, str(home) if shared else "")
    before = os.umask(0o022)
    try:
        home_id(home)
        store = MlflowStore(new_database(), unique(), home / "mlartifacts")
        store.start_run(PARENT)
        store.log_artifact(SWEEP, home / "id")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (home, home / "mlartifacts")} == {mode}


def test_views_are_tags_of_the_experiment_under_ids_of_their_own(new_database: NewDatabase) -> None:
    uri, name = new_database(), unique()
    store = MlflowStore(uri, name, home="mine")
    store.start_run(replace(PARENT, tags={GROUP: "2026 sweep"}))
    arm, other = (RunKey(SWEEP.sweep, arm=label) for label in ("car_ft", "untuned"))
    store.start_run(RunStart(arm, "car_ft", NOW, parent=SWEEP, tags={GROUP: "2026"}))
    store.start_run(RunStart(other, "untuned", NOW, parent=SWEEP, tags={GROUP: ""}))
    store.start_run(child(1))
    MlflowStore(uri, name, home="yours").start_run(RunStart(arm, "theirs", NOW))
    kinds: tuple[Kind, ...] = ("sweep", "arm", "run")
    for kind in kinds:
        store.keep_view(RunsView("v", kind, ["n"], sort_by="n"), SWEEP, timestamp=NOW)
    client, run_id, experiment = MlflowClient(uri), store.run_id(SWEEP), known(store.experiment())
    tags = client.get_experiment(experiment).tags
    views = {key.removeprefix(VIEW): text for key, text in tags.items() if key.startswith(VIEW)}
    wanted = {SWEEPS: [SWEEP, arm], f"{run_id}": [arm, other], f"{run_id}-runs": [child(1).key]}
    assert views.keys() == wanted.keys()
    for view, keys in wanted.items():
        runs = client.search_runs([experiment], state_of(views[view])["searchFilter"])
        assert {run.info.run_id for run in runs} == {store.run_id(key) for key in keys}
    # The description of the experiment leads to the sweeps, unless it has one.
    (line,) = tags["mlflow.note.content"].splitlines()
    assert f"({runs_page(experiment, SWEEPS)})" in line
    client.set_experiment_tag(experiment, "mlflow.note.content", "Ada's own words")
    store.keep_view(RunsView("v", "sweep", ["n"]), SWEEP, timestamp=NOW)
    store.remove_sweep(SWEEP.sweep)
    tags = client.get_experiment(experiment).tags
    assert tags["mlflow.note.content"] == "Ada's own words"
    assert {key for key in tags if key.startswith(VIEW)} == {f"{VIEW}{SWEEPS}"}


def test_another_process_takes_up_runs_and_another_home_its_own(new_database: NewDatabase) -> None:
    uri, experiment = new_database(), unique()
    first, second = (MlflowStore(uri, experiment, home="mine") for _ in range(2))
    first.start_run(PARENT)
    first.start_run(child(1))
    second.start_run(child(1))  # its parent is found by its tags
    second.end_run(SWEEP, "finished", timestamp=NOW + 1)
    for key in (child(1).key, SWEEP):
        assert second.run_id(key) == first.run_id(key)
    assert len(all_runs(uri, experiment)) == 2
    other = MlflowStore(uri, experiment, home="yours")
    other.start_run(PARENT)
    assert other.run_id(SWEEP) != first.run_id(SWEEP)
    # A run whose answer was lost is not opened a second time.
    lost = unique()
    MlflowStore(uri, lost).start_run(PARENT)
    (run,) = all_runs(uri, lost)
    client = MlflowClient(uri)
    tags = {"carft.kind": "sweep", **run.data.tags}
    twin = client.create_run(run.info.experiment_id, start_time=NOW + 5, tags=tags)
    store = MlflowStore(uri, lost)
    store.start_run(PARENT)
    assert store.run_id(SWEEP) == run.info.run_id != twin.info.run_id


def test_the_environment_of_another_run_does_not_hijack_ours(
    new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, experiment = new_database(), unique()
    client = MlflowClient(uri)
    foreign = client.create_run(client.create_experiment("foreign"))
    environ = {"EXPERIMENT_NAME": "foreign", "TRACKING_URI": "http://127.0.0.1:9"}
    ids = {"RUN_ID": foreign.info.run_id, "EXPERIMENT_ID": foreign.info.experiment_id}
    for name, value in (environ | ids).items():
        monkeypatch.setenv(f"MLFLOW_{name}", value)
    store = MlflowStore(uri, experiment)
    store.start_run(PARENT)
    store.log_metrics(SWEEP, [Metric("m", 1.0, 0, NOW)])
    untouched = client.get_run(foreign.info.run_id)
    assert (untouched.data.metrics, untouched.info.status) == ({}, "RUNNING")
    assert len(all_runs(uri, experiment)) == 1


def test_a_deleted_experiment_is_named_with_its_remedy(new_database: NewDatabase) -> None:
    uri, experiment = new_database(), unique()
    client = MlflowClient(uri)
    client.delete_experiment(client.create_experiment(experiment))
    store = MlflowStore(uri, experiment)
    with pytest.raises(TrackingError, match=r"experiments restore --experiment-id \d+") as caught:
        store.check()
    assert experiment in str(caught.value)
    # No record is to blame for it, so that all of them are sent again.
    with pytest.raises(ServiceUnreachable, match="restore"):
        store.start_run(PARENT)


def test_a_verb_for_an_unopened_run_is_wrong(new_database: NewDatabase, tmp_path: Path) -> None:
    store = MlflowStore(new_database(), unique())
    for verb in (lambda: store.set_tags(SWEEP, {"a": "b"}), lambda: store.start_run(child(1))):
        with pytest.raises(TrackingError, match="never opened"):
            verb()
    store.start_run(PARENT)
    with pytest.raises(TrackingError, match="No such file"):
        store.log_artifact(SWEEP, tmp_path / "missing")
    with pytest.raises(TrackingError, match="quotes"):  # which MLflow's filters cannot hold
        store.start_run(replace(PARENT, key=RunKey("a'b\"c")))


def test_nobody_there_is_said_at_once() -> None:
    store = MlflowStore("http://user:secret@127.0.0.1:9", unique())
    start = time.monotonic()
    with pytest.raises(ServiceUnreachable) as caught:
        store.start_run(PARENT)
    assert time.monotonic() - start < 10
    assert "127.0.0.1:9" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("status", [401, 403, 404, 408, 429, 500, 502, 503, 504])
def test_an_answer_that_may_be_better_later_is_no_fault_of_the_record(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    with answering(lambda _: Answer("<Error>\n<Code>gateway</Code>", status)) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        store = MlflowStore(uri, unique())
        with pytest.raises(ServiceUnreachable, match=r"does not|denied access") as raised:
            store.start_run(PARENT)
        with pytest.raises(TrackingError, match="does not speak TLS: write http://"):
            get(uri.replace("http:", "https:"), "/health")
    if status == 404:  # which is not MLflow's: one line about the address
        (line,) = str(raised.value).splitlines()
        assert "address in MLFLOW_TRACKING_URI" in line
        assert "experiments/get-by-name (404)" in line


@pytest.mark.parametrize(
    ("experiment_answer", "expected"), [(200, TrackingError), (500, ServiceUnreachable)]
)
def test_a_server_that_fails_at_one_request_only_makes_that_record_the_fault(
    experiment_answer: int, expected: type[Exception]
) -> None:
    broken = False

    def answer(asked: Asked) -> Answer:
        nonlocal broken
        if "/experiments/" in asked.path and (not broken or experiment_answer == 200):
            experiment = {"experiment_id": "1", "name": "x", "lifecycle_stage": "active"}
            return Answer({"experiment": experiment})
        if "/runs/search" in asked.path:
            return Answer({})
        broken = True
        return Answer({"error_code": "INTERNAL_ERROR", "message": "boom"}, 500)

    with answering(answer) as uri, pytest.raises(expected):
        MlflowStore(uri, unique()).start_run(PARENT)


def optunas(file: Path, _: NewDatabase) -> None:
    with closing(sqlite3.connect(file)) as connection:
        for table in ("studies", "trials"):
            connection.execute(f"CREATE TABLE {table} (number INTEGER)")


def text(file: Path, _: NewDatabase) -> None:
    file.write_text("not a database, but long enough to look like one " * 50)


def old(file: Path, new_database: NewDatabase) -> None:
    Path(new_database().removeprefix("sqlite:///")).rename(file)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
        connection.commit()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (optunas, "is Optuna's: MLflow needs"),
        (text, "cannot be used: file is not a database"),
        (old, "mlflow db upgrade"),
    ],
)
def test_a_file_that_is_no_database_of_this_mlflow_is_not_taken(
    new_database: NewDatabase, tmp_path: Path, make: Callable[[Path, NewDatabase], None], words: str
) -> None:
    make(tmp_path / "mlflow.db", new_database)
    with pytest.raises(TrackingError, match=words):
        MlflowStore(f"sqlite:///{tmp_path / 'mlflow.db'}", unique()).check()


BOTH = """
import os, sys
import mlflow.store.tracking.sqlalchemy_store
from carft_sweep.tracking.store.mlflow_store import MlflowStore
from carft_sweep.tracking.store.base import RunKey, RunStart
child = os.fork()
store = MlflowStore(sys.argv[1], "shared")
store.start_run(RunStart(RunKey("a" if child else "b"), "n", 1))
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_two_processes_may_create_the_database_at_once(tmp_path: Path) -> None:
    uri, folder = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}", tmp_path / "new"
    (folder / ".mlflow.db.new-1").mkdir(parents=True)
    command = [sys.executable, "-c", BOTH, uri]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=240, check=False)
    assert (done.returncode, done.stderr) == (0, "")  # no log of migrations on the terminal
    assert len(all_runs(uri, "shared")) == 2
    assert sorted(path.name for path in folder.iterdir()) == ["mlflow.db", "mlflow.db.lock"]


@given(st.lists(st.text(max_size=3).map(lambda text: text * 2000), max_size=40), st.integers(1, 9))
def test_nothing_is_lost_and_the_order_stays(texts: list[str], most: int) -> None:
    tags = [RunTag(str(number), text) for number, text in enumerate(texts)]
    made = list(batches(tags, most))
    assert [tag for batch in made for tag in batch] == tags
    assert all(0 < len(batch) <= most for batch in made)


def test_requests_of_the_longest_names_and_values_fit() -> None:
    metrics = [MlflowMetric("ü" * 250, 1 / 3, 1_790_000_000_000, step) for step in range(METRICS)]
    tags = [RunTag("ü" * 250, "ü" * 5000) for _ in range(TAGS)]
    for made in (list(batches(metrics, METRICS)), list(batches(tags, TAGS))):
        assert len(made) > 1
        for batch in made:
            request = json.dumps([dict(entry) for entry in batch], indent=2)
            assert len(request) < MAX_BATCH_LOG_REQUEST_SIZE
    short = [MlflowMetric("train/loss", 1 / 3, 1_790_000_000_000, step) for step in range(METRICS)]
    assert len(list(batches(short, METRICS))) == 1


WRITER = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 1")  # so that the transaction reaches the file
connection.execute("BEGIN IMMEDIATE")
for number in range(2000):
    connection.execute("INSERT INTO things VALUES (?)", ("x" * 500,))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_transaction_cut_off_is_rolled_back_and_the_database_answers(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE things (value TEXT)")
        done = subprocess.run([sys.executable, "-c", WRITER, str(file)], check=False, timeout=60)
        assert done.returncode == -signal.SIGKILL
    assert file.with_name("mlflow.db-journal").stat().st_size > 0
    check_reachable(f"sqlite:///{file}")
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT count(*) FROM things").fetchone() == (0,)


class Killed(BaseException):
    """The process ends here."""


def test_a_database_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(*_: object, **__: object) -> None:
        assert [*tmp_path.glob(".mlflow.db.new-*/mlflow.db")]
        raise Killed

    store = MlflowStore(f"sqlite:///{tmp_path / 'mlflow.db'}", "x", tmp_path / "artifacts")
    monkeypatch.setattr(MlflowClient, "search_experiments", cut_off)
    with pytest.raises(Killed):
        store.check()
    assert not (tmp_path / "mlflow.db").exists()


FOLDERS = ("./mlruns", "mlruns", "/srv/mlruns", "file:///srv/mlruns")
WRONG = ("h:abc", "h:99999", "[::1", "ada:12/cret@h", "ada:s@e/cret@h")


@pytest.mark.parametrize("uri", [*FOLDERS, *(f"http://{rest}" for rest in WRONG)])
def test_folders_and_wrong_addresses_are_refused_without_a_password(uri: str) -> None:
    is_folder = rf"^{uri} is a folder of files, .* sqlite:///"
    message = is_folder if uri in FOLDERS else "is no address of a server.*write %2F for /"
    with pytest.raises(TrackingError, match=message) as raised:
        check_reachable(uri)
    assert "cret@" not in str(raised.value)

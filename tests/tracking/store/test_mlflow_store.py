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
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Metric as MlflowMetric
from mlflow.entities import RunTag
from mlflow.utils.validation import MAX_BATCH_LOG_REQUEST_SIZE

from carft_sweep.tracking.errors import ServiceUnreachable, TrackingError
from carft_sweep.tracking.location import home_id
from carft_sweep.tracking.ownership import SHARED_HOMES_VARIABLE
from carft_sweep.tracking.store.base import GROUP, Kind, Metric, RunKey, RunStart, RunsView
from carft_sweep.tracking.store.mlflow_client import check_reachable
from carft_sweep.tracking.store.mlflow_pages import SWEEPS, VIEW, runs_page
from carft_sweep.tracking.store.mlflow_store import METRICS, TAGS, MlflowStore, batches
from tests.services.answering import Answer, Asked, answering
from tests.tracking.conftest import NewDatabase
from tests.tracking.store.test_mlflow_pages import state_of
from tests.tracking.subjects import all_runs

SWEEP = RunKey("kl_weight")
NOW = 1_790_000_000_000
PARENT = RunStart(SWEEP, "kl_weight", NOW)


def child(number: int) -> RunStart:
    return RunStart(RunKey("kl_weight", f"{number:064x}"), f"run {number}", NOW, parent=SWEEP)


def unique() -> str:
    return f"test-{uuid.uuid4().hex}"


def test_a_link_in_a_description_leads_to_the_artifact_on_mlflows_pages(
    new_database: NewDatabase,
) -> None:
    uri, name = new_database(), unique()
    store = MlflowStore(uri, name)
    store.start_run(PARENT)
    text = (
        "See [the page](artifact:report.html), ![a chart](artifact:id_ood.png) "
        "and [the site](https://example.org)."
    )
    store.set_tags(SWEEP, {"mlflow.note.content": text, "carft.note": text})
    (run,) = all_runs(uri, name)
    run_id = run.info.run_id
    page = f"#/experiments/{run.info.experiment_id}/runs/{run_id}/artifacts/report.html"
    linked = (
        f"See [the page]({page}?workflowType=machine_learning), "
        f"![a chart](get-artifact?run_uuid={run_id}&path=id_ood.png) "
        "and [the site](https://example.org)."
    )
    assert run.data.tags["mlflow.note.content"] == linked
    assert run.data.tags["carft.note"] == text
    client = MlflowClient(uri)
    store.set_tags(SWEEP, {"mlflow.note.content": "newer"})
    client.set_tag(run_id, "mlflow.note.content", "a note of mine")
    client.update_run(run_id, name="my name")
    store.set_tags(SWEEP, {"mlflow.note.content": "newest"})
    store.start_run(replace(PARENT, tags={"mlflow.note.content": "begun again"}))
    (run,) = all_runs(uri, name)
    assert (run.info.run_name, run.data.tags["mlflow.note.content"]) == (
        "my name",
        "a note of mine",
    )
    newest = replace(PARENT, params={"p": 2}, tags={"mlflow.note.content": "x"}, replaces=True)
    store.start_run(newest)
    (run,) = all_runs(uri, name)
    assert run.info.run_id != run_id
    assert (run.info.run_name, run.data.tags["mlflow.note.content"]) == (
        "my name",
        "a note of mine",
    )


@pytest.mark.parametrize(("shared", "mode"), [(False, 0o700), (True, 0o755)])
def test_artifacts_are_their_owners_alone_unless_the_home_is_shared(
    new_database: NewDatabase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shared: bool,
    mode: int,
) -> None:
    monkeypatch.setenv(SHARED_HOMES_VARIABLE, str(tmp_path / "home") if shared else "")
    before = os.umask(0o022)
    try:
        home_id(tmp_path / "home")
        store = MlflowStore(new_database(), unique(), tmp_path / "home" / "mlartifacts")
        store.start_run(PARENT)
        store.log_artifact(SWEEP, tmp_path / "home" / "id")
    finally:
        os.umask(before)
    for folder in (tmp_path / "home", tmp_path / "home" / "mlartifacts"):
        assert folder.stat().st_mode & 0o777 == mode


def test_a_description_makes_no_browser_load_anything(new_database: NewDatabase) -> None:
    uri, name = new_database(), unique()
    store = MlflowStore(uri, name)
    hostile = (
        "![](http://evil.example/a) ![x][1] ![a ![b](artifact:id_ood.png)](http://evil.example/c) "
        '<img src="http://evil.example/d"> <iframe src="http://evil.example/e"> p < 0.05'
    )
    harmless = (
        "!\\[](http://evil.example/a) !\\[x][1] !\\[a ![b](SOURCE)](http://evil.example/c) "
        '&lt;img src="http://evil.example/d"> &lt;iframe src="http://evil.example/e"> p &lt; 0.05'
    )
    store.start_run(replace(PARENT, tags={"mlflow.note.content": hostile}))
    (run,) = all_runs(uri, name)
    begun = run.data.tags["mlflow.note.content"]
    assert begun == harmless.replace("SOURCE", "artifact:id_ood.png")
    store.set_tags(SWEEP, {"mlflow.note.content": hostile})
    (run,) = all_runs(uri, name)
    source = f"get-artifact?run_uuid={run.info.run_id}&path=id_ood.png"
    assert run.data.tags["mlflow.note.content"] == harmless.replace("SOURCE", source)


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
    client, run_id = MlflowClient(uri), store.run_id(SWEEP)
    by_name = client.get_experiment_by_name(name)
    assert by_name is not None
    tags = by_name.tags
    views = {key.removeprefix(VIEW): text for key, text in tags.items() if key.startswith(VIEW)}
    wanted = {SWEEPS: [SWEEP, arm], f"{run_id}": [arm, other], f"{run_id}-runs": [child(1).key]}
    assert views.keys() == wanted.keys()
    experiment = store.experiment()
    assert experiment is not None
    for view, keys in wanted.items():
        runs = client.search_runs([experiment], state_of(views[view])["searchFilter"])
        assert {run.info.run_id for run in runs} == {store.run_id(key) for key in keys}
    store.remove_sweep(SWEEP.sweep)
    tags = client.get_experiment(experiment).tags
    assert {key for key in tags if key.startswith(VIEW)} == {f"{VIEW}{SWEEPS}"}


def test_the_description_of_the_experiment_leads_to_the_sweeps_unless_it_has_one(
    new_database: NewDatabase,
) -> None:
    uri = new_database()
    view = RunsView("Sweeps", "sweep", ["n"])
    client = MlflowClient(uri)
    for own in ("", "Ada's own words"):
        store = MlflowStore(uri, unique(), home="mine")
        store.start_run(PARENT)
        experiment = store.experiment()
        assert experiment is not None
        if own:
            client.set_experiment_tag(experiment, "mlflow.note.content", own)
        store.keep_view(view, SWEEP, timestamp=NOW)
        description = client.get_experiment(experiment).tags["mlflow.note.content"]
        (line,) = description.splitlines()
        assert line == own or f"({runs_page(experiment, SWEEPS)})" in line


def test_another_process_takes_up_the_same_runs(new_database: NewDatabase) -> None:
    uri, experiment = new_database(), unique()
    first = MlflowStore(uri, experiment)
    first.start_run(PARENT)
    first.start_run(child(1))
    second = MlflowStore(uri, experiment)
    second.start_run(child(1))  # its parent is found by its tags
    second.end_run(SWEEP, "finished", timestamp=NOW + 1)
    assert second.run_id(child(1).key) == first.run_id(child(1).key)
    assert second.run_id(SWEEP) == first.run_id(SWEEP)
    assert len(all_runs(uri, experiment)) == 2


def test_homes_that_share_a_server_keep_their_sweeps_apart(new_database: NewDatabase) -> None:
    uri, experiment = new_database(), unique()
    stores = [MlflowStore(uri, experiment, home=home) for home in ("mine", "yours", "mine")]
    for store in stores:
        store.start_run(PARENT)
    mine, yours, again = (store.run_id(SWEEP) for store in stores)
    assert mine == again != yours


def test_the_environment_of_another_run_does_not_hijack_ours(
    new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, experiment = new_database(), unique()
    client = MlflowClient(uri)
    foreign = client.create_run(client.create_experiment("foreign"))
    monkeypatch.setenv("MLFLOW_RUN_ID", foreign.info.run_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", foreign.info.experiment_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "foreign")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    store = MlflowStore(uri, experiment)
    store.start_run(PARENT)
    store.start_run(child(1))
    store.log_metrics(child(1).key, [Metric("m", 1.0, 0, NOW)])
    untouched = client.get_run(foreign.info.run_id)
    assert untouched.data.metrics == {}
    assert untouched.info.status == "RUNNING"
    assert len(all_runs(uri, experiment)) == 2


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


def test_a_verb_for_a_run_never_opened_is_a_mistake(
    new_database: NewDatabase, tmp_path: Path
) -> None:
    store = MlflowStore(new_database(), unique())
    with pytest.raises(TrackingError, match="never opened"):
        store.set_tags(SWEEP, {"a": "b"})
    with pytest.raises(TrackingError, match="never opened"):
        store.start_run(child(1))
    store.start_run(PARENT)
    with pytest.raises(TrackingError, match="No such file"):
        store.log_artifact(SWEEP, tmp_path / "missing")


def test_nobody_there_is_said_at_once() -> None:
    store = MlflowStore("http://user:secret@127.0.0.1:9", unique())
    start = time.monotonic()
    with pytest.raises(ServiceUnreachable) as caught:
        store.start_run(PARENT)
    assert time.monotonic() - start < 10
    assert "127.0.0.1:9" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("status", [401, 403, 404, 408, 429, 500, 502, 503, 504])
def test_an_answer_that_may_be_better_later_is_no_fault_of_the_record(status: int) -> None:
    with (
        answering(lambda _: Answer("<html>gateway</html>", status)) as uri,
        pytest.raises(ServiceUnreachable, match=r"does not|denied access"),
    ):
        MlflowStore(uri, unique()).start_run(PARENT)


def test_a_404_that_is_not_mlflows_is_one_line_about_the_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with answering(lambda _: Answer("<Error>\n<Code>NoSuchBucket</Code>", 404)) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        store = MlflowStore(uri, unique())
        with pytest.raises(ServiceUnreachable, match="address in MLFLOW_TRACKING_URI") as said:
            store.start_run(PARENT)
    assert "experiments/get-by-name (404)" in str(said.value)
    assert "\n" not in str(said.value)


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


def test_optunas_database_is_not_taken(tmp_path: Path) -> None:
    file = tmp_path / "optuna.db"
    connection = sqlite3.connect(file)
    for table in ("studies", "trials"):
        connection.execute(f"CREATE TABLE {table} (number INTEGER)")
    connection.close()
    with pytest.raises(TrackingError, match="is Optuna's: MLflow needs"):
        MlflowStore(f"sqlite:///{file}", unique()).check()


def test_a_file_of_another_kind_is_not_taken(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    file.write_text("not a database, but long enough to look like one " * 50)
    with pytest.raises(TrackingError, match="cannot be used: file is not a database"):
        MlflowStore(f"sqlite:///{file}", unique()).check()


def test_an_old_schema_is_named_with_its_remedy(new_database: NewDatabase) -> None:
    uri = new_database()
    connection = sqlite3.connect(uri.removeprefix("sqlite:///"))
    connection.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    connection.commit()
    connection.close()
    with pytest.raises(TrackingError, match="mlflow db upgrade"):
        MlflowStore(uri, unique()).check()


def test_two_processes_may_create_the_database_at_once(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    code = (
        "import sys; from carft_sweep.tracking.store.mlflow_store import MlflowStore\n"
        "from carft_sweep.tracking.store.base import RunKey, RunStart\n"
        "store = MlflowStore(sys.argv[1], 'shared')\n"
        "store.start_run(RunStart(RunKey(sys.argv[2]), 'n', 1))\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, uri, name], stderr=subprocess.PIPE, text=True)
        for name in ("a", "b")
    ]
    for process in started:
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said
        assert said == ""  # no log of migrations on the user's terminal
    assert len(all_runs(uri, "shared")) == 2


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


def test_a_transaction_that_was_cut_off_is_rolled_back_and_the_database_answers(
    tmp_path: Path,
) -> None:
    file = tmp_path / "mlflow.db"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE things (value TEXT)")
    connection.close()
    done = subprocess.run([sys.executable, "-c", WRITER, str(file)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert file.with_name("mlflow.db-journal").stat().st_size > 0
    check_reachable(f"sqlite:///{file}")
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT count(*) FROM things").fetchone() == (0,)
    connection.close()


class Killed(BaseException):
    """The process ends here."""


def test_a_database_is_there_only_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = MlflowClient.search_experiments

    def cut_off(*_: object, **__: object) -> None:
        raise Killed

    store = MlflowStore(f"sqlite:///{tmp_path / 'mlflow.db'}", "x", tmp_path / "artifacts")
    monkeypatch.setattr(MlflowClient, "search_experiments", cut_off)
    with pytest.raises(Killed):
        store.check()
    assert not (tmp_path / "mlflow.db").exists()
    (tmp_path / ".mlflow.db.new-1").mkdir()
    monkeypatch.setattr(MlflowClient, "search_experiments", real)
    store.check()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]


@pytest.mark.parametrize("uri", ["./mlruns", "mlruns", "/srv/mlruns", "file:///srv/mlruns"])
def test_a_folder_of_files_is_refused_with_what_to_name_instead(uri: str) -> None:
    with pytest.raises(TrackingError, match=rf"^{uri} is a folder of files, .* sqlite:///"):
        check_reachable(uri)


@pytest.mark.parametrize("rest", ["h:abc", "h:99999", "[::1", "ada:12/cret@h", "ada:s@e/cret@h"])
def test_an_address_that_is_none_is_refused_without_its_password(rest: str) -> None:
    with pytest.raises(
        TrackingError, match=r"is no address of a server.*write %2F for /"
    ) as raised:
        check_reachable(f"http://{rest}")
    assert "cret@" not in str(raised.value)


def test_a_run_whose_answer_was_lost_is_not_opened_a_second_time(new_database: NewDatabase) -> None:
    uri, experiment = new_database(), unique()
    MlflowStore(uri, experiment).start_run(PARENT)
    (run,) = all_runs(uri, experiment)
    client = MlflowClient(uri)
    twin = client.create_run(
        run.info.experiment_id, start_time=NOW + 5, tags={"carft.kind": "sweep", **run.data.tags}
    )
    store = MlflowStore(uri, experiment)
    store.start_run(PARENT)
    assert store.run_id(SWEEP) == run.info.run_id != twin.info.run_id


def test_a_name_that_mlflows_filters_cannot_hold_is_refused(new_database: NewDatabase) -> None:
    with pytest.raises(TrackingError, match="quotes"):
        MlflowStore(new_database(), unique()).start_run(replace(PARENT, key=RunKey("a'b\"c")))

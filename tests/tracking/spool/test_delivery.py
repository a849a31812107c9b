"""How records get to the store: merged, in their order, and past one that is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.tracking.spool.troubled import CHILD, NOW, PARENT, RUN, SWEEP, Troubled, loss
from tracking.errors import RequestFailed, TrackingError
from tracking.journal import Journal, known_run_ids
from tracking.spool import TRIES, Delivery, Spool
from tracking.store.base import Metric, RunKey, RunStart


def test_metrics_of_a_run_are_merged_and_keep_their_place(folder: Path, store: Troubled) -> None:
    spool = Spool(store, folder, pace=30)
    spool.open(PARENT)
    spool.open(CHILD)
    for step in range(500):
        spool.metrics(RUN, [loss(step)])
        spool.metrics(SWEEP, [loss(step)])
    spool.end(RUN, "finished", timestamp=NOW)
    assert spool.flush(10)
    spool.close()
    assert store.calls == 5  # two opened, two batches, one ended
    assert [point.step for point in store.runs[RUN].history["train/loss"]] == list(range(500))
    assert store.runs[RUN].state == "finished"


def test_opens_and_ends_are_on_the_disk_before_they_return(
    folder: Path, store: Troubled, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(store, folder, pace=30)
    spool.take_up("s")
    synced = 0
    real = os.fsync

    def fsync(file: int) -> None:
        nonlocal synced
        synced += 1
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    spool.open(PARENT)
    assert synced == 1
    spool.metrics(SWEEP, [loss(0)])
    assert synced == 1
    spool.end(SWEEP, "finished", timestamp=NOW)
    assert synced == 2
    spool.close()


def test_a_refused_record_is_set_aside_alone(spool: Spool, store: Troubled, folder: Path) -> None:
    spool.open(PARENT)
    spool.metrics(SWEEP, [loss(0)])
    spool.metrics(SWEEP, [Metric("poison", 1.0, 0, NOW)])
    spool.metrics(SWEEP, [Metric("bug", 1.0, 0, NOW)])
    spool.metrics(SWEEP, [loss(1)])
    spool.tags(RunKey("s", "never opened"), {"a": "b"})
    spool.tags(SWEEP, {"after": "it"})
    assert spool.flush(10)
    assert set(store.runs[SWEEP].history) == {"train/loss"}
    assert len(store.runs[SWEEP].history["train/loss"]) == 2
    assert store.runs[SWEEP].tags["after"] == "it"
    assert spool.rejected() == 3
    lines = (folder / "s.rejected.jsonl").read_text().splitlines()
    reasons = [json.loads(line)["reason"] for line in lines]
    assert sorted(reasons) == [
        "KeyError: 'bug'",
        "poisonous",
        "run never opened of sweep 's' was never opened",
    ]
    assert any("poison" in json.loads(line)["record"] for line in lines)


def test_a_record_that_may_not_be_at_fault_is_tried_again(
    spool: Spool, store: Troubled, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[Exception] = [AttributeError("odd"), RequestFailed("bad request")] * 2
    real = store.open

    def stumble(start: RunStart) -> None:
        if errors:
            raise errors.pop()
        real(start)

    monkeypatch.setattr(store, "open", stumble)
    spool.open(PARENT)
    spool.metrics(SWEEP, [loss(0)])
    assert spool.flush(10)
    assert spool.rejected() == 0
    assert set(store.runs[SWEEP].history) == {"train/loss"}


def test_a_bad_request_that_stays_one_is_set_aside(
    spool: Spool, store: Troubled, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = 0

    def refuse(*_: object) -> None:
        nonlocal tried
        tried += 1
        raise RequestFailed("bad request")

    monkeypatch.setattr(store, "metrics", refuse)
    spool.open(PARENT)
    spool.metrics(SWEEP, [loss(0)])
    spool.tags(SWEEP, {"after": "it"})
    assert spool.flush(10)
    assert tried == TRIES
    assert spool.rejected() == 1
    assert store.runs[SWEEP].tags == {"after": "it"}


@pytest.mark.parametrize("error", [AttributeError("odd"), TrackingError("odd")])
def test_a_run_whose_open_is_refused_is_set_aside_whole(
    spool: Spool,
    store: Troubled,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    tried, real = 0, store.open

    def refuse(start: RunStart) -> None:
        nonlocal tried
        if start.key == RUN:
            tried += 1
            raise error
        real(start)

    monkeypatch.setattr(store, "open", refuse)
    spool.open(PARENT)
    spool.open(CHILD)
    spool.metrics(RUN, [loss(0)])
    spool.metrics(RUN, [loss(1)])
    spool.end(RUN, "finished", timestamp=NOW)
    spool.open(RunStart(RunKey("s", "below"), "below", NOW, parent=RUN))
    spool.tags(SWEEP, {"after": "it"})
    assert spool.flush(10)
    assert tried == TRIES  # what made it fail may have passed
    assert store.runs[SWEEP].tags == {"after": "it"}
    assert spool.rejected() == 5
    assert spool.rejected_files() == [folder / "s.rejected.jsonl"]
    lines = (folder / "s.rejected.jsonl").read_text().splitlines()
    assert all("odd" in json.loads(line)["reason"] for line in lines)


def test_run_ids_are_known_without_the_store(folder: Path, spool: Spool) -> None:
    spool.open(PARENT)
    spool.open(CHILD)
    assert spool.flush(10)
    assert spool.run_id(RUN) == f"s/{RUN.digest}"
    spool.close()
    assert known_run_ids(folder, "s") == {"": "s/", RUN.digest: f"s/{RUN.digest}"}
    assert known_run_ids(folder, "other") == {}


def test_delivery_stops_when_it_is_told(folder: Path, store: Troubled) -> None:
    delivery = Delivery(store, Journal(folder, "s"))
    for number in range(4):
        delivery.add({"verb": "tags", "key": ("s", str(number)), "values": {}}, durable=False)
    answers = iter([False, False, True, True])
    delivery.deliver(lambda: next(answers))
    assert delivery.behind == 3
    delivery.journal.close()


def test_a_small_file_is_kept_as_it_was_when_told(
    spool: Spool, folder: Path, store: Troubled, tmp_path: Path
) -> None:
    away = True
    store.away = lambda: away
    spool.open(PARENT)
    file = tmp_path / "config.json"
    for content, below in (("old", "first"), ("new", "")):
        file.write_text(content)
        spool.artifact(SWEEP, file, folder=below)
    file.unlink()
    away = False
    assert spool.flush(10)
    kept = {"first/config.json": b"old", "config.json": b"new"}
    assert store.runs[SWEEP].artifacts == kept
    spool.close()
    assert not (folder / "s.files").exists()


def test_a_large_file_is_read_when_it_is_delivered_and_a_missing_one_told_of(
    spool: Spool, store: Troubled, tmp_path: Path
) -> None:
    away = True
    store.away = lambda: away
    spool.open(PARENT)
    grows, goes = tmp_path / "log.txt", tmp_path / "weights.bin"
    for file in (grows, goes):
        file.write_bytes(b"x" * 1_000_000)
        spool.artifact(SWEEP, file)
    spool.artifact(SWEEP, tmp_path / "never")
    grows.write_bytes(b"y" * 1_000_001)
    goes.unlink()
    away = False
    assert spool.flush(10)
    run = store.runs[SWEEP]
    assert run.artifacts == {"log.txt": b"y" * 1_000_001}
    assert run.tags["carft.artifact_missing.weights.bin"] == str(goes)
    assert run.tags["carft.artifact_missing.never"] == str(tmp_path / "never")

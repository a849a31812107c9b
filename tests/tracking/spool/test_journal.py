"""The journal's files: torn, damaged, lost, full, and of one process only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tracking.spool.troubled import PARENT, SWEEP, OneThread, Troubled, loss
from tracking import journal as journals
from tracking.journal import Journal, SpoolBusy, records_behind, sweeps_behind
from tracking.spool import Spool
from tracking.store.memory_store import MemoryTracker


def test_a_damaged_line_is_set_aside_and_the_others_arrive(folder: Path, store: Troubled) -> None:
    spool = OneThread(store, folder)
    spool.open(PARENT)
    spool.tags(SWEEP, {"first": "1"})
    spool.abandon()
    with (folder / "s.jsonl").open("ab") as file:
        file.write(b'\x00\xff\n["no record"]\n{"verb":"fly"}\n{"verb":"tags"}\n{"verb":"to')
    again = Spool(store, folder, pace=0.01)
    again.take_up("s")
    again.tags(SWEEP, {"second": "2"})
    assert again.flush(10)
    assert again.rejected() == 4
    again.close()
    assert store.runs[SWEEP].tags == {"first": "1", "second": "2"}


@pytest.mark.parametrize("left", [None, "", "{", '{"acknowledged": 10000000, "runs": {}}'])
def test_a_position_that_is_lost_or_wrong_does_no_harm(
    folder: Path, store: Troubled, left: str | None
) -> None:
    spool = OneThread(store, folder)
    spool.open(PARENT)
    spool.metrics(SWEEP, [loss(0)])
    spool.deliver()
    spool.abandon()
    before = store.runs[SWEEP].history["train/loss"].copy()
    position = folder / "s.position"
    position.unlink() if left is None else position.write_text(left)
    again = Spool(store, folder, pace=0.01)
    again.take_up("s")
    again.metrics(SWEEP, [loss(1)])
    assert again.flush(10)
    again.close()
    history = store.runs[SWEEP].history["train/loss"]
    assert history[: len(before)] == before
    assert len(history) == len(before) + 1


def test_a_crash_between_the_two_steps_of_compacting_does_no_harm(
    folder: Path, store: Troubled, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(store, folder, pace=0.01)
    spool.open(PARENT)
    assert spool.flush(10)
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", lambda *_: None)
        spool.close()
    assert (folder / "s.jsonl").stat().st_size > 0
    assert sweeps_behind(folder) == ["s"]  # all of it is delivered again
    again = Spool(store, folder, pace=0.01)
    again.tags(SWEEP, {"a": "b"})
    assert again.flush(10)
    again.close()
    assert store.runs[SWEEP].tags == {"a": "b"}
    assert sweeps_behind(folder) == []


def test_two_crashes_after_a_journal_was_cut_lose_nothing(folder: Path) -> None:
    """A power failure may cut the journal, whose metrics are not synced, and keep the position."""
    folder.mkdir()
    (folder / "s.jsonl").touch()
    (folder / "s.position").write_text('{"acknowledged": 10000, "runs": {}}')
    journal = Journal(folder, "s")
    journal.append('{"verb":"open"}', durable=True)
    journal.close()  # killed before anything is delivered
    assert records_behind(folder, "s") == 1
    journal = Journal(folder, "s")
    assert [line.text for line in journal.read()] == ['{"verb":"open"}']
    journal.close()


def test_a_line_longer_than_a_chunk_is_read_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "_CHUNK", 16)
    monkeypatch.setattr(journals, "_READ", 16)
    journal = Journal(folder, "s")
    told = ["short", "long" * 50, "", "ü" * 9, "end"]
    for text in told:
        journal.append(text, durable=False)
    read = []
    assert journal.is_full
    while lines := journal.read():
        read += [line.text for line in lines]
    assert read == told
    assert not journal.is_full
    assert journal.count_waiting() == len(told)
    journal.close()
    with (folder / "s.jsonl").open("a") as file:
        file.write("torn" * 20)
    journal = Journal(folder, "s")
    assert journal.count_waiting() == len(told)
    journal.close()


def test_a_full_disk_leaves_the_journal_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(folder, "s")
    journal.append("one", durable=False)
    real = os.write

    def write(file: int, data: bytes) -> int:
        if len(data) < 5:
            raise OSError(28, "No space left on device")
        return real(file, data[:3])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(OSError, match="No space"):
            journal.append("a longer one", durable=False)
    journal.append("two", durable=False)
    assert [line.text for line in journal.read()] == ["one", "two"]
    journal.close()


def test_any_name_of_a_sweep_has_its_own_file(folder: Path) -> None:
    for sweep in ("a/b", "a b", "a.rejected", "ü", "..", "%2F"):
        journal = Journal(folder, sweep)
        journal.append("{}", durable=False)
        journal.close()
    assert set(sweeps_behind(folder)) == {"a/b", "a b", "a.rejected", "ü", "..", "%2F"}
    assert all(file.parent == folder for file in folder.rglob("*"))


def test_a_second_process_is_refused_and_told_who_has_it(folder: Path, store: Troubled) -> None:
    code = (
        "import sys; from pathlib import Path; from tracking.journal import Journal\n"
        f"journal = Journal(Path({str(folder)!r}), 's'); print('ready', flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdout.readline()
        spool = Spool(store, folder, pace=0.01)
        with pytest.raises(SpoolBusy, match=f"process {other.pid}"):
            spool.take_up("s")
        spool.take_up("another sweep")
        other.stdin.close()
        other.wait(10)
        spool.take_up("s")
        spool.close()


def test_two_spools_of_one_process_do_not_share_a_journal(spool: Spool, folder: Path) -> None:
    spool.take_up("s")
    second = Spool(MemoryTracker(), folder)
    with pytest.raises(SpoolBusy, match=str(os.getpid())):
        second.take_up("s")
    second.close()

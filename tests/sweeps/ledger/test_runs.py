"""A run's state survives any crash, and one claimant at a time works on it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.files import write_json
from carft_sweep.sweeps.ledger.claim import DRIVER, Claim, holder
from carft_sweep.sweeps.ledger.runs import (
    FILE,
    SILENCE,
    Lease,
    RunState,
    RunStore,
    measured,
    process_start,
)
from carft_sweep.tracking.comparison.runs import UNMERGED

DIGEST, OTHER = "ab" * 32, "cd" * 32


@pytest.fixture
def runs(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs")


def known(runs: RunStore) -> RunState:
    state = runs.read(DIGEST)
    assert state is not None
    return state


def lease(**changes: Any) -> Lease:
    return replace(Lease.mine(), **changes)


def test_a_run_is_taken_counted_and_ended(runs: RunStore) -> None:
    assert runs.read(DIGEST) is None
    assert runs.acquire(DIGEST, "car_ft seed 0", "toy")
    runs.release(DIGEST, "failed", {"kind": "crashed", "message": "m", "log_tail": ""})
    assert runs.acquire(DIGEST, "car_ft seed 0", "other")
    runs.release(DIGEST, "done")
    state = known(runs)
    assert (state.state, state.attempts, state.sweep) == ("done", 2, "toy")
    assert (state.lease, state.failure) == (None, None)
    assert state.ended is not None
    assert state.created <= state.ended
    assert list(runs.digests()) == [DIGEST]


def test_two_processes_never_both_take_a_run(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path\n"
        "from carft_sweep.sweeps.ledger.runs import RunStore\n"
        "runs = RunStore(Path(sys.argv[1]))\n"
        "while not (runs.path / 'go').exists(): pass\n"
        "won = [n for n in range(20) if runs.acquire(f'{n:064x}', 'a', 'toy')]\n"
        "print(*won, flush=True); sys.stdin.read()\n"
    )
    command, pipe = [sys.executable, "-c", script, str(tmp_path)], subprocess.PIPE
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    takers = [
        subprocess.Popen(command, env=environ, stdin=pipe, stdout=pipe, text=True) for _ in range(2)
    ]
    (tmp_path / "go").touch()
    lines = [taker.stdout.readline().split() for taker in takers if taker.stdout]
    for taker in takers:
        taker.communicate("")
    assert sorted(int(n) for line in lines for n in line) == list(range(20))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_lease_lives_as_long_as_its_process_or_elsewhere_as_it_is_renewed() -> None:
    assert lease().is_live()
    assert not lease(born="1").is_live(), "the process id is used again"
    assert process_start(os.getpid()) is not None
    assert process_start(2**22 + 1) is None
    # Where its clock was ahead, and the host is gone, nothing else would ever make it void.
    for ago, is_live in ((SILENCE - 5, True), (SILENCE + 5, False), (-86_400, False)):
        elsewhere = lease(host="elsewhere", pid=1, renewed=time.time() - ago)
        assert elsewhere.is_live() == is_live


def test_a_reused_process_id_is_noticed_on_a_system_without_proc(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def without_proc(self: Path, encoding: str) -> str:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{self} {encoding}")

    monkeypatch.setattr(Path, "read_text", without_proc)
    born = process_start(os.getpid())
    assert born is not None
    assert lease(born=born).is_live()
    assert not lease(born="1").is_live(), "the process id is used again"
    assert process_start(2**22 + 1) is None


def test_a_renewal_is_written_only_by_its_owner_and_not_too_often(
    runs: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.acquire(DIGEST, "a", "toy")
    file = runs.folder(DIGEST) / FILE
    before = file.read_text()
    runs.renew()
    assert file.read_text() == before
    now = time.time()
    monkeypatch.setattr("carft_sweep.sweeps.ledger.runs.time.time", lambda: now + 11)
    RunStore(runs.path).renew()
    assert file.read_text() == before
    runs.renew()
    assert json.loads(file.read_text())["lease"]["renewed"] >= now + 11
    monkeypatch.setattr("carft_sweep.sweeps.ledger.runs.time.time", lambda: now - 86_400)
    runs.renew()
    assert json.loads(file.read_text())["lease"]["renewed"] == now - 86_400
    runs.release(DIGEST, "stopped")
    runs.renew()
    assert json.loads(file.read_text())["lease"] is None


def test_the_claims_of_runs_are_renewed_however_long_the_driver_is_busy(
    runs: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carft_sweep.sweeps.ledger.runs.RENEW_AFTER", 0.05)
    with Claim(tmp_path / "kl_weight", renew=runs.renew):
        acquired = [runs.acquire(digest, "a", "toy") for digest in (DIGEST, OTHER)]
        until = time.monotonic() + 20
        for before in acquired:
            assert before is not None
            assert before.lease is not None
            while (now := runs.read(before.digest)) is None or now.lease == before.lease:
                assert time.monotonic() < until, "nobody renewed the claim"
                time.sleep(0.01)


def test_renewing_a_claim_never_undoes_what_the_driver_records_meanwhile(
    runs: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carft_sweep.sweeps.ledger.runs.RENEW_AFTER", 0.0)
    over = threading.Event()

    def renew() -> None:
        while not over.is_set():
            runs.renew()

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        for attempt in range(1, 101):
            assert runs.acquire(DIGEST, "a", "toy")
            runs.begin(DIGEST, f"local:{attempt}")
            runs.release(DIGEST, "stopped")
            state = known(runs)
            assert (state.state, state.lease) == ("stopped", None)
            assert (state.attempts, state.worker) == (attempt, f"local:{attempt}")
    finally:
        over.set()
        thread.join()


def test_what_is_trained_again_replaces_the_old_only_when_it_is_done(runs: RunStore) -> None:
    def weights() -> str:
        return (runs.folder(DIGEST) / "weights").read_text()

    runs.acquire(DIGEST, "a", "toy")
    (runs.folder(DIGEST) / "weights").write_text("old")
    measures = {"digest": DIGEST, "label": UNMERGED, "step": 0, "values": {}}
    file = runs.folder(DIGEST) / "evaluations" / UNMERGED / "metrics.json"
    write_json(file, {**measures, "metrics": {}, "facts": {}})
    runs.back_up(DIGEST)
    assert runs.read(DIGEST) is not None
    assert not (runs.folder(DIGEST) / "weights").exists()
    (runs.folder(DIGEST) / "weights").write_text("half")
    runs.back_up(DIGEST)  # the first new beginning was cut off
    (runs.folder(DIGEST) / "weights").write_text("new")
    assert runs.restore_backup(DIGEST)
    assert weights() == "old"
    assert not runs.restore_backup(DIGEST)
    runs.back_up(DIGEST)
    (runs.folder(DIGEST) / "weights").write_text("new")
    runs.release(DIGEST, "done")
    assert weights() == "new"
    assert not runs.restore_backup(DIGEST)


def test_a_sweep_is_refused_while_a_driver_here_or_elsewhere_has_it(tmp_path: Path) -> None:
    folder = tmp_path / "kl_weight"
    with Claim(folder):
        assert holder(folder) is not None
        with pytest.raises(RequestError, match=f"kl_weight is being run by process {os.getpid()}"):
            Claim(folder).__enter__()
    assert holder(folder) is None
    elsewhere = lease(host="elsewhere", pid=12)
    elsewhere.write(folder / DRIVER)
    refused = r"process 12 on elsewhere since .*: its claim ends by itself within two minutes"
    with pytest.raises(RequestError, match=refused):
        Claim(folder).__enter__()
    replace(elsewhere, renewed=time.time() - 2 * SILENCE).write(folder / DRIVER)
    with Claim(folder):
        pass


def test_a_claim_goes_on_being_renewed_when_the_clock_is_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "kl_weight"
    with Claim(folder) as claim:
        yesterday = time.time() - 86_400
        monkeypatch.setattr("carft_sweep.sweeps.ledger.runs.time.time", lambda: yesterday)
        claim.renew()
        renewed = holder(folder)
        assert renewed is not None
        assert renewed.renewed == yesterday
        (folder / DRIVER).write_text(json.dumps(asdict(lease(host="elsewhere", pid=12))))
        monkeypatch.setattr("carft_sweep.sweeps.ledger.runs.time.time", lambda: yesterday - 11)
        with pytest.raises(RequestError, match="kl_weight was taken over by"):
            claim.renew()


def test_a_claim_that_cannot_be_written_or_removed_is_let_go_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real = tmp_path / "kl_weight", Path.unlink

    def full(self: Lease, file: Path) -> None:
        del self
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    def read_only(self: Path, missing_ok: bool = False) -> None:
        if self.name == DRIVER:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        real(self, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Lease, "write", full)
        with pytest.raises(OSError, match="No space left"):
            Claim(folder).__enter__()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", read_only)
        with pytest.raises(OSError, match="of the sweep itself"), Claim(folder):
            raise OSError("of the sweep itself")
    with Claim(folder):
        assert holder(folder) is not None


@pytest.mark.parametrize("still_there", [True, False])
def test_a_driver_that_was_replaced_leaves_the_claim_to_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, still_there: bool
) -> None:
    folder = tmp_path / "kl_weight"
    file = folder / DRIVER
    successor = json.dumps(asdict(lease(host="elsewhere", pid=12))) if still_there else None
    with Claim(folder) as claim:
        now = time.time()
        monkeypatch.setattr("carft_sweep.sweeps.ledger.claim.time.time", lambda: now + 11)
        if successor is None:
            file.unlink()  # it has come and gone
        else:
            file.write_text(successor)
        with pytest.raises(RequestError, match="kl_weight was taken over by"):
            claim.renew()
    assert (file.read_text() if file.exists() else None) == successor


def test_a_claim_ends_quietly_when_its_driver_file_is_damaged(tmp_path: Path) -> None:
    folder = tmp_path / "kl_weight"
    with Claim(folder):
        (folder / DRIVER).write_text("{damage")
    assert (folder / DRIVER).read_text() == "{damage"  # kept, since it may be another driver's


def test_only_its_claimant_ends_a_run_that_another_has_taken_over(runs: RunStore) -> None:
    file = runs.folder(DIGEST) / FILE
    assert runs.acquire(DIGEST, "a", "toy")
    silent = json.loads(file.read_text())
    silent["lease"]["pid"] = 2**22 + 1
    file.write_text(json.dumps(silent))
    other = RunStore(runs.path)
    assert other.acquire(DIGEST, "a", "toy")
    for end in ("stopped", "failed", "done"):
        runs.release(DIGEST, end)
        state = known(runs)
        assert (state.state, state.lease and state.lease.owner) == ("running", other.owner)
    other.release(DIGEST, "done")
    runs.release(DIGEST, "stopped")
    assert known(runs).state == "done"


@pytest.mark.parametrize(
    "change",
    [
        {"state": "finished"},
        {"attempts": "1"},
        {"ended": "soon"},
        {"failure": {"kind": "nan"}},
        {"digest": "../../x"},
        {"digest": "cd" * 32},
        {"colour": "red"},
        {"lease": {"pid": 1}},
    ],
)
def test_a_damaged_run_file_is_named(runs: RunStore, change: dict[str, Any]) -> None:
    runs.acquire(DIGEST, "car_ft seed 0", "toy")
    file = runs.folder(DIGEST) / FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    for use in (runs.read, lambda digest: runs.release(digest, "done")):
        with pytest.raises(RequestError, match=r"run\.json"):
            use(DIGEST)
    assert not (runs.path.parent / "x").exists()


@pytest.mark.parametrize("budget", ["-1e999 epochs", "many epochs"])
def test_an_evaluation_with_a_wrong_budget_is_named(runs: RunStore, budget: str) -> None:
    file = runs.folder(DIGEST) / "evaluations" / "unmerged" / "metrics.json"
    facts = {"budget": budget}
    content = {"digest": DIGEST, "step": 1, "values": {}, "metrics": {}, "facts": facts}
    write_json(file, content)
    with pytest.raises(RequestError, match=rf"metrics\.json is damaged.*'{budget}' is no training"):
        measured(runs.folder(DIGEST), "unmerged")


@pytest.mark.parametrize("change", [{"pid": 2**40}, {"host": None}])
def test_a_damaged_lease_is_named_and_locks_nothing(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / DRIVER).write_text(json.dumps({**asdict(lease()), **change}))
    for use in (holder, lambda folder: Claim(folder).__enter__()):
        with pytest.raises(RequestError, match=r"driver\.json is damaged") as caught:
            use(tmp_path)
    (tmp_path / DRIVER).unlink()
    with Claim(tmp_path):
        assert DRIVER in str(caught.value)  # kept, as a notebook keeps its last error

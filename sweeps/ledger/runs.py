"""The state of each run of a home: `run.json`, its lease, its attempts."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import psutil

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.files import read_json, write_json
from carft_sweep.carft_core.runs.result import (
    FINITE,
    Claim,
    Evaluation,
    History,
    Trained,
    check_time,
)
from carft_sweep.tracking.comparison.runs import UNMERGED
from carft_sweep.tracking.location import is_plain_name, waiting

T = TypeVar("T")

logger = logging.getLogger(__name__)

NO_SEED = "none"
"""The key, in place of a seed, of a run that no seed changes."""
SILENCE = 60.0
"""Seconds after which a lease from another host that nobody renews is void."""

# POSIX record locks do not conflict within one process: its threads exclude each other by this.
_CHANGING = threading.Lock()
_ENDED: set[str] = set()
"""Claimants of this process that have ended, whatever the files say: a disk may have been full."""


def end_claimant(owner: str) -> None:
    """Treat the leases of a claimant of this process as void, also those on disk."""
    _ENDED.add(owner)


@dataclass(frozen=True)
class Lease:
    """A claim of one process; times in seconds since the Unix epoch."""

    __pydantic_config__: ClassVar[Any] = FINITE | {"extra": "forbid"}

    host: str
    pid: int
    born: str | None
    """When the process started (`process_start`), since process ids are used again."""
    owner: str
    """Tells two claimants in one process apart."""
    since: float
    renewed: float

    def __post_init__(self) -> None:
        """Raise ValueError for an impossible process id or time."""
        check_time(self.since, self.renewed)
        if not 0 < self.pid < 2**31:
            raise ValueError(f"{self.pid} is no process")

    @classmethod
    def mine(cls, owner: str | None = None) -> Lease:
        """Return a new lease of this process for the claimant `owner`, by default a new one."""
        pid, now = os.getpid(), time.time()
        owner = owner or uuid.uuid4().hex
        return cls(socket.gethostname(), pid, process_start(pid), owner, now, now)

    @classmethod
    def read(cls, file: Path) -> Lease | None:
        """Return the lease in a file; None if the file is missing."""
        data = read_json(file, cls)
        return None if data is None else cls(**data)

    def write(self, file: Path) -> None:
        """Write the lease as JSON."""
        write_json(file, asdict(self))

    def renew(self) -> Lease:
        """Return the lease as renewed now."""
        return replace(self, renewed=time.time())

    @property
    def is_due(self) -> bool:
        """Whether the lease must be renewed now: after its period, or after the clock was set back
        so far that it would be late otherwise."""
        return abs(time.time() - self.renewed) >= RENEW_AFTER

    def is_live(self) -> bool:
        """Return whether the claimant runs on this host, or renewed recently on another host."""
        if self.owner in _ENDED:
            return False
        if self.host != socket.gethostname():
            return abs(time.time() - self.renewed) < SILENCE  # else its clock is not ours
        if not psutil.pid_exists(self.pid):
            return False
        born = process_start(self.pid)
        return self.born is None or born is None or born == self.born

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        return f"process {self.pid} on {self.host} since {since}"


def process_start(pid: int) -> str | None:
    """Return a process's start time: in ticks since boot, or in seconds since the Unix epoch on a
    system without /proc (macOS); None for a process that does not exist."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        try:
            return str(psutil.Process(pid).create_time())
        except psutil.Error:
            return None
    # The name in parentheses may hold spaces and parentheses itself.
    return stat.rpartition(")")[2].split()[19]


State = Literal["running", "done", "failed", "stopped"]
RENEW_AFTER = 10.0
"""Seconds between two renewals of a lease; a worker shows life more often."""
OPTIMISER_STATE = "checkpoint.pt"
FILE = "run.json"


@dataclass(frozen=True)
class RunState:
    """What `run.json` holds; times in seconds since the Unix epoch."""

    __pydantic_config__: ClassVar[Any] = FINITE | {"extra": "forbid"}

    digest: str
    state: State
    label: str
    sweep: str
    """The sweep that trained it first."""
    attempts: int
    created: float
    ended: float | None = None
    lease: Lease | None = None
    failure: dict[str, str] | None = None
    """`kind` (a failure class), `message`, `log_tail`."""
    halvings: int = 0
    """How often its micro-batches were halved, because it ran out of memory."""
    worker: str = ""
    """The worker that computed it last: `local:PID`, `ray:HOST:PID` or `in process`."""

    def __post_init__(self) -> None:
        """Raise ValueError for an invalid time or failure."""
        check_time(self.created, self.ended)
        if self.failure is not None and not {"kind", "message"} <= self.failure.keys():
            raise ValueError("a failure has a kind and a message")

    @property
    def is_live(self) -> bool:
        """Whether a live claimant works on the run."""
        return self.lease is not None and self.lease.is_live()

    @property
    def is_permanent_failure(self) -> bool:
        """Whether the same run would fail in the same way again."""
        return self.state == "failed" and self.failure is not None and self.failure["kind"] == "nan"


_SHAPES = {FILE: RunState, "config.json": Claim, "history.json": History, "trained.json": Trained}
"""What the small files of a run's folder hold, beside its evaluations."""


class RunStore:
    """The folder `runs/` of a home, as one claimant sees it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.owner = uuid.uuid4().hex
        self._held: dict[str, Lease] = {}
        """By run digest the claims that were acquired here and not released."""

    def close(self) -> None:
        """Release every run, even if the disk refuses to record that."""
        end_claimant(self.owner)

    def folder(self, digest: str) -> Path:
        """Return a run's work folder. Raises RequestError for a digest that is no folder's name."""
        if not is_plain_name(digest):
            raise RequestError(f"{digest!r} is no digest of a run, as the ledger of a sweep has it")
        return self.path / digest

    def read(self, digest: str) -> RunState | None:
        """Return the state of a run; None if the run never began."""
        file = self.folder(digest) / FILE
        data: dict[str, Any] | None = read_json(file, RunState)
        if data is None:
            return None
        if data["digest"] != digest:
            raise RequestError(f"{file} is that of another run, {data['digest'][:12]!r}")
        lease = data.get("lease")
        return RunState(**{**data, "lease": None if lease is None else Lease(**lease)})

    def is_settled(self, digest: str, *, failed_again: bool = False) -> bool:
        """Return whether a run is measured, or became NaN, as it would again; with `failed_again`
        the latter does not count. A run with a damaged file is not settled."""
        try:
            state = self.read(digest)
            is_measured = measured(self.folder(digest), UNMERGED) is not None
        except RequestError:
            return False
        if state is not None and state.is_permanent_failure:
            return not failed_again
        return is_measured and (state is None or state.state == "done")

    def set_damaged_aside(self, digest: str) -> list[str]:
        """Rename every damaged file of a run, so that it is made again; return the problems."""
        folder = self.folder(digest)
        files = {folder / name: shape for name, shape in _SHAPES.items()}
        files |= dict.fromkeys(folder.glob("evaluations/*/metrics.json"), Evaluation)
        reasons = []
        for file, shape in files.items():
            try:
                read_json(file, shape)
            except RequestError as error:
                file.replace(file.with_name(f"{file.name}.damaged"))
                reasons.append(str(error))
        return reasons

    def digests(self) -> Iterator[str]:
        """Yield every run that ever began in this home, without backups of restarted runs."""
        for file in sorted(self.path.glob(f"*/{FILE}")):
            if not file.parent.name.startswith("."):
                yield file.parent.name

    def acquire(self, digest: str, label: str, sweep: str) -> RunState | None:
        """Claim a run for an attempt; return its state, or None if a live claimant holds it."""

        def acquired(known: RunState | None) -> RunState | None:
            if known is not None and self._is_anothers(known):
                return None
            lease = Lease.mine(self.owner)
            if known is None:
                return RunState(digest, "running", label, sweep, 1, time.time(), lease=lease)
            again = replace(known, state="running", attempts=known.attempts + 1, lease=lease)
            return replace(again, ended=None, failure=None)

        state = self._change(digest, acquired)
        if state is not None and state.lease is not None:
            self._held[digest] = state.lease
        return state

    def begin(self, digest: str, worker: str) -> None:
        """Record the worker that computes an acquired run."""
        self._change(digest, lambda known: known and replace(known, worker=worker))

    def renew(self) -> None:
        """Renew this store's claims, at most every ten seconds on disk; callable in any thread."""

        def renewed(known: RunState | None) -> RunState | None:
            if known is None or known.lease is None or known.lease.owner != self.owner:
                return None
            return replace(known, lease=known.lease.renew())

        for digest, lease in list(self._held.items()):
            state = self._change(digest, renewed) if lease.is_due else None
            if state is not None and state.lease is not None and digest in self._held:
                self._held[digest] = state.lease

    def release(
        self,
        digest: str,
        state: State,
        failure: dict[str, str] | None = None,
        *,
        halve: bool = False,
    ) -> RunState | None:
        """End an attempt in `state`, release the claim and return the run's state; None, without a
        change, if another claimant holds the run by now. `done` removes the run's backup.

        `halve` makes the next attempt use half the memory. Without a claim, a run that no process
        works on can be marked done, or stopped if its claimant died.
        """

        def released(known: RunState | None) -> RunState | None:
            if known is None:
                return None
            ours = known.lease is not None and known.lease.owner == self.owner
            is_left = state == "done" or (state, known.state) == ("stopped", "running")
            if not ours and (self._is_anothers(known) or not is_left):
                return None
            end = replace(known, state=state, ended=time.time(), lease=None, failure=failure)
            return replace(end, halvings=known.halvings + halve)

        self._held.pop(digest, None)
        ended = self._change(digest, released)
        if ended is not None and state == "done":
            shutil.rmtree(self._before(digest), ignore_errors=True)
        return ended

    def back_up(self, digest: str) -> None:
        """Empty the folder of a claimed run, which starts again. Its results become a backup until
        the run is done or restored; a backup that exists already is kept instead."""
        folder, before = self.folder(digest), self._before(digest)
        with self._locked(digest):
            state = self.read(digest)
            # A backup is from an earlier restart, which never ended: its own results are dropped.
            if before.exists() or measured(folder, UNMERGED) is None:
                shutil.rmtree(folder)
            else:
                folder.rename(before)
            if state is not None:
                self._write(state)

    def results(self, digest: str) -> Path:
        """Return the folder with the results of a run: the backup until the run is done again."""
        before, state = self._before(digest), None
        if before.exists():
            with suppress(RequestError):  # a damaged file says nothing of an end
                state = self.read(digest)
            if state is None or state.state != "done":
                return before
        return self.folder(digest)

    def restore_backup(self, digest: str) -> bool:
        """Replace a restarted run by its backup; return False if there is no backup."""
        before = self._before(digest)
        if not before.exists():
            return False
        shutil.rmtree(self.folder(digest))
        before.rename(self.folder(digest))
        return True

    def is_live(self, digest: str) -> bool:
        """Return whether a live claimant works on a run; False where its file is damaged."""
        try:
            state = self.read(digest)
        except RequestError:
            return False
        return state is not None and state.is_live

    @contextmanager
    def idle(self, digest: str) -> Iterator[bool]:
        """Prevent others from claiming a run within the context; yield whether it is idle."""
        with self._locked(digest):
            yield not self.is_live(digest)

    def remove(self, digest: str) -> bool:
        """Remove a run and its backup; return False if a claimant works on the run."""
        with self.idle(digest) as is_idle:
            if not is_idle:
                return False
            folders = (self.folder(digest), self._before(digest))
            aside = [set_aside(folder) for folder in folders if folder.exists()]
        for folder in aside:
            shutil.rmtree(folder)
        return True

    def _before(self, digest: str) -> Path:
        return self.path / f".{digest}.before"

    def _is_anothers(self, state: RunState) -> bool:
        """Return whether another live claimant works on a run."""
        lease = state.lease
        return lease is not None and lease.owner != self.owner and lease.is_live()

    def _change(
        self, digest: str, change: Callable[[RunState | None], RunState | None]
    ) -> RunState | None:
        """Replace a run's state by what `change` returns, under a lock, and return it; None from
        `change` leaves the file unchanged."""
        with self._locked(digest):
            new = change(self.read(digest))
            if new is not None:
                self._write(new)
        return new

    @contextmanager
    def _locked(self, digest: str) -> Iterator[None]:
        """Keep other threads and processes from changing a run within the context."""
        with _CHANGING, waiting(self.path / ".locks" / self.folder(digest).name):
            yield

    def _write(self, state: RunState) -> None:
        write_json(self.folder(state.digest) / FILE, asdict(state))


def set_aside(folder: Path) -> Path:
    """Rename a folder that is to be removed, so that it disappears at once, and return the new
    path; `clean` recognises the name."""
    aside = folder.with_name(f".{folder.name.lstrip('.')}.{uuid.uuid4().hex[:8]}")
    folder.rename(aside)
    return aside


def undamaged(read: Callable[..., T | None], *place: Any) -> T | None:
    """Return `read(*place)`, read from a run's files; None, with a warning, if one is damaged."""
    try:
        return read(*place)
    except RequestError as error:
        logger.warning("%s; it counts as missing, and resuming the sweep makes it again", error)
        return None


def measured(folder: Path | str, label: str) -> Mapping[str, Any] | None:
    """Return the measurements of one model of a run: `metrics`, `facts`, `step`, `values`,
    `digest`; None if not measured. Metrics of the unmerged model include the seconds of its
    training."""
    # No Path: a comparison of ten thousand trials opens thirty thousand of these.
    file = f"{folder}/evaluations/{label}/metrics.json"
    evaluation: dict[str, Any] | None = read_json(file, Evaluation)
    if evaluation is not None and label == UNMERGED:
        with suppress(RequestError):  # damaged: what was measured is there all the same
            if (trained := read_json(f"{folder}/trained.json", Trained)) is not None:
                evaluation["metrics"]["system/train_seconds"] = float(trained["seconds"])
    return evaluation


def history(folder: Path) -> Sequence[Mapping[str, Any]]:
    """Return the reports of a run's epochs, each with `epoch`, `metrics`, `timestamp` and more."""
    epochs: Sequence[Mapping[str, Any]] | None = read_json(f"{folder}/history.json", History)
    return epochs or ()

"""One execution of a sweep file: from the validated sweep to the comparison it ends with."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.files import read_json, write_text
from carft_sweep.carft_core.training.step_log import EVERY
from carft_sweep.regular_files import read_regular
from carft_sweep.sweeps.engines.base import Engine
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.claim import Claim, ClaimLost
from carft_sweep.sweeps.ledger.generations import COPY, in_kept_order, open_generation
from carft_sweep.sweeps.ledger.ledger import Ledger, Trial, check_case, newest_generation
from carft_sweep.sweeps.ledger.optuna_copy import StudySync
from carft_sweep.sweeps.ledger.runs import RunStore
from carft_sweep.sweeps.ledger.status import OUTCOME, State
from carft_sweep.sweeps.plan.planner import Planner, digests
from carft_sweep.sweeps.plan.prospects import Obstacle, obstacles_of
from carft_sweep.sweeps.results.artifacts import COMPARISON, PAGE, write_comparison
from carft_sweep.sweeps.results.export import log_selected
from carft_sweep.sweeps.results.records import load_part
from carft_sweep.sweeps.results.report import write_page
from carft_sweep.sweeps.results.sync import SweepSync
from carft_sweep.sweeps.results.sync_thread import SyncThread
from carft_sweep.sweeps.scheduler.driver import SweepDriver
from carft_sweep.sweeps.scheduler.progress import Progress
from carft_sweep.sweeps.spec.spec import SweepSpec
from carft_sweep.tracking.comparison.compare import Comparison
from carft_sweep.tracking.comparison.pooling import SweepRuns
from carft_sweep.tracking.errors import counted
from carft_sweep.tracking.program import program
from carft_sweep.tracking.store.base import Tracker, describe

PARTS = {
    "revision": "the code",
    "own_code": "your own code",
    "data": "the data",
    "model": "the model",
    "classes": "prompts.classes",
    "contexts": "prompts.contexts",
    "device": "the device",
    "precision": "the precision",
}
"""Words for the parts of a run's identity in messages, where they differ from the parts' names."""
PACE = 1.0
"""Seconds between two updates of a store, at least."""
PATIENCE = 30.0
"""Seconds that the end of a sweep waits for a store that takes nothing."""
CLOSING = 15.0
"""Seconds that closing a sync thread waits for its request under way."""


@dataclass(frozen=True)
class SweepResult:
    """How an execution of a sweep ended."""

    state: State
    """`interrupted`: stopped before its end, so that it can be resumed; `failed`: no run succeeded,
    or the circuit breaker stopped the sweep."""
    done: int
    """Runs that succeeded, now or earlier."""
    failures: tuple[str, ...]
    comparison: Comparison
    broken: str | None = None
    """Why the circuit breaker stopped the sweep."""
    log_tail: str = ""
    """The last lines of the log of the run that failed last."""
    obstacles: tuple[Obstacle, ...] = ()
    """What prevents a verdict, whatever the numbers are."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a sweep is executed, besides what its file says."""

    address: str | None = None
    """Of the Ray cluster, where one was named; `resume` reuses it."""
    fresh: bool = False
    """Whether every run is trained again."""
    failed_again: bool = False
    """Whether trials that became NaN are tried again too."""
    ended: Callable[[SweepResult], None] = lambda _: None
    """Called before the page is made and the store is waited for."""
    undelivered: Callable[[str], None] = lambda _: None
    """Called with messages on what could not be sent."""


def drive_sweep(
    spec: SweepSpec,
    home: Home,
    engine: Engine,
    store: Tracker,
    progress: Progress,
    options: RunOptions,
) -> SweepResult:
    """Run a sweep, or resume it, and return its result. Raises RequestError when another driver has
    the sweep, or takes it over, or the sweep cannot be run as requested."""
    folder = home.sweep(spec.name)
    interruption = Interruption(engine, progress)
    check_case(home, spec.name)
    with (
        closing(RunStore(home.runs)) as runs,
        Claim(folder, interruption.stop, runs.renew) as claim,
        interruption.handling_signals(),
    ):
        newest = newest_generation(home, spec.name)
        spec = in_kept_order(spec, None if options.fresh else newest)
        planner = Planner(spec, engine.hardware, progress.note)
        ledger, notes = open_generation(
            home,
            spec,
            newest,
            address=options.address,
            stale=lambda trial: changed_parts(planner, trial, runs),
            fresh=options.fresh,
        )
        for note in (*spec.warnings, *notes):
            progress.note(note)
        write_text(folder / COPY, spec.text)
        ledger.remember(OUTCOME, {"state": "running"})
        with closing(Syncs(home, ledger, store, runs.owner)) as syncs:
            driver = SweepDriver(
                planner,
                ledger,
                runs,
                claim=claim,
                progress=progress,
                note=syncs.note,
                failed_again=options.failed_again,
            )
            driver.begin()
            obstacles = obstacles_of(planner)
            for obstacle in obstacles:
                progress.note(obstacle.describe())
            try:
                interrupted = _run_engine(driver, engine, interruption)
            except ClaimLost:
                raise  # the sweep is another driver's, and so are its syncs
            except Exception:
                syncs.end_driver()  # nothing stays running when its driver is gone
                syncs.flush(haste=True)
                raise
            before = _read(folder / COMPARISON)
            result, part = _finish(driver, folder, obstacles, interrupted=interrupted)
            progress.close()
            try:
                options.ended(result)
            except Exception:  # whoever reads the output has closed it
                syncs.end_driver(part, result.comparison)
                syncs.flush(haste=True)
                raise
            is_new = not (folder / PAGE).exists() or _read(folder / COMPARISON) != before
            if result.state == "done" and spec.report.page and is_new:
                write_page(home, ledger, result.comparison, progress.note)
            syncs.end_driver(part, result.comparison)
            # Not where somebody wants it to end, and Slurm kills it soon.
            is_sent = syncs.flush(haste=result.state == "interrupted")
            for complaint in syncs.complaints():
                options.undelivered(complaint)
            if is_sent and result.state == "done" and spec.report.model:
                outcome = log_selected(home, spec, result.comparison)
                if outcome is not None:
                    progress.note(outcome)
    return result


class Syncs:
    """The threads that update a sweep's Optuna study and tracking store from its ledger."""

    def __init__(self, home: Home, ledger: Ledger, store: Tracker, owner: str) -> None:
        self._study = StudySync(home, ledger)
        self._runs = SweepSync(home, ledger, store, owner=owner)
        self._study_thread = SyncThread("study", self._study.update, pace=PACE)
        self._store_thread = SyncThread("tracking", self._runs.update, pace=PACE, idle=EVERY)

    def note(self, digest: str) -> None:
        """Wake the syncs for new records of the run `digest`, or with "" of the ledger alone."""
        if digest:
            self._runs.note(digest)
            self._store_thread.wake()
        self._study_thread.wake()

    def end_driver(
        self, part: SweepRuns | None = None, comparison: Comparison | None = None
    ) -> None:
        """Send how the sweep ended, with its runs (`part`) and their comparison if known."""
        self._runs.end_driver(part, comparison)
        self._store_thread.wake()
        self._study_thread.wake()

    def flush(self, *, haste: bool = False) -> bool:
        """Wait until the store has everything; return False if it lacks something after PATIENCE.
        In `haste` an unreachable store is not waited for."""
        self._study_thread.flush(PATIENCE, haste=haste)
        return self._store_thread.flush(PATIENCE, haste=haste, progress=lambda: self._runs.requests)

    def complaints(self) -> Iterator[str]:
        """Yield a sentence on each record that was not sent or written in the end, and why."""
        refused, unreadable = self._runs.complaints()
        if refused:
            (name, what), reason = next(iter(refused.items()))
            requests = counted(len(refused), "request")
            yield (
                f"the tracking server refused {requests}, first "
                f"{what} of {self._runs.describe(name)}: {reason}; what was refused is not "
                f"in MLflow, and `{program()} sync` tries it again"
            )
        for digest, reason in unreadable.items():
            yield f"{describe(digest)} is not in MLflow as it is here: {reason}"
        if not self._store_thread.is_done:
            unsent = self._runs.count_unsent()
            runs = f"{unsent} run{' is' if unsent == 1 else 's are'} not in MLflow as they are here"
            yield (
                f"{runs if unsent else 'the end of the sweep is not in MLflow'} "
                f"({self._store_thread.last_error or 'the tracking server is slow'}); nothing is "
                f"lost: `{program()} sync` or the next run sends it"
            )
        if self._study_thread.last_error is not None:
            yield (
                f"the Optuna study is behind ({self._study_thread.last_error}); nothing is lost: "
                "the next run writes what it lacks, all of it where its database was deleted"
            )

    def close(self) -> None:
        """Stop the syncs, after the update under way."""
        for thread in (self._study_thread, self._store_thread):
            thread.close(CLOSING)


def changed_parts(planner: Planner, trial: Trial, runs: RunStore) -> str | None:
    """Return what has changed (code, model, data) where a trial's runs would have other digests
    now, as far as a run's folder records it; None where the digests would be the same."""
    planned = planner.trial(trial.params)
    if not trial.runs or dict(trial.runs) == digests(planned):
        return None
    before = {key: _identity(runs.folder(digest)) for key, digest in trial.runs.items()}
    for key, run in zip(digests(planned), planned, strict=True):
        if was := before.get(key):
            now = json.loads(json.dumps(run.identity.parts))
            parts = [name for name in {**was, **now} if was.get(name) != now.get(name)]
            if parts:
                return ", ".join(PARTS.get(name, name) for name in parts)
    return "code, model, data or what runs compute on"


def _identity(folder: Path) -> dict[str, Any]:
    """Return the recorded identity of a run; empty where its folder has none, or is damaged."""
    parts: dict[str, Any] = {}
    with suppress(RequestError):
        parts = (read_json(folder / "config.json") or {}).get("identity", {})
    return parts


def _run_engine(driver: SweepDriver, engine: Engine, interruption: Interruption) -> bool:
    """Run the engine until its end and close it; return whether it was stopped with runs left."""
    interruption.phase = "running"
    try:
        engine.run(driver)
    except ClaimLost:
        raise  # what is to be cleaned up is the other driver's
    except Exception:
        with suppress(OSError):  # a full disk does not let us: the next driver sees to it
            driver.abandon()
            driver.ledger.remember(OUTCOME, {"state": "interrupted", "at": time.time()})
            driver.close()
        raise
    finally:
        engine.close()
        interruption.phase = "writing"
    driver.close()
    if driver.broken is not None:
        driver.progress.note(f"The sweep was stopped: {driver.broken}")
    elif driver.budget.is_used_up and not interruption.is_requested:
        driver.progress.note(
            "the time budget is used up; with a larger one the same command resumes the sweep"
        )
    return interruption.is_requested and driver.has_work_left


def _finish(
    driver: SweepDriver, folder: Path, obstacles: tuple[Obstacle, ...], *, interrupted: bool
) -> tuple[SweepResult, SweepRuns]:
    """Write the results of a sweep and record its end; return the results and the runs."""
    part = load_part(driver.ledger, driver.runs, with_fields=True)
    compared = write_comparison(folder, part)
    # Of earlier executions too: this one need not have looked at them.
    done = len({run.digest for run in part.records if run.state == "done"})
    if driver.budget.is_used_up and not done and not driver.outcomes:
        interrupted = True  # before the first run has ended: nothing has failed
    state: State = "interrupted" if interrupted else "done" if done else "failed"
    if driver.broken is not None:
        state = "failed"
    driver.ledger.remember(OUTCOME, {"state": state, "at": time.time(), "broken": driver.broken})
    failures = [failure for failure in driver.outcomes.values() if failure is not None]
    result = SweepResult(
        state,
        done,
        tuple(f"{failure.kind}: {failure.message}" for failure in failures),
        compared,
        driver.broken,
        failures[-1].log_tail if failures else "",
        obstacles,
    )
    return result, part


def _read(file: Path) -> bytes | None:
    return read_regular(file) if file.exists() else None


class Interruption:
    """Stops the engine: at the first signal or request after the epoch, at the second at once.

    A second signal ends the planning, and the writing of results. The first one raises nothing:
    libraries in C lose an exception, and the sweep would run on.
    """

    def __init__(self, engine: Engine, progress: Progress) -> None:
        self.is_requested = False
        self.phase: Literal["planning", "running", "writing"] = "planning"
        self._engine, self._progress = engine, progress

    def stop(self, now: bool) -> None:
        """Request a stop, from any thread. While already stopping, only `now` has an effect."""
        first, self.is_requested = not self.is_requested, True
        if self.phase == "writing":
            if first:
                self._progress.note("the results are being written; once more stops that")
            return
        if first or now:
            self._engine.stop(now=now)
        if first and not now:
            self._progress.note("stopping after this epoch; once more stops at once")

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Stop at Ctrl-C, at SIGTERM, and when the terminal is closed, unless `nohup` ignores the
        last. Python handles signals in its main thread alone: in others nothing is changed."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

        def handle(number: int, frame: FrameType | None) -> None:
            del frame
            if number == signal.SIGHUP:  # comes twice: from the shell, and when the shell has ended
                _leave_closed(terminals)
                self.stop(now=False)
                return
            if self.is_requested and self.phase != "running":
                raise KeyboardInterrupt
            self.stop(now=self.is_requested)

        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        before = [signal.signal(number, handle) for number in numbers]
        try:
            yield
        finally:
            for number, old in zip(numbers, before, strict=True):
                signal.signal(number, old)


def _leave_closed(terminals: Sequence[int]) -> None:
    """Discard the output of those descriptors in `terminals` whose terminal was closed."""
    for descriptor in terminals:
        if not os.isatty(descriptor):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)

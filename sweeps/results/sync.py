"""Sends a sweep's runs to a tracking store, from its ledger and its run folders.

No result is read back from the store: it is only looked up which runs it has, and in which state.
One file for each place says what was sent of each run; sending twice changes nothing.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from carft_sweep.carft_core.config.trial import flatten
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.files import read_json
from carft_sweep.carft_core.runs.result import Claim
from carft_sweep.carft_core.training.step_log import EVERY, read_points
from carft_sweep.regular_files import RefusedFile, read_regular
from carft_sweep.sweeps.engines.entry import LOG
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.claim import undriven
from carft_sweep.sweeps.ledger.generations import COPY as SWEEP_FILE
from carft_sweep.sweeps.ledger.ledger import Ledger, Setting, find_ledger
from carft_sweep.sweeps.ledger.runs import NO_SEED, RunState, RunStore, history, measured
from carft_sweep.sweeps.ledger.status import OUTCOME, goals
from carft_sweep.sweeps.plan.planner import run_label
from carft_sweep.sweeps.results import artifacts
from carft_sweep.sweeps.results.arms import (
    ArmSummary,
    all_sweeps_view,
    arm_summaries,
    arms_view,
    runs_view,
    selected_values,
)
from carft_sweep.sweeps.results.datasets import run_datasets, sweep_datasets
from carft_sweep.sweeps.results.merged_metrics import merged_metrics
from carft_sweep.sweeps.results.records import CONFIG, comparison_spec, load_part
from carft_sweep.sweeps.results.sent_log import STARTED, SentLog, place_of
from carft_sweep.sweeps.results.sync_thread import SOON
from carft_sweep.tracking.comparison.compare import Comparison
from carft_sweep.tracking.comparison.input_file import COMPARISON_INPUT, comparison_input
from carft_sweep.tracking.comparison.metrics import has_series
from carft_sweep.tracking.comparison.pooling import SweepRuns, compare_sweeps
from carft_sweep.tracking.comparison.runs import UNMERGED, Scalar, scalar
from carft_sweep.tracking.comparison.sentences import short_answer
from carft_sweep.tracking.errors import RequestFailed, ServiceUnreachable, TrackingError
from carft_sweep.tracking.provenance import USER
from carft_sweep.tracking.store.base import (
    ARM,
    ARTIFACT,
    GROUP,
    VARIED,
    EndState,
    Metric,
    RunKey,
    RunStart,
    RunsView,
    TrackedRun,
    Tracker,
    describe,
)

Status = Literal["running", "done", "failed", "pruned", "stopped"]
ENDS: Mapping[str, EndState] = {
    "done": "finished",
    "failed": "failed",
    "pruned": "killed",
    "stopped": "killed",
    "interrupted": "killed",
}
"""The state that the store gets for each status of a run or of the sweep."""
_TITLES = dict(
    zip(artifacts.FIGURES, ("ID against OOD", "OOD and ID by what is varied"), strict=True)
)
_REMOVED = "removed"
"""The fingerprint of an arm that the table has no more, and that was removed."""
_OPEN = (STARTED, "running")
"""Fingerprints of runs whose end was not sent."""
_INPUT_PAUSE = 20
"""Pause after sending a running sweep's COMPARISON_INPUT, as a multiple of the time it took."""
TRIES = 5
"""Failures after which a request that might succeed later counts as refused."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Run:
    """One run of a sweep, from its ledger."""

    setting: Setting
    seed: str
    digest: str
    generation: int

    @property
    def label(self) -> str:
        trial = None if self.setting.trial is None else self.setting.trial.number
        label = run_label(self.setting.algorithm, self.setting.params, trial)
        return label if self.seed == NO_SEED else f"{label} s{self.seed}"


@dataclass(frozen=True)
class _Snapshot:
    """A run's state and measurements as its folder has them; each file is read once."""

    status: Status
    state: RunState | None
    folder: Path
    labels: Sequence[str] = ()
    """The models that are measured."""

    @functools.cached_property
    def claimed(self) -> Mapping[str, Any]:
        """Config and identity that are recorded in the run's folder."""
        return read_json(self.folder / CONFIG, Claim) or {}

    @functools.cached_property
    def history(self) -> Sequence[Mapping[str, Any]]:
        """Reports of the run's epochs."""
        return history(self.folder)

    @property
    def files(self) -> Sequence[Path]:
        """Files of the run's folder that are sent unchanged."""
        names = (CONFIG, LOG) if self.status == "done" else (LOG,)
        return [self.folder / name for name in names if (self.folder / name).exists()]

    def fingerprint(self, run: _Run) -> str:
        """Return a fingerprint of the records to send, which are sent only when it changes."""
        if self.status == "running":
            return "running"
        trial = "-" if run.setting.trial is None else run.setting.trial.number
        ended = "-" if self.state is None else self.state.ended
        words = (self.status, run.generation, run.setting.role, trial, ended, *self.labels)
        return " ".join(map(str, words))


class _Postponed(Exception):
    """A call of the store failed and is repeated later; other runs are sent meanwhile."""


class SweepSync:
    """Sends to a tracking store what it lacks of one sweep's ledger and run folders."""

    def __init__(
        self,
        home: Home,
        ledger: Ledger,
        store: Tracker,
        *,
        owner: str | None = None,
        is_thorough: bool = False,
    ) -> None:
        """Prepare to send a sweep's records. `owner` is a living driver's claimant; without it no
        run counts as running. `is_thorough` also restores files in the sweep's folder."""
        self._lock = threading.Lock()
        """Held while `refused` or `unreadable` changes or is copied (`complaints`)."""
        self.refused: dict[tuple[str, str], str] = {}
        """What the store refused for good, by `RunKey.name` and request: why."""
        self._arm_labels: dict[str, str] = {}
        """Label of each arm that was sent, by `RunKey.name`."""
        self.unreadable: dict[str, str] = {}
        """By digest why a run cannot be read in the home: it is not sent."""
        self.notes: list[str] = []
        """What was mended in the sweep's folder, or could not be."""
        self.unlisted = ""
        """Why the store did not list the sweep's files, where it did not."""
        self.requests = 0
        """Requests that the store has answered."""
        self.sent = 0
        """How many runs were sent to their end, the sweep's own among them."""
        self._home, self._ledger, self._store = home, ledger, store
        self._runs, self._owner, self._is_thorough = RunStore(home.runs), owner, is_thorough
        self._sweep = RunKey(ledger.name)
        self._folder = home.sweep(ledger.name)
        self._sent = SentLog(self._folder, place_of(home, ledger))
        self.pending: dict[str, None] = {}
        """Digests of runs that may have new records."""
        self._is_looked_through = False
        self._part: SweepRuns | None = None
        """The runs of the sweep, once its driver has ended."""
        self._comparison: Comparison | None = None
        """The comparison of `_part`."""
        self._started: set[str] = set()
        self._epochs: dict[str, int] = {}
        """By digest the last epoch that was sent by this object."""
        self._steps: dict[str, int] = {}
        """By digest the last step whose point was sent by this object."""
        self._looked_at = time.monotonic()
        """When running runs were last marked as changed without a report (`_note_running`)."""
        self._has_ended_runs, self._input_due = False, 0.0
        """Whether runs have ended since COMPARISON_INPUT was sent; when it may be sent again."""
        self._failures: Counter[tuple[str, str]] = Counter()

    def note(self, digest: str) -> None:
        """Mark a run as changed. Any thread may call this."""
        self.pending[digest] = None

    def end_driver(
        self, part: SweepRuns | None = None, comparison: Comparison | None = None
    ) -> None:
        """Count running runs as stopped from now on, and let `update` send the sweep's end, with
        its runs (`part`) and their comparison where these exist already."""
        self._part, self._comparison, self._owner = part, comparison, None
        self._is_looked_through = False

    def count_unsent(self) -> int:
        """Return the number of runs of which the store lacks something."""
        runs = self._runs_by_digest()
        return sum(map(self._is_behind, runs.values())) + len(self._left_open(runs))

    def complaints(self) -> tuple[dict[tuple[str, str], str], dict[str, str]]:
        """Return copies of `refused` and `unreadable`, which another thread may change
        meanwhile."""
        with self._lock:
            return dict(self.refused), dict(self.unreadable)

    @property
    def is_end_unsent(self) -> bool:
        """Return whether the store lacks the sweep's end."""
        return (self._sent.fingerprint("") or STARTED) in _OPEN

    def compare_with_store(self) -> None:
        """Mark every run as unsent that the store lacks or has in another state, and all runs if
        the store lacks a file of the sweep's own run."""
        tracked = self._store.runs_of(self._sweep.sweep)
        lost = self._differing(tracked)
        # If the sweep's own run is gone, all others name a parent that is gone; if a file of it is
        # gone, files of all others may be gone too.
        if "" not in tracked or self._lacks_files():
            lost |= self._sent.runs.keys()
        if any(name.startswith(ARM) for name in lost):
            lost.add("")
        for name in lost:
            logger.info("%s has %s not as it was sent", self._sent.place, describe(name))
            run = tracked.get(name)
            self._sent.correct(name, None if run is None else run.run_id)

    def _differing(self, tracked: Mapping[str, TrackedRun]) -> set[str]:
        """Return the names of runs that the store (`tracked`) lacks or has in another state than
        was sent, and of its arms and running runs that were never recorded as sent."""
        lost = set()
        for name, entry in self._sent.runs.items():
            run = tracked.get(name)
            if run is None:
                is_lost = entry["id"] != ""
            else:
                is_lost = (run.run_id, run.state) != (entry["id"], _state_of(name, entry["as"]))
            lost |= {name} if is_lost else set()
        unknown = tracked.keys() - self._sent.runs.keys()
        return lost | {n for n in unknown if n.startswith(ARM) or tracked[n].state == "running"}

    def _lacks_files(self) -> bool:
        """Return whether the store lacks a file of the sweep's own run after its end was sent."""
        if self.is_end_unsent:
            return False
        names = {name for name in (SWEEP_FILE, *artifacts.FILES) if (self._folder / name).exists()}
        try:
            return bool({*names, COMPARISON_INPUT} - self._store.artifacts(self._sweep))
        except RequestError:
            raise
        except Exception as error:  # whatever a client of an artifact store raises
            logger.info("the files of %s are not listed: %s", self._sweep.sweep, error)
            self.unlisted = str(error)
            return False

    def update(self) -> bool:
        """Send everything that the store lacks; return False where a refused call waits for another
        try. Raises ServiceUnreachable while the store cannot be used."""
        if not self._is_looked_through:
            self._is_looked_through = True  # first: the driver may end meanwhile
            try:
                self._look_through()
            except BaseException:
                self._is_looked_through = False
                raise
        self._note_running()
        waiting: list[str] = []
        pending = [*self.pending]
        runs = self._runs_by_digest() if pending else {}
        for digest in pending:
            self.pending.pop(digest)
            try:
                run = runs.get(digest)
                if run is not None:
                    self._send(run)
                elif self._sent.fingerprint(digest) in _OPEN:
                    self._end_left_open(digest)
            except _Postponed as error:
                logger.info("run %s is tried again later: %s", digest[:12], error)
                waiting.append(digest)
            except RequestError as error:
                self._leave_out(digest, error)
            except BaseException:
                self.note(digest)
                raise
        try:
            self._send_end()
        except _Postponed as error:
            logger.info("the end of %s is tried again later: %s", self._sweep.sweep, error)
            waiting.append("")
        for digest in filter(None, waiting):
            self.note(digest)
        return not waiting

    def _note_running(self) -> None:
        """Mark running runs as changed at intervals, since they send no report within an epoch."""
        if self._owner is not None and time.monotonic() - self._looked_at >= EVERY:
            self._looked_at = time.monotonic()
            self.pending |= dict.fromkeys(self._started - {""})

    def _runs_by_digest(self) -> Mapping[str, _Run]:
        """Return the runs of all generations by digest, each with its newest setting."""
        runs: dict[str, _Run] = {}
        for ledger in (self._ledger, *reversed(self._ledger.earlier)):
            for item in ledger.settings():
                for seed, digest in item.runs.items():
                    runs.setdefault(digest, _Run(item, seed, digest, ledger.generation))
        return runs

    def _look_through(self) -> None:
        """Mark each run of which the store lacks something as changed."""
        self.compare_with_store()
        if self._sent.fingerprint("") is not None:
            self._sent.note_experiment(self._store.experiment())
        runs = self._runs_by_digest()
        behind = (digest for digest, run in runs.items() if self._is_behind(run))
        self.pending |= dict.fromkeys([*behind, *self._left_open(runs)])

    def _left_open(self, runs: Mapping[str, _Run]) -> list[str]:
        """Return the runs that a dead driver left running and the current file does not include."""
        entries = self._sent.snapshot()
        left = (digest for digest, entry in entries.items() if entry["as"] in _OPEN)
        return [name for name in left if name and not name.startswith(ARM) and name not in runs]

    def _end_left_open(self, digest: str) -> None:
        key, now = RunKey(self._sweep.sweep, digest), round(1000 * time.time())
        self._end_run(key, "stopped", {"carft.state": "stopped"}, now)
        self._sent.record(digest, self._sent.runs[digest]["id"], "stopped")

    def _is_behind(self, run: _Run) -> bool:
        snapshot, sent = self._snapshot(run), self._sent.fingerprint(run.digest)
        return snapshot is not None and snapshot.fingerprint(run) != sent

    def _leave_out(self, digest: str, error: RequestError) -> None:
        """Skip a run whose files are damaged, with a message."""
        logger.info("%s is not sent: %s", describe(digest), error)
        with self._lock:
            self.unreadable[digest] = str(error)

    def _snapshot(self, run: _Run) -> _Snapshot | None:
        """Read a run's folder and return the state and measured models to send; None where the run
        has not begun, is left to another sweep or the driver, or has damaged files."""
        folder, trial = self._runs.folder(run.digest), run.setting.trial
        try:
            state = self._runs.read(run.digest)
        except RequestError as error:
            self._leave_out(run.digest, error)
            return None
        fingerprint = self._sent.fingerprint(run.digest)
        models = (UNMERGED, *run.setting.merges)
        labels = [label for label in models if _metrics_file(folder, label).exists()]
        if UNMERGED in labels and (state is None or state.state == "done"):
            return _Snapshot("done", state, folder, labels)
        if state is None:
            return None
        owner = None if state.lease is None else state.lease.owner
        is_ours = owner is not None and owner == self._owner
        is_known = is_ours or fingerprint is not None or state.sweep == self._sweep.sweep
        if state.state == "failed":
            return _Snapshot("failed", state, folder)
        if trial is not None and trial.state == "pruned":
            is_begun = fingerprint is not None or (is_known and (folder / "history.json").exists())
            return _Snapshot("pruned", state, folder) if is_begun and not is_ours else None
        if not (folder / CONFIG).exists():
            return None  # it has not begun to read its model and data
        if is_ours:
            return _Snapshot("running", state, folder)
        if state.is_live and fingerprint is None:
            return None  # another sweep's run, so far
        is_open = trial is None or trial.state == "running"
        if self._owner is not None and is_open and run.generation == self._ledger.generation:
            return None  # the driver will take it up again
        return _Snapshot("stopped", state, folder) if is_known else None

    def _send(self, run: _Run) -> None:
        digest, snapshot = run.digest, self._snapshot(run)
        sent, key = self._sent.fingerprint(digest), RunKey(self._sweep.sweep, digest)
        if snapshot is None:
            return
        fingerprint = snapshot.fingerprint(run)
        if snapshot.status != "running" and fingerprint == sent:
            return
        self._start_sweep()
        if digest not in self._started:
            self._start(key, run, snapshot)
        if (digest, "start") in self.refused:
            return
        self._send_epochs(key, snapshot)
        self._send_steps(key, snapshot)
        if snapshot.status == "running":
            if fingerprint != sent:
                self._sent.record(digest, self._store.run_id(key) or "", fingerprint)
            return
        tags = {"carft.state": snapshot.status, **self._attempt_tags(snapshot.state)}
        if (sent or "").startswith("failed"):
            tags |= {"carft.failure": "", "carft.failure_message": ""}
        if snapshot.status == "done":
            self._send_result(key, snapshot)
        elif snapshot.state is not None and snapshot.state.failure is not None:
            failure = snapshot.state.failure
            tags["carft.failure"] = failure["kind"]
            tags["carft.failure_message"] = failure["message"]
        for file in snapshot.files:
            self._log_artifact(key, file)
        self._end_run(key, snapshot.status, tags, _end_time(snapshot))
        self._record_end(key, fingerprint)

    def _end_run(self, key: RunKey, status: str, tags: Mapping[str, str], when: int) -> None:
        self._attempt(key.name, "tags", lambda: self._store.set_tags(key, tags))
        end = functools.partial(self._store.end_run, key, ENDS[status], timestamp=when)
        self._attempt(key.name, "end", end)

    def _record_end(self, key: RunKey, fingerprint: str) -> None:
        """Record that a run was sent with its end; the next driver tries refused records again."""
        name, refused = key.name, {name for name, _ in self.refused}
        if name in refused or (not name and any(other.startswith(ARM) for other in refused)):
            fingerprint += " not whole"
        self._sent.record(name, self._store.run_id(key) or "", fingerprint)
        self._started.discard(name)
        self._has_ended_runs = True
        self.sent += not key.arm

    def _start(self, key: RunKey, run: _Run, snapshot: _Snapshot) -> None:
        state = snapshot.state
        tags = {
            **self._ledger.spec.get("tags", {}),
            **self._own_execution_tags(state),
            "carft.generation": str(run.generation),
            "carft.role": run.setting.role,
            "carft.state": "running",
            VARIED: json.dumps([*run.setting.params]),
        }
        if run.setting.trial is not None:
            tags["carft.trial"] = str(run.setting.trial.number)
        if state is None or state.sweep != self._sweep.sweep:
            tags["carft.reused_from"] = "elsewhere" if state is None else state.sweep
        tags |= self._attempt_tags(state)
        began = round(1000 * state.created) if state else _modified(snapshot.folder / CONFIG)
        params = _params(run, snapshot.claimed)
        start = RunStart(key, run.label, began, parent=self._sweep, params=params, tags=tags)
        self._start_run(start)
        self._epochs.pop(key.digest, None)
        self._steps.pop(key.digest, None)

    def _attempt_tags(self, state: RunState | None) -> dict[str, str]:
        """Return tags of a run's attempts and last worker; {} if another sweep trained the run."""
        if state is None or state.sweep != self._sweep.sweep:
            return {}
        return {"carft.attempt": str(state.attempts), "carft.worker": state.worker}

    def _own_execution_tags(self, state: RunState | None) -> dict[str, str]:
        """Return tags of the execution that made a run: its user, and versions that differ from
        those of the sweep's first execution."""
        until = None if state is None else state.ended
        before = [start for start in self._executions if until is None or start["at"] <= until]
        tags: Mapping[str, str] = (before or [{}])[-1].get("tags", {})
        first = self._first_tags
        return {name: tags[name] for name in tags if name == USER or first.get(name) != tags[name]}

    @property
    def _executions(self) -> Sequence[Mapping[str, Any]]:
        """The records of the starts of the sweep's drivers."""
        generations = (*self._ledger.earlier, self._ledger)
        return [execution for ledger in generations for execution in ledger.executions]

    @functools.cached_property
    def _first_tags(self) -> Mapping[str, str]:
        """Tags of the user, machine and versions with which the sweep was begun."""
        tags: Mapping[str, str] = next(iter(self._executions), {}).get("tags", {})
        return tags

    def _send_epochs(self, key: RunKey, snapshot: _Snapshot) -> None:
        sent = self._epochs.get(key.digest, -1)
        new = [report for report in snapshot.history if report["epoch"] > sent]
        if new:
            values = [metric for report in new for metric in _epoch_metrics(report)]
            self._log_metrics(key, f"epochs from {sent + 1}", values)
            self._epochs[key.digest] = int(new[-1]["epoch"])

    def _send_steps(self, key: RunKey, snapshot: _Snapshot) -> None:
        """Send the points of training steps within epochs, under metric names of their own."""
        sent = self._steps.get(key.digest, 0)
        new = read_points(snapshot.folder, behind=sent)
        if new:
            values = [
                Metric(name, value, point["step"], point["timestamp"])
                for point in new
                for name, value in point["metrics"].items()
            ]
            self._log_metrics(key, f"steps from {sent + 1}", values)
            self._steps[key.digest] = new[-1]["step"]

    def _send_result(self, key: RunKey, snapshot: _Snapshot) -> None:
        """Send the metrics of every measured model of a run."""
        evaluations = {label: measured(snapshot.folder, label) or {} for label in snapshot.labels}
        self._log_metrics(key, "results", list(_result_metrics(evaluations, snapshot)))
        datasets = run_datasets(snapshot.claimed, evaluations[UNMERGED].get("facts", {}))
        self._attempt(key.name, "datasets", lambda: self._store.log_datasets(key, datasets))

    def _start_sweep(self) -> None:
        """Start the sweep's own run, once one of its runs has changed."""
        if "" in self._started:
            return
        spec, name, began = self._ledger.spec, self._sweep.sweep, round(1000 * self._ledger.began)
        self._start_run(RunStart(self._sweep, name, began, tags=self._sweep_tags()))
        endpoint = comparison_spec(spec).endpoint
        self._keep_view(all_sweeps_view(endpoint), began)
        self._keep_view(runs_view(name, [*spec["parameters"]], endpoint), began)
        if (self._folder / SWEEP_FILE).exists():
            self._log_artifact(self._sweep, self._folder / SWEEP_FILE)
        self._sent.record("", self._store.run_id(self._sweep) or "", "running")
        self._sent.note_experiment(self._store.experiment())

    def _start_run(self, start: RunStart) -> None:
        """Start a run of the store, recorded first, so that any later driver can end it."""
        name = start.key.name
        if self._sent.fingerprint(name) in (None, _REMOVED):
            self._sent.record(name, "", "started")
        self._attempt(name, "start", lambda: self._store.start_run(start))
        self._started.add(name)

    def _sweep_tags(self) -> dict[str, str]:
        spec = self._ledger.spec
        execution = self._ledger.executions[-1] if self._ledger.executions else {}
        tags = {
            **spec.get("tags", {}),
            **self._first_tags,
            "carft.generation": str(self._ledger.generation),
            "carft.metric": goals(spec)[0]["name"],
            "carft.selection": str(spec["selection"]),
            "carft.state": "running",
            GROUP: f"{self._group} and its arms",  # longer, so it sorts as larger than the arms'
        }
        if spec["description"]:
            tags["mlflow.note.content"] = spec["description"]
        if execution.get("overrides"):
            tags["carft.overrides"] = " ".join(execution["overrides"])
        return tags

    @property
    def _group(self) -> str:
        began = datetime.fromtimestamp(self._ledger.began, UTC)
        return f"{began:%Y-%m-%d %H:%M:%S} {self._sweep.sweep}"

    def _send_end(self) -> None:
        """Send how the sweep ended, if it has ended since the last call."""
        if self._owner is not None:
            self._send_input_so_far()
            return
        outcome = self._ledger.recall(OUTCOME, {"state": "running"})
        state = "interrupted" if outcome["state"] == "running" else outcome["state"]
        part = self._part = self._part or load_part(self._ledger, self._runs, with_fields=True)
        is_mended = self._is_thorough and "at" in outcome and self._mend_files(part)
        files = [self._folder / name for name in artifacts.FILES if (self._folder / name).exists()]
        runs = comparison_input(part, self._ledger.generation)
        content = f"{state} {_content_digest(files, runs)}"
        if content == self._sent.fingerprint("") and not is_mended:
            return
        self._start_sweep()
        for file in files:
            self._log_artifact(self._sweep, file)
        self._log_text(self._sweep, COMPARISON_INPUT, runs)
        datasets = sweep_datasets(part.records)
        self._attempt("", "datasets", lambda: self._store.log_datasets(self._sweep, datasets))
        tags = {"carft.state": state}
        if outcome.get("broken"):
            tags["carft.failure_message"] = outcome["broken"]
        ended = round(1000 * outcome.get("at", time.time()))
        if "at" in outcome:  # else its driver was killed: nobody has compared its runs
            self._comparison = self._comparison or compare_sweeps([part])
            tags |= self._verdict_tags(self._comparison)
        # Before the arms, which take long on a slow server: an ended sweep must not look running.
        self._end_run(self._sweep, state, tags, ended)
        if "at" in outcome and self._comparison is not None:
            self._send_arms(self._comparison, ended)
        self._record_end(self._sweep, content)

    def _send_input_so_far(self) -> None:
        """Send the comparison's input of a running sweep, after a run has ended. A large sweep
        waits in between, since that file holds every run."""
        began = time.monotonic()
        if self._has_ended_runs and began >= self._input_due:
            part = load_part(self._ledger, self._runs, with_fields=True)
            text = comparison_input(part, self._ledger.generation)
            self._log_text(self._sweep, COMPARISON_INPUT, text)
            self._has_ended_runs = False
            self._input_due = began + _INPUT_PAUSE * (time.monotonic() - began)

    def _mend_files(self, part: SweepRuns) -> bool:
        """Write a missing or damaged comparison again, and a page whose links lead to deleted runs
        of the store; return whether a file was written."""
        from carft_sweep.sweeps.results.report import has_dead_links, write_page

        mended = []
        if not _is_whole(self._folder):
            self._comparison = artifacts.write_comparison(self._folder, part)
            mended.append(artifacts.COMPARISON)
        if has_dead_links(self._folder / artifacts.PAGE, self._sent.run_ids().values()):
            self._comparison = self._comparison or compare_sweeps([part])
            if write_page(self._home, self._ledger, self._comparison, self.notes.append):
                mended.append(artifacts.PAGE)
        self.notes += [f"{name} was written anew" for name in mended]
        return bool(mended)

    def describe(self, name: str) -> str:
        """Return words for a run of the sweep by its `RunKey.name`, for an arm its label."""
        label = self._arm_labels.get(name)
        return describe(name) if label is None else f"{ARM}{label}"

    def _send_arms(self, comparison: Comparison, when: int) -> None:
        """Send the table's arms and the selected arm's values."""
        summaries = arm_summaries(comparison, self._group)
        arms = {RunKey(self._sweep.sweep, arm=arm.key.digest): arm for arm in summaries}
        self._arm_labels = {key.name: arm.label for key, arm in arms.items()}
        names = {*self._arm_labels}
        for name in [*self._sent.runs]:
            if name.startswith(ARM) and name not in names:
                self._remove_arm(RunKey(self._sweep.sweep, arm=name.removeprefix(ARM)))
        for place, (key, arm) in enumerate(arms.items()):
            # MLflow lists the newest run first: so arms are listed as in the table.
            self._send_arm(key, arm, when - place, when)
        if arms:
            self._keep_view(arms_view(comparison, [*arms.values()]), when)
        values = selected_values(comparison)
        self._log_metrics(self._sweep, "selected", _metrics(values, when))

    def _keep_view(self, view: RunsView, when: int) -> None:
        keep = functools.partial(self._store.keep_view, view, self._sweep, timestamp=when)
        self._attempt("", f"view {view.title}", keep)

    def _send_arm(self, key: RunKey, arm: ArmSummary, began: int, when: int) -> None:
        """Send an arm, unless the store has the same arm already; `began` and `when` (its end) are
        in milliseconds."""
        fingerprint = self._sent.fingerprint(key.name) or "started"
        if fingerprint == arm.fingerprint:
            return
        # A store does not forget a parameter or the name of a metric.
        is_sent = fingerprint not in (*_OPEN, _REMOVED)
        start = RunStart(
            key,
            arm.name,
            began,
            parent=self._sweep,
            params=arm.params,
            tags={**arm.tags, **self._own_execution_tags(None)},
            replaces=is_sent and not fingerprint.startswith(arm.kind),
        )
        self._start_run(start)
        if (key.name, "start") in self.refused:
            return
        self._log_metrics(key, "results", _metrics(arm.metrics, when))
        self._attempt(key.name, "end", lambda: self._store.end_run(key, "finished", timestamp=when))
        self._record_end(key, arm.fingerprint)

    def _remove_arm(self, key: RunKey) -> None:
        if self._sent.fingerprint(key.name) == _REMOVED:
            return
        self._attempt(key.name, "removal", lambda: self._store.remove_run(key))
        if (key.name, "removal") not in self.refused:
            self._sent.record(key.name, "", _REMOVED)

    def _verdict_tags(self, comparison: Comparison) -> dict[str, str]:
        selected = comparison.selected
        tags = {
            "carft.verdict": comparison.verdict,
            "carft.answer": short_answer(comparison.answer),
            "carft.selected": "" if selected is None else selected.arm.label,
        }
        parts = []
        if (self._folder / artifacts.PAGE).exists():
            parts.append(f"[The report, with charts]({ARTIFACT}{artifacts.PAGE})")
        answer, statistics = comparison.answer.lines, comparison.statistics
        parts += ["\n".join(f"- {line}" for line in answer)] if answer else []
        figures = [name for name in artifacts.FIGURES if (self._folder / name).exists()]
        parts += [f"{_TITLES[name]}:\n\n![{name}]({ARTIFACT}{name})" for name in figures]
        parts += [f"**Statistics.** {' '.join(statistics)}"] if statistics else []
        if selected is not None:
            parts.append(f"**Selected.** `{selected.arm.label}`, by {comparison.rule.metric}.")
        spec = self._ledger.spec
        parts += filter(None, (spec["description"], spec.get("notes")))
        # MLflow's page of the sweep folds all but some lines, so the answer comes first.
        return {**tags, "mlflow.note.content": "\n\n".join(parts)}

    def _log_artifact(self, key: RunKey, file: Path) -> None:
        """Send a file of a run's or the sweep's folder. A file behind a link to elsewhere is
        refused: whoever can write the home could otherwise have any file of the sender sent. The
        folders of all runs, or of all sweeps, may be links to a larger disk."""
        if file.resolve().is_relative_to(file.parent.parent.resolve()):
            self._attempt(key.name, file.name, lambda: self._store.log_artifact(key, file))
        else:
            error = TrackingError("a link leads out of the home, and only files in it are sent")
            self._refuse((key.name, file.name), error)

    def _log_text(self, key: RunKey, name: str, text: str) -> None:
        with TemporaryDirectory() as place:
            file = Path(place) / name
            file.write_text(text)
            self._attempt(key.name, name, lambda: self._store.log_artifact(key, file))

    def _log_metrics(self, key: RunKey, what: str, values: Sequence[Metric]) -> None:
        """Log values; if the store refuses them, log all but the refused ones."""
        try:
            self._attempt(key.name, what, lambda: self._store.log_metrics(key, values), split=True)
        except TrackingError as error:
            if len(values) == 1:
                self._refuse((key.name, f"{what}: {values[0].name}"), error)
                return
            middle = len(values) // 2
            for part in (values[:middle], values[middle:]):
                self._log_metrics(key, what, part)

    def _attempt(
        self, digest: str, what: str, call: Callable[[], None], *, split: bool = False
    ) -> None:
        """Make one call of the store, the request `what` of the run `digest` (`RunKey.name`), if it
        was not refused for good. Raises ServiceUnreachable where the store is away, _Postponed
        where another try may succeed, and with `split` the TrackingError of a refused record."""
        step = (digest, what)
        if step in self.refused:
            return
        try:
            call()
        except RequestFailed as error:
            self._postpone(step, error)
        except ServiceUnreachable:
            raise
        except TrackingError as error:
            if split:
                raise
            # Without its start the whole run would be lost, so that is never refused at once.
            self._postpone(step, error) if what == "start" else self._refuse(step, error)
        except Exception as error:
            # Whatever a store, a driver of a database or an upload raises: one request must not
            # end the thread that sends all the others.
            self._postpone(step, error)
        else:
            self.requests += 1
            self._failures.pop(step, None)

    def _postpone(self, step: tuple[str, str], error: Exception) -> None:
        self._failures[step] += 1
        if self._failures[step] < TRIES:
            raise _Postponed(str(error)) from error
        self._refuse(step, error)

    def _refuse(self, step: tuple[str, str], error: Exception) -> None:
        kind = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "
        reason = f"{kind}{error}"
        logger.info("%s of %s is refused: %s", step[1], describe(step[0]), reason)
        with self._lock:
            self.refused[step] = reason


def _params(run: _Run, claimed: Mapping[str, Any]) -> dict[str, Scalar]:
    """Return the whole config of a run as a flat mapping: each field that is set, the varied
    fields, and the digests of data and model. An algorithm that trains nothing has no optimiser."""
    config, identity = claimed.get("config", {}), claimed.get("identity", {})
    fields = dict(flatten(config))
    fields |= {"data.digest": (identity.get("data") or {}).get("digest")}
    fields |= {"model.digest": identity.get("model")}
    left_out = ("algorithm.name", *(("optim.",) if identity.get("optim") is None else ()))
    params = {
        name: scalar(value)
        for name, value in fields.items()
        if value is not None and not name.startswith(left_out)
    }
    params |= {name: scalar(value) for name, value in run.setting.params.items()}
    params |= {"algorithm": run.setting.algorithm}
    return params if run.seed == NO_SEED else {**params, "seed": int(run.seed)}


def _metrics(values: Mapping[str, float], when: int) -> list[Metric]:
    return [Metric(name, value, 0, when) for name, value in values.items()]


def _series(metric: str) -> str:
    """Return the name of a series in MLflow, which groups charts by the text before the last slash,
    in alphabetical order, so that the probe of each split is in a group after the accuracies."""
    if not metric.startswith("context/"):
        return metric
    split, _, kind = metric.removeprefix("context/").rpartition("/")
    return f"probe/{kind}/{split.replace('/', '_')}"


def _epoch_metrics(report: Mapping[str, Any]) -> Iterator[Metric]:
    when = int(report["timestamp"])
    for name, value in report["metrics"].items():
        if has_series(name):
            yield Metric(_series(name), float(value), int(report["epoch"]), when)


def _result_metrics(
    evaluations: Mapping[str, Mapping[str, Any]], snapshot: _Snapshot
) -> Iterator[Metric]:
    """Yield the metrics of every evaluated model, except those in the report of the last epoch."""
    before: Mapping[str, Any] = {"epoch": 0, "metrics": {}}
    last = snapshot.history[-1] if snapshot.history else before
    epoch = int(last["epoch"])
    for label, evaluation in evaluations.items():
        when = _modified(_metrics_file(snapshot.folder, label))
        if label != UNMERGED:
            yield from merged_metrics(label, evaluation, epoch=epoch, timestamp=when)
            continue
        for name, value in evaluation["metrics"].items():
            if has_series(name) and last["metrics"].get(name) != value:
                yield Metric(_series(name), float(value), epoch, when)


def _end_time(snapshot: _Snapshot) -> int:
    """Return when a run ended, in milliseconds: for a finished run when it was measured, however
    late that is sent."""
    if snapshot.status == "done":
        return max(_modified(_metrics_file(snapshot.folder, label)) for label in snapshot.labels)
    ended = None if snapshot.state is None else snapshot.state.ended
    return round(1000 * (ended or time.time()))


def _state_of(name: str, fingerprint: str) -> str:
    """Return the state that the store should have of the run or arm `name`, by the fingerprint."""
    if name.startswith(ARM):
        return "running" if fingerprint in _OPEN else "finished"
    return ENDS.get(fingerprint.partition(" ")[0], "running")


def _is_whole(folder: Path) -> bool:
    """Return whether all files of a sweep's comparison exist and none is damaged."""
    try:
        is_read = read_json(folder / artifacts.COMPARISON) is not None
    except RequestError:
        return False
    return is_read and all((folder / name).exists() for name in artifacts.COMPARED)


def _metrics_file(folder: Path, label: str) -> Path:
    return folder / "evaluations" / label / "metrics.json"


def _modified(file: Path) -> int:
    """Return when a file was written, in milliseconds."""
    return file.stat().st_mtime_ns // 1_000_000


def _content_digest(files: Sequence[Path], runs: str) -> str:
    """Return a digest of `runs` (COMPARISON_INPUT's text) and of the files except the page."""
    hashed = hashlib.sha256(runs.encode())
    for file in files:
        with suppress(RefusedFile):  # nor is it sent
            hashed.update(b"" if file.name == artifacts.PAGE else read_regular(file))
    return hashed.hexdigest()[:16]


def sync_sweep(home: Home, name: str, store: Tracker) -> SweepSync:
    """Send all records that a store lacks of a sweep without a driver; return the SweepSync. Raises
    RequestError while a driver runs, and ServiceUnreachable where the store is away."""
    with undriven(home.sweep(name)):
        sync = SweepSync(home, find_ledger(home, name), store, is_thorough=True)
        while not sync.update():
            time.sleep(SOON)
    return sync

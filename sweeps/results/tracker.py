"""What a sweep reports to its tracker, each record once."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from carft_core.data import open_data
from carft_core.files import append_line, read_json, write_json
from carft_core.run import is_complete
from sweeps.engines.base import Failure
from sweeps.engines.entry import LOG
from sweeps.home import Home
from sweeps.ledger.runs import Runs
from sweeps.ledger.snapshot import view
from sweeps.plan.tasks import RunTask, merge_labels
from sweeps.results.records import CONFIG, judging, measured, records
from sweeps.spec.user_code import place_of
from tracking.comparison import runs as kept_results
from tracking.comparison.metrics import TOP1, is_told
from tracking.comparison.runs import (
    HAS_RESULT,
    HAS_SETTINGS,
    OWN,
    RESULT,
    RULE,
    SETTINGS,
    TRAINS,
    VERSION,
    RunRecord,
    scalar,
)
from tracking.comparison.spec import Terms
from tracking.comparison.wise_ft import plot, run_curve
from tracking.location import where
from tracking.provenance import context_tags
from tracking.store.base import DatasetInput, EndState, Metric, RunKey, RunStart, Tracker


class Book:
    """Lines of what was told: which runs are open, and what was told of those that ended."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._open: dict[str, None] = {}
        self._content: dict[str, str] = {}
        for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
            try:
                digest, content = json.loads(line)
            except ValueError:
                continue  # a line that a crash has torn: its run is told again
            self._take(digest, content)

    def left_open(self) -> list[str]:
        """Runs that were opened and not ended."""
        return list(self._open)

    def knows(self, digest: str, content: str) -> bool:
        """Whether exactly this was told of the run, to its end."""
        return digest not in self._open and self._content.get(digest) == content

    def has(self, digest: str) -> bool:
        """Whether anything was ever told of the run."""
        return digest in self._open or digest in self._content

    def opened(self, digest: str) -> None:
        """Before it is told."""
        if digest not in self._open:
            self._add(digest, None)

    def ended(self, digest: str, content: str) -> None:
        """After it was told."""
        self._add(digest, content)

    def _add(self, digest: str, content: str | None) -> None:
        self._take(digest, content)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        append_line(self._file, json.dumps([digest, content]))

    def _take(self, digest: str, content: str | None) -> None:
        if content is None:
            self._open[digest] = None
            return
        self._open.pop(digest, None)
        self._content[digest] = content


class ForCompare:
    """The files and tags of one sweep, of which `folder` is the home's."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name, self._folder = name, folder
        self._home = Home(folder.parents[1])

    def tags(self) -> dict[str, str]:
        """Of the sweep: how it judges. Nothing where the ledger has no mirror."""
        kept = view(self._home, self._name)
        return {} if kept is None else {RULE: json.dumps(judging(kept.spec).plain())}

    def settings(self) -> Path | None:
        """The list of the sweep's runs as they are now; None where the ledger has no mirror."""
        kept = view(self._home, self._name)
        if kept is None:
            return None
        found = records(kept, Runs(self._home.runs))
        write_json(self._folder / SETTINGS, kept_results.settings(found, kept.generation))
        return self._folder / SETTINGS

    @contextmanager
    def result(self, task: RunTask, folder: Path) -> Iterator[Path]:
        """All that was measured of a finished run, from its folder; gone when it is told."""
        labels = (OWN, *merge_labels(task.config))
        found = {label: item for label in labels if (item := measured(folder, label))}
        claimed: Mapping[str, object] = read_json(folder / CONFIG) or {}
        params = {name: scalar(value) for name, value in task.params.items()}
        record = RunRecord(
            task.algorithm, params, task.seed, task.digest, "done", task.role, task.trial
        )
        with TemporaryDirectory() as place:
            file = Path(place) / RESULT
            file.write_text(json.dumps(kept_results.result(record, claimed, found)))
            yield file


UNMERGED = "unmerged"
PRUNED = "pruned"
OF_ITS_RUNS = ("carft.generation",)
"""Tags of the sweep that each of its runs has too."""


class TrackedSweep:
    """Tells a tracker of one sweep; remembers in `folder`, the home's for it, what it has told.

    Everything may be told again after a crash: the tracker keeps equal records once. What was told
    completely is not told again to the same place (the server and experiment of the environment);
    another one is told everything.
    """

    def __init__(
        self, tracker: Tracker, name: str, folder: Path, terms: Terms | None = None
    ) -> None:
        """`terms` say by which accuracy the sweep is judged: the pictures of curves go by it."""
        self._tracker = tracker
        self._terms = terms or Terms()
        self._parent = RunKey(name)
        self._folder = folder
        self._for_compare = ForCompare(name, folder)
        # One for each place, as its journals have a folder of their own, and by the same name.
        place = where(folder.parents[1]).spool.name
        self._book = Book(folder / "told" / f"{place}.jsonl")
        self._tags: dict[str, str] = {}
        self._start: RunStart | None = None
        self._spec_file = folder
        self._opened: set[str] = set()
        self._sent: dict[str, int] = {}
        """By digest the last epoch that is told."""

    def begin(self, spec_file: Path, tags: Mapping[str, str]) -> None:
        """End what an earlier driver left open. The sweep's own run opens with the first news."""
        self._tags = context_tags()
        self._spec_file = spec_file
        own = {**self._tags, **tags, **self._for_compare.tags(), "carft.state": "running"}
        self._start = RunStart(self._parent, self._parent.sweep, _now(), tags=own)
        self._tags |= {name: tags[name] for name in OF_ITS_RUNS if name in tags}
        for digest in self._book.left_open():
            if digest == self._parent.digest:
                continue
            key = self._key(digest)
            self._open_parent()
            self._tracker.tags(key, {"carft.state": "stopped"})
            self._tracker.end(key, "killed", timestamp=_now())
            self._book.ended(digest, "")

    def started(self, task: RunTask, folder: Path, *, attempt: int, worker: str) -> None:
        """A run is trained or evaluated from now on, behind the epochs in its folder."""
        self._open(task, _now(), {"carft.attempt": str(attempt), "carft.worker": worker})
        self._send(task, read_json(folder / "history.json") or [])

    def reported(self, task: RunTask, report: Mapping[str, Any]) -> None:
        """An epoch is done."""
        self._send(task, [report])

    def finished(self, task: RunTask, folder: Path, *, reused_from: str | None = None) -> None:
        """A run is complete: all that is known of it, from its folder. Told once."""
        content = _content(task, folder, self._by(task))
        if self._book.knows(task.digest, content):
            return
        key = self._key(task.digest)
        self._catch_up(task, folder, reused_from=reused_from)
        self._tracker.metrics(key, list(_results(task, folder)))
        with self._for_compare.result(task, folder) as result:
            self._tracker.artifact(key, result)
        for file in (folder / "config.json", folder / LOG, self._curve(task, folder)):
            if file is not None and file.exists():
                self._tracker.artifact(key, file)
        self._tracker.tags(key, {"carft.state": "done", HAS_RESULT: result.name})
        self._end(task, "finished", content, at=_measured_at(task, folder))

    def failed(self, task: RunTask, failure: Failure, folder: Path) -> None:
        """A run has failed and is not tried again."""
        key, content = self._key(task.digest), f"failed: {failure.message}"
        if self._book.knows(task.digest, content):
            return
        if task.digest not in self._opened:
            self._catch_up(task, folder)
        told = {"carft.state": "failed", "carft.failure": failure.kind}
        self._tracker.tags(key, {**told, "carft.failure_message": failure.message})
        if (folder / LOG).exists():
            self._tracker.artifact(key, folder / LOG)
        self._end(task, "failed", content)

    def stopped(self, task: RunTask) -> None:
        """A run was closed before its end."""
        self._tracker.tags(self._key(task.digest), {"carft.state": "stopped"})
        self._end(task, "killed", "")

    def pruned(self, task: RunTask, folder: Path) -> None:
        """A run was closed because its trial was not worth going on with. Told once.

        One that this sweep never began is not told of, one that was done before stays done.
        """
        if self._book.knows(task.digest, PRUNED):
            return
        is_new = not self._book.has(task.digest)
        if is_new and not self._was_begun(folder):
            return
        if is_complete(folder, task.config):
            self.finished(task, folder)
            return
        self._open_parent()
        if is_new:
            self._catch_up(task, folder)
        key = self._key(task.digest)
        self._tracker.tags(key, {"carft.state": PRUNED})
        if (folder / LOG).exists():
            self._tracker.artifact(key, folder / LOG)
        self._end(task, "killed", PRUNED)

    def end(
        self,
        state: EndState,
        tags: Mapping[str, str],
        files: Sequence[Path],
        *,
        beside: Sequence[Path] = (),
    ) -> None:
        """The sweep is over for now; nothing is told when nothing is new.

        Files `beside` the others follow from them, and are nothing new by themselves.
        """
        settings = self._for_compare.settings()
        if settings is not None:
            files, tags = [*files, settings], {**tags, HAS_SETTINGS: settings.name}
        content = f"{state} {_content_of(files)}"
        if self._start is not None and self._book.knows(self._parent.digest, content):
            return
        self._open_parent()
        for file in (*files, *beside):
            self._tracker.artifact(self._parent, file)
        self._tracker.tags(self._parent, tags)
        self._tracker.end(self._parent, state, timestamp=_now())
        self._book.ended(self._parent.digest, content)

    def _open_parent(self) -> None:
        if self._start is not None:
            self._book.opened(self._parent.digest)
            self._tracker.open(self._start)
            self._tracker.artifact(self._parent, self._spec_file)
            self._start = None

    def _open(self, task: RunTask, timestamp: int, tags: Mapping[str, str]) -> None:
        self._open_parent()
        self._book.opened(task.digest)
        self._opened.add(task.digest)
        own = {
            "carft.digest": task.digest,
            "carft.algorithm": task.algorithm,
            "carft.role": task.role,
            "carft.seed": "none" if task.seed is None else str(task.seed),
            "carft.data": str(task.identity.parts["data"]["digest"]),
            "carft.weights": str(task.identity.parts["model"]),
            "carft.state": "running",
        }
        if task.untrained:
            own[TRAINS] = "false"
        if task.trial is not None:
            own["carft.trial"] = str(task.trial)
        params = {"algorithm": task.algorithm, **_plain(task.params)}
        params |= {} if task.seed is None else {"seed": task.seed}
        self._tracker.open(
            RunStart(
                self._key(task.digest),
                task.label,
                timestamp,
                parent=self._parent,
                params=params,
                tags={**self._tags, **own, **tags},
                datasets=list(_datasets(task)),
            )
        )

    def _catch_up(self, task: RunTask, folder: Path, *, reused_from: str | None = None) -> None:
        """Tell the epochs of a run; open it, where this driver has not, as of its beginning."""
        history: Sequence[Mapping[str, Any]] = read_json(folder / "history.json") or []
        if task.digest not in self._opened:
            began = int(history[0]["timestamp"]) if history else _modified(folder / "config.json")
            tags = {} if reused_from is None else {"carft.reused_from": reused_from}
            self._open(task, began, tags)
        self._send(task, history)

    def _send(self, task: RunTask, reports: Sequence[Mapping[str, Any]]) -> None:
        """Tell of epochs that are new; one that is trained again, behind a checkpoint, is not."""
        sent = self._sent.get(task.digest, -1)
        new = [report for report in reports if report["epoch"] > sent]
        if new:
            values = [metric for report in new for metric in _epoch(report)]
            self._tracker.metrics(self._key(task.digest), values)
            self._sent[task.digest] = int(new[-1]["epoch"])

    def _was_begun(self, folder: Path) -> bool:
        """Whether the run of a folder has epochs behind it, and this sweep began it."""
        known = Runs(folder.parent).read(folder.name)
        ours = known is not None and known.sweep == self._parent.sweep
        return ours and (folder / "history.json").exists()

    def _end(self, task: RunTask, state: EndState, content: str, *, at: int | None = None) -> None:
        self._tracker.end(self._key(task.digest), state, timestamp=_now() if at is None else at)
        self._opened.discard(task.digest)
        self._book.ended(task.digest, content)

    def _key(self, digest: str) -> RunKey:
        return RunKey(self._parent.sweep, digest)

    def _by(self, task: RunTask) -> str:
        """The accuracy that a run is judged by; of several families, which are tasks, its own."""
        return self._terms.on(task.config.data.family).by

    def _curve(self, task: RunTask, folder: Path) -> Path | None:
        """The run's WiSE-FT curve as a picture, where it has one."""
        own = measured(folder, UNMERGED)
        found = {label: measured(folder, label) for label in merge_labels(task.config)}
        record = RunRecord(
            task.algorithm,
            {},
            task.seed,
            task.digest,
            "done",
            task.role,
            metrics=own["metrics"] if own else {},
            merges={label: item["metrics"] for label, item in found.items() if item},
        )
        terms = Terms(by=self._by(task)).suited(record.metrics)
        curve = run_curve(record, id_metric=terms.id_metric, ood_metric=terms.ood)
        if curve is None:
            return None
        file = self._folder / "curves" / task.digest / "wise_ft.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        axes = {"id_metric": terms.id_metric, "ood_metric": terms.ood}
        plot([curve], file, title=task.label, **axes)
        return file


def _content(task: RunTask, folder: Path, by: str) -> str:
    """What there is to tell of a complete run, in one word that changes with it."""
    found = (measured(folder, label) for label in (UNMERGED, *merge_labels(task.config)))
    # What an earlier version told of a run is told again once, for the files that it did not make.
    # And once more where a run is judged by something else, for its curve.
    own = [] if by == TOP1 else [by]
    return " ".join([f"v{VERSION}", *own, *(item["digest"][:16] for item in found if item)])


def _content_of(files: Sequence[Path]) -> str:
    """One word that changes with what the files hold."""
    hashed = hashlib.sha256()
    for file in files:
        hashed.update(file.read_bytes())
    return hashed.hexdigest()[:16]


def _epoch(report: Mapping[str, Any]) -> Iterator[Metric]:
    for name, value in report["metrics"].items():
        if is_told(name):
            yield Metric(name, float(value), int(report["epoch"]), int(report["timestamp"]))


def _results(task: RunTask, folder: Path) -> Iterator[Metric]:
    """The metrics of every evaluated model; of merged ones along the merge's own axis.

    What the report of the last epoch has told already is not told again.
    """
    history = read_json(folder / "history.json") or [{"epoch": 0, "metrics": {}}]
    last: Mapping[str, Any] = history[-1]
    for label in (UNMERGED, *merge_labels(task.config)):
        found = measured(folder, label)
        if found is None:
            continue
        when = _measured(folder, label)
        for name, value in found["metrics"].items():
            if not is_told(name, merged=label != UNMERGED):
                continue
            if label != UNMERGED:
                merged = f"{label.partition('@')[0]}/{name}"
                yield Metric(merged, float(value), int(found["step"]), when)
            elif last["metrics"].get(name) != value:
                yield Metric(name, float(value), int(last["epoch"]), when)


def _measured_at(task: RunTask, folder: Path) -> int:
    """When a finished run was measured to its end, however late it is told."""
    return max(_measured(folder, label) for label in (UNMERGED, *merge_labels(task.config)))


def _measured(folder: Path, label: str) -> int:
    return _modified(folder / "evaluations" / label / "metrics.json")


def _datasets(task: RunTask) -> Iterator[DatasetInput]:
    config = task.config.data
    data = open_data(config)
    digest = data.digest
    shifts = [f"shift/{name}" for name in data.shifts]
    for context in ("train", "val", "test", *shifts):
        yield DatasetInput(config.family, digest, place_of(config), context)


def _plain(params: Mapping[str, Any]) -> dict[str, str | int | float | bool | None]:
    return {
        name: value if isinstance(value, (str, int, float, bool)) or value is None else str(value)
        for name, value in params.items()
    }


def _modified(file: Path) -> int:
    """When a file was written, in milliseconds: the same whenever its content is told."""
    return file.stat().st_mtime_ns // 1_000_000


def _now() -> int:
    return time.time_ns() // 1_000_000

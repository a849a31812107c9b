"""A sweep as a tracking server has it, made into what a comparison is made from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, cast

from tracking import kept_results
from tracking.base import TrackingError
from tracking.joint import Part
from tracking.judging import Judging
from tracking.kept_results import Result, Settings
from tracking.names import unknown
from tracking.records import Role, RunRecord, Scalar, State

_HOME = 8
"""Characters of a home's id that are shown."""
_UNMERGED = ("id/", "ood/", "gap/", "hmean/", "gain/", "context/")
"""What metrics of a run's own model begin with; a merged one's are below its merge's name."""
_STATES: Mapping[str, State] = {
    "done": "done",
    "failed": "failed",
    "stopped": "stopped",
    "pruned": "pruned",
    "running": "running",
}
_FACTS: Mapping[str, str] = {"data": "carft.data", "model": "carft.weights"}


@dataclass(frozen=True)
class ServedRun:
    """One run of a server: tags and parameters as text, the last value of each metric."""

    tags: Mapping[str, str]
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    artifacts: str = ""
    """Where its files lie."""

    @property
    def digest(self) -> str:
        """The training digest; empty of a sweep's own run."""
        return self.tags.get("carft.run", "")

    @property
    def state(self) -> State:
        """As its driver told it last."""
        return _STATES.get(self.tags.get("carft.state", ""), "missing")


@dataclass(frozen=True)
class ServedSweep:
    """A sweep's own run."""

    run: ServedRun
    run_id: str
    started: int
    """Milliseconds since the Unix epoch."""

    @property
    def name(self) -> str:
        """As its file says."""
        return self.run.tags["carft.sweep"]

    @property
    def home(self) -> str:
        """The id of the home that ran it."""
        return self.run.tags.get("carft.home", "")

    @property
    def state(self) -> str:
        """`running`, `done`, `failed` or `interrupted`."""
        return self.run.tags.get("carft.state", "unknown")

    @property
    def generation(self) -> str | None:
        """The newest one."""
        return self.run.tags.get("carft.generation")

    @property
    def place(self) -> str:
        """`kl_weight@1f3a9c02`: its name with the home, as `find` takes it."""
        return f"{self.name}@{self.home[:_HOME]}"

    def as_dict(self) -> dict[str, object]:
        """Plain data for standard JSON and for a list."""
        begun = datetime.fromtimestamp(self.started / 1000, UTC)
        return {
            "sweep": self.place,
            "name": self.name,
            "home": self.home,
            "state": self.state,
            "begun": begun.strftime("%Y-%m-%d %H:%M"),
            "user": self.run.tags.get("mlflow.user", "unknown"),
            "run_id": self.run_id,
        }

    def line(self) -> str:
        """The same for people."""
        told = self.as_dict()
        return f"{self.place}  {self.state}, begun {told['begun']} UTC by {told['user']}"


def find(sweeps: Sequence[ServedSweep], name: str) -> ServedSweep:
    """The sweep of a name, or of `NAME@HOME` where several homes have one.

    Raises TrackingError that lists them, or says the nearest name.
    """
    wanted, _, home = name.partition("@")
    named = [sweep for sweep in sweeps if sweep.name == wanted]
    ours = [sweep for sweep in named if sweep.home.startswith(home)]
    if len(ours) == 1:
        return ours[0]
    if not named:
        raise TrackingError(unknown("sweep", wanted, sorted({sweep.name for sweep in sweeps})))
    each = "\n".join(f"  {sweep.line()}" for sweep in named)
    if not ours:
        raise TrackingError(f"no home {home!r} has a sweep {wanted!r}; there are:\n{each}")
    raise TrackingError(f"{len(ours)} homes have a sweep {wanted!r}; say which:\n{each}")


def part(
    sweep: ServedSweep,
    runs: Mapping[str, ServedRun],
    settings: Settings | None,
    results: Mapping[str, Result],
    name: str,
) -> Part:
    """The runs of a sweep, by digest, with the files that were there, under `name`.

    What has no result is taken as far as tags and metrics tell, and a warning says so.
    """
    if settings is not None and str(settings.generation) != sweep.generation:
        settings = None  # of an earlier one
    known = _Known(sweep, runs, settings, results)
    judging, said = _judging(sweep)
    records = list(known.records())
    return Part(
        sweep=name,
        records=records,
        judging=judging,
        fields={digest: found.fields for digest, found in results.items()},
        warnings=(*said, *known.warnings(records)),
    )


@dataclass(frozen=True)
class _Known:
    """What a server knows of the runs of a sweep."""

    sweep: ServedSweep
    runs: Mapping[str, ServedRun]
    settings: Settings | None
    results: Mapping[str, Result]

    @property
    def is_running(self) -> bool:
        """Whether the list of runs may lag behind them."""
        return self.sweep.state == "running"

    def records(self) -> Iterator[RunRecord]:
        """As the sweep's own list says; while it runs, also what has begun since."""
        listed = () if self.settings is None else self.settings.records
        for record in listed:
            yield self._measured(record, list(record.merges))
        if self.settings is not None and not self.is_running:
            return
        known = {record.digest for record in listed}
        for digest, run in self.runs.items():
            if digest not in known and self._is_current(run):
                found = self.results.get(digest)
                labels = [] if found is None else list(found.merges)
                yield self._measured(_told(run, found), labels)

    def warnings(self, records: Sequence[RunRecord]) -> tuple[str, ...]:
        """What was not there to be read of them."""
        said = []
        if self.settings is None and self.runs:
            lost = kept_results.HAS_SETTINGS in self.sweep.run.tags and not self.is_running
            why = (
                f"its {kept_results.SETTINGS} is not at {self.sweep.run.artifacts}, where the "
                "server says, or is of an earlier generation"
                if lost
                else "it has not ended, or was tracked by an older version"
            )
            said.append(f"of {self.sweep.name} only the runs that have begun are known: {why}")
        done = {record.digest for record in records if record.state == "done"}
        lacking = len(done - self.results.keys())
        if lacking:
            runs = "run has" if lacking == 1 else "runs have"
            said.append(
                f"{lacking} finished {runs} no {kept_results.RESULT} on the server: what MLflow's "
                "own metrics tell is taken, without merged models"
            )
        return tuple(said)

    def _measured(self, record: RunRecord, labels: Sequence[str]) -> RunRecord:
        run, found = self.runs.get(record.digest), self.results.get(record.digest)
        state = run.state if run is not None and self.is_running else record.state
        if found is None:
            metrics = {} if run is None else _own_metrics(run)
            facts = {} if run is None else _facts(run)
            return replace(record, state=state, metrics=metrics, merges={}, facts=facts)
        merges = {label: found.merges[label] for label in labels if label in found.merges}
        return replace(record, state=state, metrics=found.metrics, merges=merges, facts=found.facts)

    def _is_current(self, run: ServedRun) -> bool:
        ours = self.sweep.generation
        return run.tags.get("carft.generation", ours) == ours


def _told(run: ServedRun, result: Result | None) -> RunRecord:
    """A run as its tags and parameters tell."""
    seed, trial = run.tags.get("carft.seed", "none"), run.tags.get("carft.trial", "none")
    return RunRecord(
        algorithm=run.tags.get("carft.algorithm", "unknown"),
        params=_params(run) if result is None else result.params,
        seed=int(seed) if seed.isdigit() else None,
        digest=run.digest,
        state=run.state,
        role=cast(Role, run.tags.get("carft.role", "trial")),
        trial=int(trial) if trial.isdigit() else None,
        untrained=run.tags.get(kept_results.TRAINS) == "false",
    )


def _params(run: ServedRun) -> dict[str, Scalar]:
    apart = ("algorithm", "seed")
    return {name: _parsed(text) for name, text in run.params.items() if name not in apart}


def _parsed(text: str) -> Scalar:
    """A parameter as `limits.param` wrote it."""
    try:
        value: Any = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, (int, float, bool)) or value is None else text


def _own_metrics(run: ServedRun) -> dict[str, float]:
    return {name: value for name, value in run.metrics.items() if name.startswith(_UNMERGED)}


def _facts(run: ServedRun) -> dict[str, object]:
    return {name: run.tags[tag] for name, tag in _FACTS.items() if tag in run.tags}


def _judging(sweep: ServedSweep) -> tuple[Judging, tuple[str, ...]]:
    told = sweep.run.tags.get(kept_results.RULE)
    if told is None:
        usual = Judging()
        said = f"{sweep.name} does not tell how it chooses: {usual.rule.metric}, {usual.rule.name}"
        return usual, (f"{said} is taken; see --metric and --selection",)
    try:
        return Judging.of_plain(json.loads(told)), ()
    except ValueError as error:
        raise TrackingError(f"{sweep.name}: {kept_results.RULE} is no JSON: {error}") from None

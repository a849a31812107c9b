"""The ledger of a sweep: the append-only file that is the truth about its trials."""

from __future__ import annotations

import difflib
import json
import logging
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.files import append_lines, parse_json, read_lines
from carft_sweep.carft_core.runs.result import FINITE, check_label, check_time
from carft_sweep.sweeps.home import Home
from carft_sweep.tracking.program import program

if TYPE_CHECKING:
    from carft_sweep.tracking.comparison.runs import Role

LEDGER_FILE = "ledger.jsonl"
Goal = Literal["minimize", "maximize"]
State = Literal["running", "complete", "failed", "pruned"]
CONFIRMATIONS, SOUPS, FINAL_RUNS = "confirmations", "soups", "final_runs"
"""Keys of facts about the runs that follow all trials: the settings to confirm and the soups, once
they are chosen, and the number of these runs."""
TRIAL_RUNS = "trial_runs"
"""Key of the number of runs of all trials, its maximum where points are still to be chosen."""
POINTS, SECONDS = "points", "seconds"
"""Keys of facts: the generation's points in order, as far as they do not depend on results, and the
seconds that the sweep has spent, those of earlier generations too."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """One point of the search space, as the sampler proposed it."""

    __pydantic_config__: ClassVar[Any] = FINITE | {"extra": "forbid"}

    number: int
    """Its place among all proposals, from 0: Optuna's number."""
    point: int
    """The number of its point, from 0. A failed trial that is tried again is a new trial there."""
    params: Mapping[str, Any]
    algorithm: str
    runs: Mapping[str, str]
    """Seed as text (`none` where no seed matters) to training digest."""
    merges: Sequence[str]
    """The labels of the merged models that were asked for."""
    began: float = 0.0
    """When it was proposed, in seconds since the Unix epoch."""
    state: State = "running"
    values: Sequence[float] = ()
    """One for each goal when it is complete; else none."""
    reason: Mapping[str, str] | None = None
    """Why it failed or was pruned: `kind` and `message`."""
    ended: float | None = None
    untrained: bool = False
    """Whether its runs train nothing, and have seeds for their splits alone."""
    result: str | None = None
    """The epoch that its runs are measured at, `last` or `best_val`."""
    sampler: Mapping[str, Any] = field(default_factory=dict)
    """Optuna's system attributes of the trial that later proposals need: NSGA-II's generation."""
    reports: dict[int, float] = field(default_factory=dict)
    """Epoch to the value that early termination judged."""

    def __post_init__(self) -> None:
        """Raise ValueError for an invalid seed, digest, label, time or reason."""
        check_runs(self.runs, self.merges)
        check_time(self.began)
        _check_end(self.ended, self.reason)

    @property
    def value(self) -> float | None:
        """The trial's value by the first goal."""
        return self.values[0] if self.values else None


_SEED = re.compile(r"none|-?\d{1,20}")
_DIGEST = re.compile(r"\w[\w-]{0,99}")


def check_runs(runs: Mapping[str, str], merges: Sequence[str]) -> None:
    """Raise ValueError for invalid seeds, digests and labels, which become names of files."""
    for seed, digest in runs.items():
        if not _SEED.fullmatch(seed):
            raise ValueError(f"{seed[:40]!r} is no seed")
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"{digest[:40]!r} is no digest of a run")
    for label in merges:
        check_label(label)


def _check_end(ended: float | None, reason: Mapping[str, str] | None) -> None:
    """Raise ValueError for an invalid time of an end, or an invalid reason."""
    check_time(ended)
    if reason is not None and not {"kind", "message"} <= reason.keys():
        raise ValueError("a reason has a kind and a message")


@dataclass(frozen=True)
class SettingRecord:
    """An algorithm at one setting, as a fact of the ledger; its runs differ in the seed alone."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    algorithm: str
    params: Mapping[str, Any]
    runs: Mapping[str, str]
    """Seed as text to training digest."""
    merges: Sequence[str] = ()
    untrained: bool = False
    result: str | None = None
    members: Sequence[str] = ()
    """The digests that a soup is made of."""

    def __post_init__(self) -> None:
        """Raise ValueError for an invalid seed, digest or label."""
        check_runs(self.runs, self.merges)


@dataclass(frozen=True, kw_only=True)
class Setting(SettingRecord):
    """A setting that the current sweep file includes, with its runs."""

    role: Role
    trial: Trial | None = None
    """None for a baseline, a confirmation or a soup."""


@dataclass(frozen=True)
class Outcome:
    """How a sweep ended, as a fact of its ledger."""

    state: Literal["running", "done", "interrupted", "failed"]
    at: float | None = None
    broken: str | None = None


@dataclass(frozen=True)
class FactsRecord:
    """The facts of a generation whose form is checked; there may be others."""

    __pydantic_config__: ClassVar[Any] = FINITE

    trial_count: int | None = None
    trial_runs: int | None = None
    merges: Sequence[str] = ()
    baselines: Sequence[SettingRecord] = ()
    confirmations: Sequence[SettingRecord] = ()
    soups: Sequence[SettingRecord] = ()
    final_runs: int | None = None
    points: Sequence[Mapping[str, Any]] = ()
    seconds: float = 0.0
    outcome: Outcome | None = None
    bad_nodes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise ValueError for an invalid label."""
        check_runs({}, self.merges)


@dataclass(frozen=True)
class GoalRecord:
    """A metric by which trials are valued."""

    name: str
    goal: Goal
    merge: str | None = None


@dataclass(frozen=True)
class SpecRecord:
    """The parts of a sweep's plain data that are read without the models of `Settings`."""

    __pydantic_config__: ClassVar[Any] = FINITE

    name: str = ""
    description: str = ""
    method: str = "grid"
    metric: GoalRecord | None = None
    metrics: Sequence[GoalRecord] | None = None
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seeds: Sequence[int] = ()
    confirm_seeds: Sequence[int] | None = None
    tasks: str | None = None
    report: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Begin:
    generation: int
    spec: SpecRecord
    began: float
    points: Sequence[Mapping[str, Any]] = ()
    seconds: float = 0.0

    def __post_init__(self) -> None:
        check_time(self.began)


@dataclass(frozen=True)
class _End:
    __pydantic_config__: ClassVar[Any] = FINITE | {"extra": "forbid"}

    number: int
    ended: float
    state: State
    values: Sequence[float] = ()
    reason: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        _check_end(self.ended, self.reason)


@dataclass(frozen=True)
class _Change:
    """A line of the ledger, which has exactly one of the fields."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    begin: _Begin | None = None
    spec: SpecRecord | None = None
    execution: Mapping[str, Any] | None = None
    facts: FactsRecord | None = None
    report: tuple[int, int, float | None] | None = None
    trial: Trial | _End | None = None


@contextmanager
def damage_named(source: object) -> Iterator[None]:
    """Turn errors of wrong data within the context into RequestErrors that name `source`."""
    try:
        yield
    except _DAMAGE as error:
        raise _damaged(source, error) from None


_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, IndexError)
"""What is raised where data are not what they should be."""


def _damaged(source: object, error: Exception) -> RequestError:
    kind = "" if isinstance(error, RequestError) else f"{type(error).__name__}: "
    reason = " ".join(f"{kind}{error}".split())[:300]
    return RequestError(f"{source} is damaged ({reason})")


class Ledger:
    """One generation of a sweep. Anybody may read it; only the sweep's driver writes.

    Each line of the file is one change, which is on disk before it is applied in memory. Methods
    that write raise OSError where the disk takes no line.
    """

    def __init__(
        self,
        file: Path,
        generation: int,
        spec: Mapping[str, Any],
        began: float,
        earlier: Sequence[Ledger] = (),
    ) -> None:
        self.file, self.generation, self.spec, self.began = file, generation, spec, began
        self.earlier = earlier
        """The generations before, the first one first."""
        self.executions: list[Mapping[str, Any]] = []
        """Every start of a driver: how it was asked to run, and with which code."""
        self._facts: Mapping[str, Any] = {}
        """Replaced as a whole: the thread that sends to MLflow reads them too."""
        self._trials: dict[int, Trial] = {}
        self._number_at: dict[int, int] = {}

    @classmethod
    def create(
        cls,
        folder: Path,
        generation: int,
        spec: Mapping[str, Any],
        execution: Mapping[str, Any],
        earlier: Sequence[Ledger] = (),
        *,
        points: Sequence[Mapping[str, Any]] = (),
        seconds: float = 0.0,
    ) -> Ledger:
        """Begin a generation and return its ledger: append at once the sweep as plain data, its
        planned points, the seconds spent so far, and the driver's invocation (`execution`)."""
        folder.mkdir(parents=True, exist_ok=True)
        ledger = cls(folder / LEDGER_FILE, generation, spec, time.time(), earlier)
        head = {"generation": generation, "spec": spec, "began": ledger.began}
        head |= {POINTS: [*points], SECONDS: seconds}
        ledger._write({"begin": head}, {"execution": execution})
        logger.info("%s: generation %d begins", ledger.name, generation)
        return ledger

    @property
    def is_fresh(self) -> bool:
        """Whether its last driver has `--fresh`: runs from before the generation train again."""
        return bool(self.executions and self.executions[-1].get("fresh"))

    @property
    def name(self) -> str:
        """The name of the sweep."""
        return self.file.parent.name

    def extend(self, spec: Mapping[str, Any]) -> None:
        """Record a changed sweep file that leaves the trials unchanged."""
        if spec != self.spec:
            self._write({"spec": spec})

    def execute(self, execution: Mapping[str, Any]) -> None:
        """Record that a driver has started, with its invocation."""
        self._write({"execution": execution})

    def remember(self, key: str, value: Any) -> None:
        """Record a value of the generation under a key, as plain data."""
        if self._facts.get(key) != value:
            self._write({"facts": {key: value}})

    def recall(self, key: str, default: Any = None) -> Any:
        """Return the value that `remember` recorded, else `default`."""
        return self._facts.get(key, default)

    def trials(self) -> list[Trial]:
        """Return the newest trial at each point, by point."""
        return [self._trials[self._number_at[point]] for point in sorted(self._number_at)]

    def points(self) -> list[Mapping[str, Any]]:
        """Return the generation's decided points in order: the planned, then the proposed."""
        planned = self.recall(POINTS, ())
        return [*planned, *(trial.params for trial in self.trials()[len(planned) :])]

    def proposals(self) -> list[Trial]:
        """Return every trial by number, also trials that were tried again later."""
        return [*self._trials.values()]

    def proposal(self, number: int) -> Trial:
        """Return the trial of a number."""
        return self._trials[number]

    @property
    def next_number(self) -> int:
        """Number of the next trial."""
        return len(self._trials)

    def add_trial(
        self, point: int, setting: Mapping[str, Any], sampler: Mapping[str, Any] | None = None
    ) -> Trial:
        """Record a new running trial at the point number `point`, and return it. `setting` has
        further fields of Trial, by name; `sampler` is its field of this name."""
        number = self.next_number
        record = {"number": number, "point": point, "began": time.time(), **setting}
        record |= {"sampler": dict(sampler)} if sampler else {}
        record.pop("members", None)  # they are among the parameters too
        self._write({"trial": record})
        return self._trials[number]

    def report(self, number: int, epoch: int, value: float) -> None:
        """Record the value of a running trial after an epoch. The line is not durable at once,
        since the histories of the runs have the value too."""
        finite = value if math.isfinite(value) else None
        self._write({"report": [number, epoch, finite]}, durable=False)

    def complete(self, number: int, values: Sequence[float]) -> Trial:
        """End a trial with its values, in the order of the goals, and return it."""
        return self._end_trial(number, "complete", values=[*values])

    def prune(self, number: int, kind: str, message: str) -> Trial:
        """End a trial that is not worth its further epochs, record why, and return it."""
        return self._end_trial(number, "pruned", reason={"kind": kind, "message": message})

    def fail(self, number: int, kind: str, message: str) -> Trial:
        """End a trial without a value, record why, and return it."""
        return self._end_trial(number, "failed", reason={"kind": kind, "message": message})

    def settings(self) -> Iterator[Setting]:
        """Yield the current file's settings: baselines, trials, soups, then confirmations."""
        yield from self.baselines()
        count, are_varied = self.recall("trial_count"), "merges" in self.spec["parameters"]
        for trial in self.trials():
            if count is None or trial.point < count:  # the file may have been shortened
                yield Setting(
                    role="trial",
                    algorithm=trial.algorithm,
                    params=trial.params,
                    runs=trial.runs,
                    merges=trial.merges if are_varied else self.recall("merges", ()),
                    untrained=trial.untrained,
                    result=trial.result,
                    trial=trial,
                )
        yield from self.soups()
        yield from self.confirmations()

    def baselines(self) -> list[Setting]:
        """Return the settings of `baselines`, also soups whose members the file names."""
        items = self.recall("baselines", ())
        return [Setting(role="soup" if "members" in item else "baseline", **item) for item in items]

    def beside_trials(self) -> list[Setting]:
        """Return the settings that are no trials: baselines, confirmations and soups."""
        return [setting for setting in self.settings() if setting.trial is None]

    def confirmations(self) -> list[Setting]:
        """Return the settings to run again on fresh seeds, if the current file includes them."""
        items = self.recall(CONFIRMATIONS, ()) if self.spec.get("confirm_seeds") else ()
        return [Setting(role="confirmation", **item) for item in items]

    def soups(self) -> list[Setting]:
        """Return the soups of finished runs, if the current file includes any."""
        items = self.recall(SOUPS, ()) if self.spec.get("after") else ()
        return [Setting(role="soup", **item) for item in items]

    def _end_trial(self, number: int, state: State, **result: Any) -> Trial:
        if self._trials[number].state != "running":
            raise ValueError(f"trial {number} has ended already: {self._trials[number].state}")
        self._write({"trial": {"number": number, "ended": time.time(), "state": state, **result}})
        return self._trials[number]

    def _write(self, *changes: Mapping[str, Any], durable: bool = True) -> None:
        compact = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        lines = [compact.encode(change) for change in changes]
        try:
            parsed = [parse_json(line.encode(), "it", _Change) for line in lines]
        except RequestError as error:
            raise RequestError(f"{self.file}: a line that {error} is not written") from None
        append_lines(self.file, lines, durable=durable)
        for change in parsed:
            self._apply(change)

    def _apply(self, change: Mapping[str, Any]) -> None:
        ((kind, data),) = change.items()
        match kind:
            case "begin":
                self.spec = data["spec"]
                self._facts = {key: data[key] for key in (POINTS, SECONDS) if key in data}
            case "spec":
                self.spec = data
            case "execution":
                self.executions.append(data)
            case "facts":
                self._facts = {**self._facts, **data}
            case "report":
                number, epoch, value = data
                self._trials[number].reports[epoch] = math.nan if value is None else value
            case "trial" if "point" in data:
                trial = Trial(**data)
                self._trials[trial.number] = trial
                self._number_at[trial.point] = trial.number
            case "trial":
                number = data["number"]
                self._trials[number] = replace(self._trials[number], **data)
            case _:
                raise ValueError(f"unknown kind of line {kind!r}")


def read_generations(file: Path) -> list[Ledger]:
    """Return every generation of a ledger file; an empty list if the file is missing. Raises
    RequestError with the line where the file is damaged."""
    ledgers: list[Ledger] = []
    for number, line in enumerate(read_lines(file), start=1):
        try:
            _read_line(file, line, ledgers)
        except _DAMAGE as error:
            is_newer = "Unexpected keyword" in str(error)
            newer = "if a newer carft-sweep wrote it, upgrade this one; otherwise " * is_newer
            raise RequestError(
                f"{_damaged(f'{file}:{number}', error)}; {newer}the lines before it are whole: "
                "cut the file there, or move it away, and the sweep begins anew and reuses its runs"
            ) from None
    return ledgers


def _read_line(file: Path, line: bytes, ledgers: list[Ledger]) -> None:
    """Apply a line to the last of `ledgers`, or append to them the ledger that the line begins."""
    change = parse_json(line, "it", _Change)
    if "begin" in change:
        head = change["begin"]
        first_line = (head["generation"], head["spec"], head["began"])
        ledgers.append(Ledger(file, *first_line, earlier=tuple(ledgers)))
    ledgers[-1]._apply(change)


def newest_generation(home: Home, name: str) -> Ledger | None:
    """Return the newest generation of a sweep; None if the sweep was never run in this home."""
    return next(iter(read_generations(home.sweep(name) / LEDGER_FILE)[-1:]), None)


def find_ledger(home: Home, name: str) -> Ledger:
    """Return a sweep's newest generation. Raises RequestError with the nearest name if unknown."""
    ledger = newest_generation(home, name)
    if ledger is None:
        raise RequestError(
            f"the sweep {name} has not begun: {sweep_folder(home, name) / LEDGER_FILE} holds "
            f"nothing yet; if no driver is starting it, run its file again: {program()} run FILE"
        )
    return ledger


def sweep_names(home: Home) -> list[str]:
    """Return the names of the sweeps that have begun, or are being started, in a home."""
    files = (*home.sweeps.glob(f"*/{LEDGER_FILE}"), *home.sweeps.glob("*/driver.json"))
    names = {file.parent.name for file in files}
    return sorted(name for name in names if not name.startswith("."))  # which are being removed


def check_case(home: Home, name: str) -> None:
    """Raise RequestError where the name of another sweep differs only in upper and lower case,
    since some file systems have one folder for both."""
    for other in sweep_names(home):
        if other != name and other.casefold() == name.casefold():
            raise RequestError(
                f"{home.path} has a sweep {other!r}, which differs from {name!r} in upper and "
                f"lower case alone; to run that one: --set name={other}, else choose another name"
            )


def begun_sweeps(home: Home) -> list[str]:
    """Return the names of the sweeps of a home whose ledger has at least a line."""
    files = ((name, home.sweep(name) / LEDGER_FILE) for name in sweep_names(home))
    return [name for name, file in files if file.exists() and file.stat().st_size]


def sweep_folder(home: Home, name: str) -> Path:
    """Return the folder of a begun sweep. Raises RequestError with the nearest name if unknown."""
    names = sweep_names(home)
    if name in names:
        return home.sweep(name)
    if not home.path.is_dir():
        raise RequestError(
            f"there is no home {home.path}, so no sweep {name!r}; name another with --home or "
            f"CARFT_HOME, or make this one with {program()} run"
        )
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"Known: {', '.join(names) or 'none'}."
    if name.endswith((".yaml", ".yml")):
        hint = f"give the name of a sweep, not its file. {hint}"
    raise RequestError(f"no sweep {name!r} in {home.path}; {hint}")

"""Whether a sweep that was run before is resumed, extended or begun anew."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.files import checked_json
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.ledger import POINTS, SECONDS, Ledger, Trial
from carft_sweep.sweeps.ledger.runs import RunStore
from carft_sweep.sweeps.ledger.status import has_work_left, started_by
from carft_sweep.tracking.program import program
from carft_sweep.tracking.provenance import USER, provenance_tags

if TYPE_CHECKING:
    from carft_sweep.sweeps.spec.spec import SweepSpec
    from carft_sweep.sweeps.spec.user_code import Vet

COPY = "sweep.yaml"
"""The sweep file as it was run, beside the ledger."""
Effect = Literal["extend", "reevaluate", "restart"]
"""What a changed field does. `reevaluate`: the same points keep their trained runs, and get new
values from them."""

EXTEND = (
    *("description", "tags", "notes", "experiment", "baselines", "run_cap", "time_budget"),
    *("metric.target", "report", "import"),
    *("retries", "timeout", "breaker", "engine", "parallel", "resources"),
    *("confirm_seeds", "after", "selection"),
    *("trial.merges", "trial.data.root", "trial.workers", "trial.device"),
)
"""Fields that may change while all trials keep their values; a name includes what is below it."""
REEVALUATE = ("seeds", "trial.keep", "trial.eval", "trial.data.shifts")
"""Fields whose change gives trials new values, from the runs that they have."""
_SHOWN = 60
_ABSENT = object()


@dataclass(frozen=True)
class Invocation:
    """The arguments of a `run`, which the ledger keeps so that `resume NAME` can repeat it."""

    file: str
    """The sweep file, absolute."""
    overrides: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    folder: str | None = None
    """The working folder: paths in a trial, such as `data.root`, are relative to it."""
    address: str | None = None
    """Of the Ray cluster; None without `--address`, or if it holds a user or password."""

    @classmethod
    def of(cls, spec: SweepSpec, address: str | None = None) -> Invocation:
        """Return the invocation of a sweep that this process runs."""
        is_secret = address is not None and "@" in address
        return cls(
            str(spec.source_path.absolute()),
            tuple(spec.overrides),
            tuple(spec.imports),
            str(Path.cwd()),
            None if is_secret else address,
        )

    @classmethod
    def last(cls, ledger: Ledger) -> Invocation:
        """Return a ledger's last invocation. Raises RequestError if the file's copy was deleted."""
        folder = ledger.file.parent
        if not ledger.executions or not (folder / COPY).exists():
            raise RequestError(
                f"how the sweep {ledger.name} was run is not kept in {folder}; run its file "
                f"instead: {program()} run FILE"
            )
        content = json.dumps(ledger.executions[-1]).encode()
        source = f"{ledger.file}: the last execution in it"
        invocation: Invocation = checked_json(content, source, cls)
        return invocation

    def as_execution(self) -> dict[str, Any]:
        """Return the ledger's record of a driver that starts now, with its code as tags."""
        return {**asdict(self), "at": time.time(), "tags": provenance_tags()}

    def with_override(self, key: str, value: object) -> Invocation:
        """Return the invocation with the override `key=value` in place of earlier ones of `key`."""
        others = [text for text in self.overrides if text.partition("=")[0].strip() != key]
        return replace(self, overrides=(*others, f"{key}={value}"))

    def change(self, folder: Path) -> str | None:
        """Return a message if the sweep file has changed since the sweep in `folder` was run."""
        from carft_sweep.sweeps.spec.document import read_text

        copy, now = read_text(folder / COPY, follow=False), None
        with contextlib.suppress(RequestError):
            now = read_text(Path(self.file))
        if now == copy:
            return None
        if now is None:
            return f"{self.file} is gone or cannot be read; the sweep goes on as it was run"
        return (
            f"{self.file} has changed since; the sweep goes on with the file as it was run. "
            f"To take up the changes: {program()} run {shlex.quote(self.file)}"
        )

    def load(self, folder: Path, vet: Vet) -> tuple[SweepSpec, str | None]:
        """Return the sweep in `folder` as it was run, with a message if its file has changed.
        The home names the imported modules, and `vet` decides which of them run. Raises
        RequestError."""
        from carft_sweep.sweeps.spec.document import read_text
        from carft_sweep.sweeps.spec.spec import load_spec

        copy, note = read_text(folder / COPY, follow=False), self.change(folder)
        try:
            return load_spec(self.file, self.overrides, self.imports, text=copy, vet=vet), note
        except RequestError as error:
            if note is None:
                raise
            raise RequestError(f"{folder / COPY}, the file as it was run: {error}") from None

    @contextlib.contextmanager
    def working_directory(self) -> Iterator[str | None]:
        """Change to the directory of `run` within the context; yield a message if it is gone."""
        before, own = Path.cwd(), Path(self.folder or Path(self.file).parent)
        try:
            os.chdir(own)
        except OSError:
            yield f"{own} is gone, where the sweep was run; relative paths are sought in {before}"
            return
        try:
            yield None
        finally:
            os.chdir(before)


@dataclass(frozen=True)
class Change:
    """A field in which the sweep differs from its newest generation."""

    field: str
    before: Any
    now: Any
    effect: Effect

    def __str__(self) -> str:
        return f"{self.field}: {_shown(self.before)} -> {_shown(self.now)}"


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Return every field in which two sweeps, as plain data, differ."""
    return [
        Change(field, old, new, _effect(field)) for field, old, new in _differing(before, now, "")
    ]


def effect(differences: list[Change]) -> Effect | None:
    """Return the strongest effect of the changes: restart, reevaluate, extend; None without any."""
    for strongest in ("restart", "reevaluate", "extend"):
        if any(change.effect == strongest for change in differences):
            return strongest
    return None


def _effect(field: str) -> Effect:
    names: dict[Effect, tuple[str, ...]] = {"reevaluate": REEVALUATE, "extend": EXTEND}
    for kind, own in names.items():
        if any(field == name or field.startswith(f"{name}.") for name in own):
            return kind
    return "restart"


def _differing(
    before: Mapping[str, Any], now: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, Any, Any]]:
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key, _ABSENT), now.get(key, _ABSENT)
        field = f"{prefix}{key}"
        if all(isinstance(value, Mapping) or value is _ABSENT for value in (old, new)):
            old, new = ({} if value is _ABSENT else value for value in (old, new))
            yield from _differing(old, new, f"{field}.")
        elif old != new:
            yield field, old, new


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "(not given)"
    text = str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def in_kept_order(spec: SweepSpec, newest: Ledger | None) -> SweepSpec:
    """Return the sweep with its parameters in the order of the generation `newest`, if they are the
    same parameters: labels of points and random draws depend on the order."""
    before = {} if newest is None else newest.spec["parameters"]
    by_name = {item.name: item for item in spec.parameters}
    if before.keys() != by_name.keys():
        return spec
    # A copy would keep what is cached: the grid in the other order.
    ordered = {"parameters": tuple(by_name[name] for name in before)}
    return type(spec).model_construct(**{**dict(spec), **ordered})


Points = Sequence[Mapping[str, Any]]


def planned_points(spec: SweepSpec, points: Points) -> list[Mapping[str, Any]]:
    """Return the decided `points`, then the sweep's others if its method uses no results."""
    more = () if spec.is_adaptive else range(len(points), spec.trial_count)
    return [*points, *map(spec.point, more)]


def taken_name(spec: SweepSpec, newest: Ledger | None) -> str | None:
    """Return a message if the sweep's name was last run from another file, which still exists and
    whose content differs; else None."""
    if newest is None or not newest.executions:
        return None
    other = Path(newest.executions[-1]["file"])
    is_same = other == spec.source_path.absolute() or not changes(newest.spec, spec.as_dict())
    if is_same or not other.exists():
        return None
    return f"{spec.name} was run from {other}; --set name=ANOTHER keeps both sweeps"


def _users(newest: Ledger) -> set[str]:
    """Return the users who ran a sweep since it was last begun with `--fresh`."""
    users: set[str] = set()
    for ledger in (newest, *reversed(newest.earlier)):
        users |= {str(execution.get("tags", {}).get(USER, "")) for execution in ledger.executions}
        if any(execution.get("fresh") for execution in ledger.executions):
            break
    return users


def open_generation(
    home: Home,
    spec: SweepSpec,
    newest: Ledger | None,
    *,
    address: str | None = None,
    stale: Callable[[Trial], str | None],
    fresh: bool = False,
) -> tuple[Ledger, tuple[str, ...]]:
    """Return the newest generation if the sweep still fits it, else a new one, with messages on
    this choice; record that a driver starts.

    `address` is the Ray cluster's, where one was named. `stale` returns what changed (code, model,
    data) if a trial's runs would have other digests now. `fresh` always begins a new generation.
    Raises RequestError where the sweep of this name is a different one, of another user.
    """
    plain = spec.as_dict()
    execution = Invocation.of(spec, address).as_execution() | {"fresh": fresh}
    folder = home.sweep(spec.name)
    if newest is None:
        return Ledger.create(folder, 1, plain, execution, points=planned_points(spec, ())), ()
    differences = changes(newest.spec, plain)
    outcome = effect(differences)
    taken = taken_name(spec, newest)
    notes = (*([] if taken is None else [taken]), *(str(change) for change in differences))
    number, owner = newest.generation + 1, started_by(newest)
    is_anothers = owner and execution["tags"].get(USER) not in _users(newest)
    if outcome == "restart" and not fresh and is_anothers:
        raise RequestError(
            f"the sweep {spec.name} is {owner}'s, and another one ({differences[0]}): run yours "
            "under a name of its own with --set name=ANOTHER, or replace it with --fresh"
        )

    def begin(head: str, points: Points = ()) -> tuple[Ledger, tuple[str, ...]]:
        earlier, planned = (*newest.earlier, newest), planned_points(spec, points)
        spent = 0.0 if fresh else newest.recall(SECONDS, 0.0)
        ledger = Ledger.create(
            folder, number, plain, execution, earlier, points=planned, seconds=spent
        )
        return ledger, (head, *notes)

    if fresh:
        return begin(f"the sweep begins anew as generation {number}; every run is trained again")
    if outcome == "restart":
        return begin(f"the sweep begins anew as generation {number}; equal runs are kept")
    if outcome == "reevaluate":
        head = f"the sweep is extended (generation {number}); its points and runs are kept"
        return begin(head, newest.points())
    changed = next(filter(None, map(stale, newest.trials())), None)
    if changed is not None:
        return begin(f"{changed} changed: the sweep begins anew as generation {number}")
    if newest.is_fresh:  # until every run has been trained again
        execution["fresh"] = has_work_left(newest, RunStore(home.runs))
    newest.extend(plain)
    newest.remember(POINTS, planned_points(spec, newest.recall(POINTS, ())))
    newest.execute(execution)
    extended = () if outcome is None else ("the sweep is extended; its trials are kept",)
    return newest, (*extended, *notes)

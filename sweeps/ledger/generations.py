"""Whether a sweep that was run before is resumed, extended or begun anew."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from carft_core.errors import RequestError
from carft_core.files import append_line, read_json, write_json
from sweeps.home import Home
from sweeps.ledger.trials import Ledger, Trial
from tracking.provenance import context_tags

if TYPE_CHECKING:
    from sweeps.spec.spec import SweepSpec


EXECUTION_FILE = "execution.json"
COPY = "sweep.yaml"
"""The sweep file as it was run."""


@dataclass(frozen=True)
class AsRun:
    """What `run` was given. The text of the file lies beside it."""

    file: str
    """The sweep file, absolute."""
    overrides: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    folder: str | None = None
    """The working folder: paths in a trial, such as `data.root`, are relative to it."""
    address: str | None = None
    """Of the Ray cluster, where `--address` named one."""

    @classmethod
    def of(cls, spec: SweepSpec) -> AsRun:
        """Of a sweep that this process runs."""
        file = str(spec.source_path.absolute())
        return cls(file, tuple(spec.overrides), tuple(spec.imports), str(Path.cwd()))

    @classmethod
    def read(cls, folder: Path) -> AsRun:
        """Of the sweep in `folder`. Raises RequestError when too little of it was kept."""
        known: Mapping[str, Any] | None = read_json(folder / EXECUTION_FILE)
        if known is None or not (folder / COPY).exists():
            raise RequestError(
                f"how the sweep {folder.name} was run is not kept in {folder}; go on with it by "
                "its file: carft-sweep run FILE"
            )
        return cls(
            file=known["file"],
            overrides=tuple(known.get("overrides", ())),
            imports=tuple(known.get("imports", ())),
            folder=known.get("folder"),
            address=known.get("address"),
        )

    def write(self, folder: Path) -> None:
        """Keep it with the sweep in `folder`; the address there stays where this has none."""
        known = read_json(folder / EXECUTION_FILE) or {}
        address = self.address or known.get("address")
        write_json(folder / EXECUTION_FILE, {**asdict(self), "address": address})

    def changed(self, key: str, value: object) -> AsRun:
        """The same with one key of the file overridden, in the place of earlier overrides of it."""
        others = [one for one in self.overrides if one.partition("=")[0].strip() != key]
        return replace(self, overrides=(*others, f"{key}={value}"))

    def load(self, folder: Path) -> tuple[SweepSpec, str | None]:
        """The sweep in `folder` as it was run; and what to say when its file is not what it was.

        Raises RequestError.
        """
        from sweeps.spec.document import read_text
        from sweeps.spec.spec import load_spec

        kept, now = read_text(folder / COPY), None
        with contextlib.suppress(RequestError):
            now = read_text(Path(self.file))
        if now == kept:
            note = None
        elif not Path(self.file).exists():
            note = f"{self.file} is gone; the sweep goes on with the file as it was run"
        else:
            note = (
                f"{self.file} has changed since; the sweep goes on with the file as it was run. "
                f"To take up the changes: carft-sweep run {shlex.quote(self.file)}"
            )
        return load_spec(self.file, self.overrides, self.imports, text=kept), note

    @contextlib.contextmanager
    def in_its_folder(self) -> Iterator[str | None]:
        """Work where `run` did; what to say when that folder is gone."""
        before, there = Path.cwd(), Path(self.folder or Path(self.file).parent)
        try:
            os.chdir(there)
        except OSError:
            yield f"{there} is gone, where the sweep was run; relative paths are sought in {before}"
            return
        try:
            yield None
        finally:
            os.chdir(before)


def keep_address(folder: Path, address: str | None) -> None:
    """Keep the cluster's address, or that none was given, with the sweep in `folder`.

    Whoever holds the claim does it first: only the command line knows the address. One that
    carries a user or a password is not kept.
    """
    known = read_json(folder / EXECUTION_FILE) or {}
    is_secret = address is not None and "@" in address
    write_json(folder / EXECUTION_FILE, {**known, "address": None if is_secret else address})


EXECUTIONS_FILE = "executions.jsonl"
_COMMIT, _DIRTY, _VERSION = "mlflow.source.git.commit", "carft.git.dirty", "carft.version."


@dataclass(frozen=True)
class Code:
    """What was installed and checked out."""

    commit: str | None
    """Of the checkout around the working folder; None outside of one."""
    dirty: bool
    """Whether files that git knows were changed."""
    versions: Mapping[str, str]
    """Of Python and the packages that training and tracking stand on."""

    @classmethod
    def here(cls) -> Code:
        """Of this process, now."""
        tags = context_tags()
        return cls(
            commit=tags.get(_COMMIT),
            dirty=tags.get(_DIRTY) == "true",
            versions={
                name.removeprefix(_VERSION): value
                for name, value in tags.items()
                if name.startswith(_VERSION)
            },
        )

    def __str__(self) -> str:
        shown = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        if self.commit is None:
            return shown
        return f"commit {self.commit}{' with changes' if self.dirty else ''}; {shown}"


def record_execution(folder: Path) -> None:
    """Note the code of an execution that begins, unless it is that of the one before."""
    code = Code.here()
    if code in executed(folder)[-1:]:
        return
    append_line(folder / EXECUTIONS_FILE, json.dumps({"began": time.time(), **vars(code)}))


def executed(folder: Path) -> list[Code]:
    """What the executions of the sweep in `folder` ran with, in their order."""
    try:
        lines = (folder / EXECUTIONS_FILE).read_text().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            told = json.loads(line)
            found.append(Code(told["commit"], told["dirty"], told["versions"]))
        except (ValueError, KeyError, TypeError):
            continue  # a line that a crash has torn
    return found


Effect = Literal["goes on", "told again", "anew"]
"""`told again`: the same points keep their trained runs, and get new values from them."""

_GOES_ON = (
    *("description", "baselines", "run_cap", "time_budget", "metric.target", "report", "import"),
    *("retries", "timeout", "breaker", "engine", "parallel", "resources", "webhook"),
    *("confirm_seeds", "after"),
    *("trial.merges", "trial.data.root", "trial.workers", "trial.device"),
)
_TOLD_AGAIN = ("seeds", "trial.keep", "trial.eval", "trial.data.shifts")
_SHOWN = 60
_ABSENT = object()


@dataclass(frozen=True)
class Change:
    """One field that differs."""

    field: str
    before: Any
    now: Any
    effect: Effect

    def __str__(self) -> str:
        return f"{self.field}: {_shown(self.before)} -> {_shown(self.now)}"


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Every field in which two sweeps, as plain data, differ."""
    return [
        Change(field, old, new, _effect(field)) for field, old, new in _differing(before, now, "")
    ]


def effect(found: list[Change]) -> Effect | None:
    """What all changes together do; None when there are none."""
    for strongest in ("anew", "told again", "goes on"):
        if any(change.effect == strongest for change in found):
            return strongest
    return None


def _effect(field: str) -> Effect:
    if _is_in(field, _TOLD_AGAIN):
        return "told again"
    return "goes on" if _is_in(field, _GOES_ON) else "anew"


def _is_in(field: str, names: tuple[str, ...]) -> bool:
    return any(field == name or field.startswith(f"{name}.") for name in names)


def _differing(
    before: Mapping[str, Any], now: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, Any, Any]]:
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key, _ABSENT), now.get(key, _ABSENT)
        field = f"{prefix}{key}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differing(old, new, f"{field}.")
        elif old is _ABSENT and isinstance(new, Mapping) and new:
            yield from _differing({}, new, f"{field}.")
        elif new is _ABSENT and isinstance(old, Mapping) and old:
            yield from _differing(old, {}, f"{field}.")
        elif old != new:
            yield field, old, new


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "(not given)"
    text = str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


@dataclass(frozen=True)
class Opening:
    """A sweep's ledger and what is to be said of how it was opened."""

    ledger: Ledger
    notes: tuple[str, ...]
    carried: tuple[Mapping[str, Any], ...] = ()
    """Points of an earlier generation that are proposed again before anything new."""


def open_ledger(
    home: Home, spec: SweepSpec, *, is_stale: Callable[[Trial], bool], fresh: bool = False
) -> Opening:
    """Find or begin the generation that fits a sweep.

    `is_stale` says whether a trial's runs are others than the file asks for now, because code,
    model or data changed. `fresh` begins anew in any case.
    """
    plain = json.loads(json.dumps(spec.as_dict()))
    newest = Ledger.newest(home, spec.name)
    if newest is None:
        return Opening(_create(home, spec, 1, plain), ())
    newest.reconcile()
    found = changes(newest.spec, plain)
    outcome = effect(found)
    notes = tuple(str(change) for change in found)
    number = newest.generation + 1
    if outcome == "anew" or fresh:
        head = f"the sweep begins anew as generation {number}; equal runs are kept"
        if fresh:
            head = f"the sweep begins anew as generation {number}; every run is trained again"
        return Opening(_create(home, spec, number, plain), (head, *notes))
    if outcome == "told again":
        carried = tuple(trial.params for trial in newest.trials())
        head = f"the sweep is extended (generation {number}); its points and runs are kept"
        return Opening(_create(home, spec, number, plain), (head, *notes), carried)
    if any(is_stale(trial) for trial in newest.trials()):
        head = (
            "code, model, data or what runs compute on changed: the sweep begins anew as "
            f"generation {number}"
        )
        return Opening(_create(home, spec, number, plain), (head, *notes))
    if outcome == "goes on":
        newest.extend(plain)
        return Opening(newest, ("the sweep is extended; its trials are kept", *notes))
    return Opening(newest, ())


def _create(home: Home, spec: SweepSpec, generation: int, plain: Mapping[str, Any]) -> Ledger:
    from sweeps.ledger.storage import generations, storage

    # A generation whose creation was cut off is left behind.
    number = max([generation, *(n + 1 for n in generations(storage(home), home, spec.name))])
    goals = [metric.goal for metric in spec.goals]
    return Ledger.create(home, spec.name, number, goals=goals, spec=plain)

"""The trials of a sweep for commands that only read."""

from __future__ import annotations

import difflib
import json
import os
import shlex
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from carft_core.errors import RequestError
from carft_core.files import read_json, write_atomically, write_json
from sweeps.home import Home
from sweeps.ledger.claim import holder
from sweeps.ledger.trials import Ledger

if TYPE_CHECKING:
    from sweeps.ledger.trials import Trial


SUMMARY_FILE = "summary.json"
SHARE = 0.01
"""Of a driver's time that may go into summaries while trials end."""
State = Literal["running", "done", "interrupted", "failed"]


class Summary:
    """Writes the summary of a running sweep, less often the longer it takes."""

    def __init__(self, folder: Path, ledger: Ledger) -> None:
        self._folder, self._ledger = folder, ledger
        self._next = 0.0

    def told(self) -> None:
        """A trial has ended: write, unless that was done a moment ago."""
        began = time.monotonic()
        if began >= self._next:
            write(self._folder, self._ledger, "running")
            self._next = began + (time.monotonic() - began) / SHARE


def write(folder: Path, ledger: Ledger, state: State) -> None:
    """Write the state of a sweep; times in seconds since the Unix epoch."""
    spec, trials = ledger.spec, ledger.trials()
    goal = goals(spec)[0]
    sign = 1 if goal["goal"] == "maximize" else -1
    complete = [trial for trial in trials if trial.value is not None]
    # Values on several tasks are not compared with each other.
    rivals = [] if spec.get("tasks") else complete
    best = max(rivals, key=lambda trial: sign * (trial.value or 0.0), default=None)
    states = Counter(trial.state for trial in trials)
    write_json(
        folder / SUMMARY_FILE,
        {
            "name": ledger.name,
            "description": spec["description"],
            "state": state,
            "generation": ledger.generation,
            "metric": goal["name"],
            "trials": {
                "asked": ledger.recall("trial_count"),
                "complete": len(complete),
                "failed": states["failed"],
                "pruned": states["pruned"],
            },
            "best": None
            if best is None
            else {"value": best.value, "trial": best.number, "params": dict(best.params)},
            "updated": time.time(),
        },
    )


def goals(spec: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """What a sweep's trials are valued by, one or several: `name`, `goal`, `merge` of each."""
    found: Sequence[Mapping[str, Any]] = spec.get("metrics") or [spec["metric"]]
    return found


def read_all(home: Home) -> list[Mapping[str, Any]]:
    """The summary of every sweep of a home by name; one whose driver died is interrupted."""
    found: list[Mapping[str, Any]] = []
    for file in sorted(home.sweeps.glob(f"*/{SUMMARY_FILE}")):
        summary: dict[str, Any] = read_json(file)
        if summary["state"] == "running" and holder(file.parent) is None:
            summary["state"] = "interrupted"
        found.append(summary)
    return found


LEDGER_FILE = "ledger.jsonl"
CONFIRMATIONS, SOUPS, FINAL_RUNS = "confirmations", "soups", "final_runs"
"""What a ledger remembers of what comes when every trial has ended: the settings that are
confirmed, and the soups, once they are chosen, and how many runs these are together."""
VERSION = 1
"""Of the lines; a mirror of another version counts as none."""


@dataclass(frozen=True)
class View:
    """One generation of a sweep as its mirror shows it; reads like a Ledger."""

    name: str
    generation: int
    kept: Mapping[str, Any]
    """What the ledger remembers, by key."""
    by_point: Mapping[int, Trial]

    @property
    def spec(self) -> Mapping[str, Any]:
        """The sweep as plain data, as it was last run."""
        spec: Mapping[str, Any] = self.kept["spec"]
        return spec

    def recall(self, key: str, default: Any = None) -> Any:
        """What the ledger was told to remember."""
        return self.kept.get(key, default)

    def trials(self) -> list[Trial]:
        """The newest trial at each point, by point."""
        return [self.by_point[point] for point in sorted(self.by_point)]


class Kept(Protocol):
    """A sweep to be read: its ledger, or a view of its mirror."""

    @property
    def name(self) -> str:
        """Of the sweep."""

    @property
    def generation(self) -> int:
        """Its newest one."""

    @property
    def spec(self) -> Mapping[str, Any]:
        """The sweep as plain data, as it was last run."""

    def recall(self, key: str, default: Any = None) -> Any:
        """What the ledger was told to remember."""

    def trials(self) -> list[Trial]:
        """The newest trial at each point, by point."""


def beside_trials(sweep: Kept) -> list[Mapping[str, Any]]:
    """The settings that are no trials, each with its runs: baselines, what is confirmed, soups."""
    return [*sweep.recall("baselines", []), *confirmations(sweep), *soups(sweep)]


def confirmations(sweep: Kept) -> list[Mapping[str, Any]]:
    """The settings that are run again on fresh seeds, as far as the sweep still asks for it."""
    asked = sweep.spec.get("confirm_seeds")
    found: list[Mapping[str, Any]] = sweep.recall(CONFIRMATIONS, []) if asked else []
    return found


def soups(sweep: Kept) -> list[Mapping[str, Any]]:
    """The soups of finished runs, as far as the sweep still asks for any."""
    made: list[Mapping[str, Any]] = sweep.recall(SOUPS, []) if sweep.spec.get("after") else []
    return made


class Mirror:
    """Written by the driver behind each change of the ledger; nothing that counts depends on it.

    A crash between the two leaves a mirror that lags: `mend` sees it when the next driver starts.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / LEDGER_FILE

    def trial(self, trial: Trial) -> None:
        """A trial was proposed, or has come to its end."""
        self._append({"trial": _plain(trial)})

    def attributes(self, attributes: Mapping[str, Any]) -> None:
        """The ledger remembers these."""
        self._append({"kept": dict(attributes)})

    def mend(self, ledger: Ledger) -> bool:
        """Make the mirror equal to the ledger; whether it was not."""
        seen = _read(self._file) if _is_whole(self._file) else None
        if seen is not None and _parsed(seen, seen.kept) == _parsed(ledger, _kept(ledger)):
            return False
        self.rebuild(ledger)
        return True

    def rebuild(self, ledger: Ledger) -> None:
        """Write it anew, one line for each trial; readers see the old one until it is whole."""
        text = "".join(f"{line}\n" for line in _lines(ledger, _kept(ledger)))
        write_atomically(self._file, lambda file: file.write_text(text))

    def _append(self, change: Mapping[str, Any]) -> None:
        """One line, unless there is no mirror: then the readers ask the database."""
        data = f"{_json(change)}\n".encode()
        try:
            file = os.open(self._file, os.O_WRONLY | os.O_APPEND)
        except FileNotFoundError:
            return
        try:
            whole = os.write(file, data) == len(data)
        except OSError:
            whole = False
        finally:
            os.close(file)
        if not whole:  # a full disk; the ledger has the change, and no mirror is better than half
            self._file.unlink(missing_ok=True)


def view(home: Home, name: str) -> View | None:
    """The sweep as its mirror shows it; None where there is none that can be read."""
    return _read(home.sweep(name) / LEDGER_FILE)


def _read(file: Path) -> View | None:
    try:
        lines = file.read_bytes().split(b"\n")[:-1]  # what stands behind the last end is torn
        head, *changes = json.loads(b"[%s]" % b",".join(lines))
        if head["mirror"] != VERSION:
            return None
        return _viewed(head, changes)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _viewed(head: Mapping[str, Any], changes: list[Mapping[str, Any]]) -> View:
    from sweeps.ledger.trials import Trial  # the ledger writes mirrors: neither module can be first

    kept: dict[str, Any] = {}
    by_point: dict[int, dict[str, Any]] = {}
    for change in changes:
        kept |= change.get("kept", {})
        trial = change.get("trial")
        # A point that is tried again has a new number; a late word on the old one is not news.
        if trial and trial["number"] >= by_point.get(trial["point"], trial)["number"]:
            by_point[trial["point"]] = trial
    if "spec" not in kept:
        raise KeyError("spec")
    trials = {
        point: Trial(**{**trial, "values": tuple(trial["values"])})
        for point, trial in by_point.items()
    }
    return View(head["sweep"], head["generation"], kept, trials)


def _is_whole(file: Path) -> bool:
    """Whether its last line has an end, so that the next one can be put behind it."""
    try:
        with file.open("rb") as opened:
            opened.seek(-1, os.SEEK_END)
            return opened.read() == b"\n"
    except OSError:
        return False


def _parsed(sweep: Kept, kept: Mapping[str, Any]) -> list[Any]:
    """As plain data, so that a tuple and the list that was read of it are equal."""
    return [json.loads(line) for line in _lines(sweep, kept)]


def _lines(sweep: Kept, kept: Mapping[str, Any]) -> Iterator[str]:
    """A mirror without history."""
    yield _json({"mirror": VERSION, "sweep": sweep.name, "generation": sweep.generation})
    yield _json({"kept": dict(kept)})
    for trial in sweep.trials():
        yield _json({"trial": _plain(trial)})


def _kept(ledger: Ledger) -> Mapping[str, Any]:
    kept: Mapping[str, Any] = ledger.study.user_attrs
    return kept


def _plain(trial: Trial) -> dict[str, Any]:
    return dict(vars(trial))


def _json(data: Mapping[str, Any]) -> str:
    return json.dumps(data, separators=(",", ":"))


def sweep_folder(home: Home, name: str) -> Path:
    """The folder of a sweep that was begun. Raises RequestError with the nearest name otherwise."""
    if name in _names(home):
        return home.sweep(name)
    raise no_such_sweep(home, name)


def no_such_sweep(home: Home, name: str) -> RequestError:
    """What to say of a name that no sweep has."""
    if not home.path.is_dir():
        return RequestError(
            f"there is no home {home.path}, so no sweep {name!r}; name another with --home or "
            "CARFT_HOME, or make this one with carft-sweep run"
        )
    known = _names(home)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return RequestError(
        f"no sweep {name!r} in {home.path}{hint} Known: {', '.join(known) or 'none'}."
    )


def _names(home: Home) -> list[str]:
    files = (*home.sweeps.glob("*/summary.json"), *home.sweeps.glob("*/driver.json"))
    return sorted({file.parent.name for file in files})


def command(verb: str, name: str, home: str | None) -> str:
    """`carft-sweep resume toy --home x`: what to type next; `home` is the option as given."""
    return shlex.join(["carft-sweep", verb, name, *(["--home", home] if home else [])])


def look(home: Home, name: str) -> Kept:
    """The sweep for who only reads: its mirror, or its ledger where there is none.

    Raises RequestError with the nearest name when there is no such sweep.
    """
    return view(home, name) or find(home, name)


def find(home: Home, name: str) -> Ledger:
    """The ledger of the sweep. Raises RequestError with the nearest name when there is none."""
    ledger = Ledger.newest(home, name)
    if ledger is not None:
        return ledger
    raise no_such_sweep(home, name)

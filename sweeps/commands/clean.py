"""`carft-sweep clean`: remove what no sweep needs any more; without --yes only tell."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from sweeps.home import Home, find_home
from sweeps.ledger import Ledger
from sweeps.mirror import beside_trials
from sweeps.runs import OPTIMISER_STATE, Runs
from sweeps.studies import generations, storage, study_name
from sweeps.summary import read_all

Say = Callable[[str], None]


@dataclass(frozen=True)
class Waste:
    """Something that may go."""

    path: str
    reason: str
    bytes: int


def run(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command."""
    home = find_home(arguments.home)
    found = list(waste(home)) if home.path.exists() else []
    if arguments.yes:
        for item in found:
            _remove(Path(item.path))
    total = sum(item.bytes for item in found)
    if arguments.json:
        told = {"removed": arguments.yes, "bytes": total, "items": [asdict(i) for i in found]}
        say(json.dumps(told, indent=1))
        return 0
    for item in found:
        say(f"{item.bytes / 2**20:8.1f} MB  {item.path}  ({item.reason})")
    verb = "removed" if arguments.yes else "can go; --yes removes it"
    say(f"{total / 2**20:.1f} MB {verb}" if found else "Nothing to remove.")
    return 0


def waste(home: Home) -> Iterator[Waste]:
    """What can go, never of a run that somebody works on."""
    runs = Runs(home.runs)
    used = set(_used(home))
    for digest in runs.digests():
        state = runs.read(digest)
        folder = runs.folder(digest)
        if state is None or state.is_live:
            continue
        if digest not in used:
            yield _waste(folder, "a run that no sweep uses")
        elif state.state == "done" and (folder / OPTIMISER_STATE).exists():
            yield _waste(folder / OPTIMISER_STATE, "state of a run that is done")
    for aside in sorted(home.runs.glob(".*.before")):
        owner = runs.read(aside.name.removeprefix(".").removesuffix(".before"))
        if owner is None or not owner.is_live:
            yield _waste(aside, "an earlier result of a run that was trained again")


def _used(home: Home) -> Iterator[str]:
    """The runs of every generation of every sweep."""
    import optuna

    if not home.has_trials:
        return
    opened = storage(home)
    for summary in read_all(home):
        name = str(summary["name"])
        for generation in generations(opened, home, name):
            study = optuna.load_study(study_name=study_name(home, name, generation), storage=opened)
            ledger = Ledger(study, name, generation)
            for setting in beside_trials(ledger):
                yield from setting["runs"].values()
            for trial in ledger.trials():
                yield from trial.runs.values()


def _waste(path: Path, reason: str) -> Waste:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return Waste(str(path), reason, sum(file.stat().st_size for file in files))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()

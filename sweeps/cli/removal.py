"""The commands that remove: clean, remove."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from carft_sweep.carft_core.files import format_size
from carft_sweep.sweeps.cli import UNREACHABLE, WRONG, Emit
from carft_sweep.sweeps.home import Home, find_home
from carft_sweep.sweeps.ledger.claim import holder, undriven
from carft_sweep.sweeps.ledger.ledger import (
    LEDGER_FILE,
    Ledger,
    read_generations,
    sweep_folder,
    sweep_names,
)
from carft_sweep.sweeps.ledger.optuna_copy import named_database, remove_studies, study_file
from carft_sweep.sweeps.ledger.runs import OPTIMISER_STATE, RunStore, set_aside, undamaged
from carft_sweep.sweeps.results.sent_log import SentLog, place_of
from carft_sweep.tracking.errors import AccessDenied, ServiceUnreachable, TrackingError, counted
from carft_sweep.tracking.location import (
    TRACKING_VARIABLE,
    TrackingLocation,
    sqlite_file,
    without_password,
)
from carft_sweep.tracking.program import command
from carft_sweep.tracking.store.mlflow_store import open_store


@dataclass(frozen=True)
class Waste:
    """A file or folder that nothing needs any more."""

    path: str
    reason: str
    bytes: int
    run: str | None = None
    """Digest of the run that it belongs to."""


def clean_command(arguments: argparse.Namespace, emit: Emit) -> None:
    """Run the `clean` command."""
    home = find_home(arguments.home, trust=arguments.trust_home)
    items = list(waste(home)) if home.path.exists() else []
    if arguments.yes:
        items = [item for item in items if _remove(item, RunStore(home.runs))]
    total = sum(item.bytes for item in items)
    if arguments.json:
        result = {"removed": arguments.yes, "bytes": total, "items": [asdict(i) for i in items]}
        emit(json.dumps(result, indent=1))
        return
    for item in items:
        emit(f"{format_size(item.bytes):>8}  {item.path}  ({item.reason})")
    verb = "removed" if arguments.yes else "can go; --yes removes it"
    emit(f"{format_size(total)} {verb}" if items else "Nothing to remove.")


def _remove(item: Waste, runs: RunStore) -> bool:
    """Remove a path unless a process works on its run by now; return whether it was removed."""
    path = Path(item.path)
    with nullcontext(True) if item.run is None else runs.idle(item.run) as is_idle:
        if is_idle and path.is_dir() and not path.is_symlink():
            shutil.rmtree(set_aside(path))
        elif is_idle:
            path.unlink()
    return is_idle


_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}(\.old)?")
"""Names of temporary files and folders, which are filled and then renamed to what they replace:
ours, and MLflow's `.artifact.uploading.`."""


def waste(home: Home) -> Iterator[Waste]:
    """Yield unneeded paths, never of a run or a sweep that a process works on."""
    runs = RunStore(home.runs)
    used = {digest for name in sweep_names(home) for digest in _runs_of(_generations(home, name))}
    for digest in runs.digests():
        state = undamaged(runs.read, digest)
        folder = runs.folder(digest)
        if state is None or state.is_live:
            continue
        if digest not in used:
            yield _waste(folder, "a run that no sweep uses", digest)
        elif state.state == "done" and (folder / OPTIMISER_STATE).exists():
            yield _waste(folder / OPTIMISER_STATE, "state of a run that is done", digest)
        if digest in used:
            yield from _unfinished_writes(folder, digest)
    for aside in sorted(home.runs.glob(".*.before")):
        digest = aside.name.removeprefix(".").removesuffix(".before")
        state = undamaged(runs.read, digest)
        # Until the run is done again this is its only result, or the one that it goes back to.
        is_replaced = state is not None and state.state == "done" and not state.is_live
        if is_replaced or digest not in used:
            yield _waste(aside, "an earlier result of a run that was trained again", digest)
    for entry in (*home.runs.glob(".*"), *home.sweeps.glob(".*")):
        if entry.is_dir() and _TEMPORARY.fullmatch(entry.name):
            yield _waste(entry, "half of what was being removed")
    names = sweep_names(home)
    idle = [name for name in names if holder(home.sweep(name)) is None]
    for name in idle:
        yield from _unfinished_writes(home.sweep(name))
    if len(idle) == len(names):  # else one may be sending what MLflow keeps here
        yield from _unfinished_writes(home.path / "mlartifacts")


def _unfinished_writes(folder: Path, run: str | None = None) -> Iterator[Waste]:
    """Yield the temporary files and folders that a killed process left in a folder."""
    for place, folders, files in () if folder.is_symlink() else os.walk(folder):
        temporary = [name for name in (*folders, *files) if _TEMPORARY.fullmatch(name)]
        folders[:] = [name for name in folders if name not in temporary]
        for name in sorted(temporary):
            yield _waste(Path(place, name), "half a file of a process that was killed", run)


def _generations(home: Home, name: str) -> list[Ledger]:
    return read_generations(home.sweep(name) / LEDGER_FILE)


def _runs_of(generations: Sequence[Ledger]) -> Iterator[str]:
    """Yield the digests of the runs of a sweep's generations, and of its soups' members."""
    for ledger in generations:
        for setting in ledger.settings():
            yield from setting.runs.values()
            yield from setting.members
        for trial in ledger.proposals():
            yield from trial.runs.values()


def _waste(path: Path, reason: str, run: str | None = None) -> Waste:
    every = [path] if path.is_symlink() or path.is_file() else path.rglob("*")
    sizes = (status.st_size for file in every if stat.S_ISREG((status := file.lstat()).st_mode))
    return Waste(str(path), reason, sum(sizes), run)


@dataclass(frozen=True)
class Removal:
    """What is removed with a sweep, and what of it stays."""

    home: Home
    name: str
    generations: int
    runs: tuple[str, ...]
    """Digests of the sweep's runs that no other sweep uses, and nobody works on."""
    kept: tuple[str, ...]
    """Digests of the sweep's other runs, which stay."""
    bytes: int
    tracked: int
    """The number of its runs that the tracking store was sent."""
    place: TrackingLocation
    """Where the tracking store is."""
    elsewhere: tuple[str, ...]
    """Other stores that were sent something of the sweep, which stays there."""

    @classmethod
    def of(cls, home: Home, name: str) -> Removal:
        """Return what is to be removed with a sweep. Raises RequestError if a ledger is damaged."""
        folder, runs = home.sweep(name), RunStore(home.runs)
        generations = _generations(home, name)
        every = (_generations(home, other) for other in sweep_names(home) if other != name)
        others = {digest for ledgers in every for digest in _runs_of(ledgers)}
        digests = dict.fromkeys(_runs_of(generations))
        own = [digest for digest in digests if runs.folder(digest).exists()]
        mine = [digest for digest in own if digest not in others and not runs.is_live(digest)]
        place = place_of(home, generations[-1] if generations else None)
        logs = {
            file.stem: SentLog(folder, replace(place, key=file.stem))
            for file in sorted((folder / "sent").glob("*.jsonl"))
        }
        sent = logs.pop(place.key, None)
        return cls(
            home,
            name,
            len(generations),
            tuple(mine),
            tuple(digest for digest in own if digest not in mine),
            sum(_waste(path, "").bytes for path in (folder, *map(runs.folder, mine))),
            0 if sent is None else sum(bool(id_) for id_ in sent.run_ids().values()),
            place,
            tuple(log.place for log in logs.values()),
        )

    def lines(self) -> Iterator[str]:
        """Yield lines of text on what would be removed, and what would not."""
        own = f" and {counted(len(self.runs), 'run')} that no other sweep uses"
        folder = self.home.sweep(self.name)
        yield f"  {folder}{own if self.runs else ''}: {format_size(self.bytes)}"
        if self.tracked:
            runs = counted(self.tracked, "run")
            where = without_password(self.place.named)
            yield f"  {runs} in MLflow at {where}, which keeps them among its deleted ones"
        if self.generations and self._has_studies:
            yield f"  {self.generations} Optuna {'study' if self.generations == 1 else 'studies'}"
        if self.kept:
            stay = "stays" if len(self.kept) == 1 else "stay"
            yield f"{counted(len(self.kept), 'run')} of it {stay}, which others use."
        for place in self.elsewhere:
            yield (
                f"What {place} has of it stays there; to remove that too, do it first with "
                f"{TRACKING_VARIABLE} as it was then."
            )

    @property
    def _has_studies(self) -> bool:
        return named_database() is not None or study_file(self.home).exists()

    def carry_out(self) -> list[str]:
        """Remove everything, the ledger last, so that an interrupted removal can be repeated.
        Returns a message for each part that could not be removed; the sweep's folder then remains
        with its ledger."""
        reasons = [why for why in (self._untrack(), self._remove_studies()) if why is not None]
        runs = RunStore(self.home.runs)
        for digest in self.runs:
            runs.remove(digest)
        if not reasons:
            shutil.rmtree(set_aside(self.home.sweep(self.name)))
        return reasons

    def _untrack(self) -> str | None:
        file = sqlite_file(self.place.named)
        if not (self.tracked if file is None else file.exists()):
            return None
        try:
            with closing(open_store(self.home.path, experiment=self.place.experiment)) as store:
                store.remove_sweep(self.name)
        except (ServiceUnreachable, TrackingError, AccessDenied) as error:
            return f"{counted(self.tracked, 'run')} in MLflow: {error}"
        return None

    def _remove_studies(self) -> str | None:
        if not self._has_studies:
            return None
        try:
            remove_studies(self.home, self.name, self.generations)
        except Exception as error:  # whatever Optuna, SQLAlchemy and the drivers raise
            reason = str(error).partition("\n")[0]
            return f"the Optuna study: {reason or type(error).__name__}"
        return None


def remove_command(arguments: argparse.Namespace, emit: Emit) -> int:
    """Run the `remove` command; return 4 when a service is away. Refuse while the sweep runs."""
    home = find_home(arguments.home, trust=arguments.trust_home)
    name = arguments.sweep
    with undriven(sweep_folder(home, name)):
        removal = Removal.of(home, name)
        if not arguments.json:
            emit(f"To be removed with {name}:")
            for line in removal.lines():
                emit(line)
        is_agreed = arguments.yes or _is_agreed()
        if is_agreed and not arguments.yes:  # another sweep may use some of its runs by now
            removal = Removal.of(home, name)
        reasons = removal.carry_out() if is_agreed else []
    if arguments.json:
        result = {"sweep": name, "removed": is_agreed and not reasons, "bytes": removal.bytes}
        result |= {"runs": removal.runs, "kept": removal.kept, "left": reasons}
        emit(json.dumps(result, indent=1))
    elif not is_agreed:
        emit("Nothing is removed." if sys.stdin.isatty() else "Nothing is removed without --yes.")
    elif reasons:
        for reason in reasons:
            emit(f"Left: {reason}")
        again = command("remove", name, arguments.home)
        emit("Its runs are removed from this home. Once the cause is mended, remove the rest with:")
        emit(f"  {again}")
    else:
        emit(f"{name} is removed.")
    if not is_agreed:
        return 0 if sys.stdin.isatty() else WRONG
    return UNREACHABLE if reasons else 0


def _is_agreed() -> bool:
    """Ask at the terminal whether to remove what was listed; return True only for y or yes, False
    without a terminal."""
    if not sys.stdin.isatty():
        return False
    sys.stderr.write("Remove it? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")

"""An append-only log of a tracker's calls, as JSON."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from tracking.errors import TrackingError
from tracking.location import Lock, LockHeld
from tracking.store import mlflow_limits
from tracking.store.base import DatasetInput, EndState, Metric, RunKey, RunStart, Tracker

Record = dict[str, Any]


def opened(start: RunStart) -> Record:
    """`Tracker.open`."""
    return {
        "verb": "open",
        "key": start.key,
        "name": start.name,
        "timestamp": start.timestamp,
        "parent": start.parent,
        "params": {name: mlflow_limits.param(value) for name, value in start.params.items()},
        "tags": dict(start.tags),
        "datasets": [astuple(dataset) for dataset in start.datasets],
    }


def measured(key: RunKey, values: Sequence[Metric]) -> Record:
    """`Tracker.metrics`. Values are written as text: JSON has neither NaN nor infinity."""
    points = [
        (metric.name, repr(float(metric.value)), int(metric.step), int(metric.timestamp))
        for metric in values
    ]
    return {"verb": "metrics", "key": key, "values": points}


def tagged(key: RunKey, values: Mapping[str, str]) -> Record:
    """`Tracker.tags`."""
    return {"verb": "tags", "key": key, "values": dict(values)}


def kept(key: RunKey, path: Path, folder: str, copy: str | None, digest: str | None) -> Record:
    """`Tracker.artifact`; `copy` is where a small file was copied to, below the spool."""
    return {
        "verb": "artifact",
        "key": key,
        "path": str(path),
        "folder": folder,
        "copy": copy,
        "digest": digest,
    }


def ended(key: RunKey, state: EndState, timestamp: int) -> Record:
    """`Tracker.end`."""
    return {"verb": "end", "key": key, "state": state, "timestamp": timestamp}


def encode(record: Record) -> str:
    """One line, without its newline."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def decode(line: str) -> Record:
    """The record of a line. Raises ValueError when the line is not one."""
    record = json.loads(line)
    if not isinstance(record, dict) or record.get("verb") not in _TELL:
        raise ValueError(f"not a record: {mlflow_limits.truncate(line, 80)}")
    return record


def key_of(record: Record) -> RunKey:
    """Whose record it is."""
    return RunKey(*record["key"])


def merged(records: Sequence[Record]) -> Record:
    """Several `metrics` records of one run as one."""
    return {**records[0], "values": [value for record in records for value in record["values"]]}


def tell(tracker: Tracker, record: Record, folder: Path) -> None:
    """Tell `tracker` what the record says; copies of artifacts lie below `folder`."""
    _TELL[record["verb"]](tracker, record, folder)


def _open(tracker: Tracker, record: Record, _: Path) -> None:
    parent = record["parent"]
    tracker.open(
        RunStart(
            key=key_of(record),
            name=record["name"],
            timestamp=record["timestamp"],
            parent=None if parent is None else RunKey(*parent),
            params=record["params"],
            tags=record["tags"],
            datasets=[DatasetInput(*dataset) for dataset in record["datasets"]],
        )
    )


def _metrics(tracker: Tracker, record: Record, _: Path) -> None:
    values = [Metric(name, float(text), step, at) for name, text, step, at in record["values"]]
    tracker.metrics(key_of(record), values)


def _tags(tracker: Tracker, record: Record, _: Path) -> None:
    tracker.tags(key_of(record), record["values"])


def _artifact(tracker: Tracker, record: Record, folder: Path) -> None:
    path = Path(record["path"])
    source = path if record["copy"] is None else folder / record["copy"]
    if source.is_file():
        tracker.artifact(key_of(record), source, folder=record["folder"])
    else:
        tracker.tags(key_of(record), {f"carft.artifact_missing.{path.name}": str(path)})


def _end(tracker: Tracker, record: Record, _: Path) -> None:
    tracker.end(key_of(record), record["state"], timestamp=record["timestamp"])


_TELL: dict[str, Callable[[Tracker, Record, Path], None]] = {
    "open": _open,
    "metrics": _metrics,
    "tags": _tags,
    "artifact": _artifact,
    "end": _end,
}


_CHUNK = 1 << 20
_READ = 8 << 20
_SUFFIX = ".jsonl"
_REJECTED = ".rejected.jsonl"


class SpoolBusy(TrackingError):
    """Another process writes this sweep's journal."""


class Line(NamedTuple):
    """A line of the journal and where the next one begins, in bytes."""

    text: str
    end: int


class Journal:
    """The journal of one sweep in a folder, held by this process alone until `close`."""

    def __init__(self, folder: Path, sweep: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._base = folder / _file_name(sweep)
        try:
            self._lock = Lock(self._beside(".lock"))
        except LockHeld as held:
            raise SpoolBusy(
                f"sweep {sweep!r} is running already in process {held.pid or '(unknown)'}: "
                f"wait for it or stop it ({folder} is its spool)"
            ) from None
        fresh = not self._beside(_SUFFIX).exists()
        self._file = os.open(self._beside(_SUFFIX), os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        if fresh:
            _make_durable(folder)
        self.size = self._drop_torn_line()
        state = _position(self._base)
        self.runs: dict[str, str] = dict(state["runs"])
        self.acknowledged = int(state["acknowledged"])
        if self.acknowledged > self.size:
            # A power failure cut the journal. Left as it is, the position would cover records that
            # are appended now, and the next process would skip them.
            self.acknowledge(self.size)
        self._read = self.acknowledged

    @property
    def files(self) -> Path:
        """Where copies of small artifacts lie."""
        return self._beside(".files")

    @property
    def rejected(self) -> Path:
        """The file of the records that were set aside, with the reasons."""
        return self._beside(_REJECTED)

    def append(self, text: str, *, durable: bool) -> None:
        """Add a line; when `durable`, it survives a power failure once this returns.

        Raises OSError (a full disk) with the journal as it was.
        """
        data = f"{text}\n".encode()
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError:
            os.ftruncate(self._file, self.size)
            raise
        self.size += len(data)
        if durable:
            os.fsync(self._file)

    def read(self) -> list[Line]:
        """The next whole lines after those read before, about eight megabytes of them.

        As many as that, since what is read at once can be merged: so a slow store is told what a
        hundred runs report in two minutes in one request for each.
        """
        length = _READ
        while True:
            data = os.pread(self._file, length, self._read)
            whole = data.rfind(b"\n") + 1
            if whole or len(data) < length:
                break
            length *= 2
        lines = []
        for raw in data[:whole].split(b"\n")[:-1]:
            self._read += len(raw) + 1
            lines.append(Line(raw.decode(errors="replace"), self._read))
        return lines

    @property
    def is_full(self) -> bool:
        """Whether more waits than is read at once."""
        return self.size - self._read > _READ

    def count_waiting(self) -> int:
        """How many lines are not acknowledged yet."""
        count, offset = 0, self.acknowledged
        while data := os.pread(self._file, _CHUNK, offset):
            count += data.count(b"\n")
            offset += len(data)
        return count

    def acknowledge(self, end: int) -> None:
        """Everything before `end` was delivered."""
        self.acknowledged = end
        _replace(
            self._beside(".position"),
            json.dumps({"acknowledged": end, "runs": self.runs}, separators=(",", ":")),
        )

    def reject(self, text: str, reason: str) -> None:
        """Set a line aside with the reason why nobody takes it."""
        with self.rejected.open("a") as file:
            file.write(json.dumps({"reason": reason, "record": text}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def compact(self) -> None:
        """Empty a journal that is wholly acknowledged, and remove its copies of artifacts."""
        if self.acknowledged < self.size:
            return
        # In this order: after a crash in between everything is delivered again, which changes
        # nothing. A position beyond the end would cover records that are appended later.
        self.acknowledge(0)
        os.ftruncate(self._file, 0)
        self.size = self._read = 0
        shutil.rmtree(self.files, ignore_errors=True)

    def close(self) -> None:
        """Let go of the file and the lock."""
        os.close(self._file)
        self._lock.release()

    def _beside(self, suffix: str) -> Path:
        return self._base.with_name(self._base.name + suffix)

    def _drop_torn_line(self) -> int:
        """Cut off what a crash left of a last line; the size in bytes that remains."""
        size = os.fstat(self._file).st_size
        end = size
        while end > 0:
            first = max(0, end - _CHUNK)
            newline = os.pread(self._file, end - first, first).rfind(b"\n")
            if newline >= 0:
                end = first + newline + 1
                break
            end = first
        if end < size:
            os.ftruncate(self._file, end)
        return end


def sweeps_behind(folder: Path) -> list[str]:
    """The sweeps whose journal holds records that are not acknowledged."""
    found = []
    for file in sorted(folder.glob(f"*{_SUFFIX}")):
        if file.name.endswith(_REJECTED):
            continue
        base = file.with_name(file.name.removesuffix(_SUFFIX))
        if file.stat().st_size > int(_position(base)["acknowledged"]):
            found.append(unquote(base.name))
    return found


def records_behind(folder: Path, sweep: str) -> int:
    """How many records of a sweep's journal are not acknowledged."""
    base = folder / _file_name(sweep)
    try:
        with base.with_name(f"{base.name}{_SUFFIX}").open("rb") as file:
            file.seek(int(_position(base)["acknowledged"]))
            return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(_CHUNK), b""))
    except FileNotFoundError:
        return 0


def records_refused(folder: Path) -> Mapping[Path, int]:
    """The files of what was set aside in a folder of journals, and how many records each holds."""
    found = {}
    for file in sorted(folder.glob(f"*{_REJECTED}")):
        with file.open("rb") as opened:
            found[file] = sum(1 for _ in opened)
    return found


def known_run_ids(folder: Path, sweep: str) -> Mapping[str, str]:
    """The store's ids of a sweep's runs by digest ("" is the sweep itself), as far as delivered."""
    return dict(_position(folder / _file_name(sweep))["runs"])


def _file_name(sweep: str) -> str:
    """Of any text, and without a dot: what follows one is ours."""
    return quote(sweep, safe="").replace(".", "%2E")


def _position(base: Path) -> dict[str, Any]:
    try:
        known: dict[str, Any] = json.loads(base.with_name(f"{base.name}.position").read_text())
    except (FileNotFoundError, ValueError):
        # From the beginning again: every record may be told twice.
        known = {}
    return {"acknowledged": 0, "runs": {}} | known


def _replace(path: Path, text: str) -> None:
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    new.replace(path)


def _make_durable(folder: Path) -> None:
    """A new file's name must survive a power failure too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

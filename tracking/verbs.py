"""What a tracker is told, as one line of JSON, and told again from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from tracking import limits
from tracking.base import DatasetInput, EndState, Metric, RunKey, RunStart, Tracker

Record = dict[str, Any]


def opened(start: RunStart) -> Record:
    """`Tracker.open`."""
    return {
        "verb": "open",
        "key": start.key,
        "name": start.name,
        "timestamp": start.timestamp,
        "parent": start.parent,
        "params": {name: limits.param(value) for name, value in start.params.items()},
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
        raise ValueError(f"not a record: {limits.cut(line, 80)}")
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

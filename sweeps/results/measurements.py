"""What the runs of a large sweep were measured to, kept as arrays beside their files.

A comparison of ten thousand trials needs thirty thousand small files. To open and to check them
takes longer than everything else, so a copy of what they hold is kept in the user's cache. It is
never a truth of its own: each entry counts only while its file is the very one that was read.
"""

from __future__ import annotations

import json
import logging
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from carft_sweep.carft_core.files import digest_of, keep, user_cache
from carft_sweep.sweeps.ledger.runs import measured

MOST_NEW = 1_000
"""Files that were read anew, from which on they are kept: to write takes as long as to read some
of them, and a small sweep is read at once.
"""
_VERSION = 2
"""Of the format; raised where it changes."""

logger = logging.getLogger(__name__)

Stamp = tuple[int, int, int, int]
"""Changes with a file: times of its content and of its entry in nanoseconds, its size, its inode.
Our files are replaced whole, each time by another inode.
"""


class _Entry(NamedTuple):
    stamp: Stamp
    metrics: Mapping[str, float]
    facts: Mapping[str, Any]


class Measurements:
    """The evaluations of the runs of one sweep, from the cache as far as they are as they were."""

    def __init__(self, runs: Path, sweep: str) -> None:
        """`runs` is the folder of the runs of a home."""
        key = digest_of([_VERSION, str(runs.absolute()), sweep])
        self._runs = str(runs)
        self._file = user_cache() / "measurements" / f"{key}.npz"
        self._kept = _Kept.load(self._file)
        self._read: dict[str, _Entry] = {}
        """By run and label what is in use, of which so many are new."""
        self._new = 0

    def of(self, digest: str, label: str) -> Mapping[str, Any] | None:
        """Return `metrics` and `facts` of one model of a run; None where it was not measured.

        Raises RequestError for a file that is damaged.
        """
        folder = f"{self._runs}/{digest}"
        try:
            status = os.stat(f"{folder}/evaluations/{label}/metrics.json")  # noqa: PTH116 - no Path
        except OSError:
            return measured(folder, label)
        # Before it is read: of a file that is replaced meanwhile nothing is kept for long.
        stamp = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
        key = f"{digest}/{label}"
        entry = self._kept.entry(key, stamp)
        if entry is None:
            evaluation = measured(folder, label)
            if evaluation is None:
                return None
            entry = _Entry(stamp, evaluation["metrics"], evaluation["facts"])
            self._new += 1
        self._read[key] = entry
        return {"metrics": entry.metrics, "facts": entry.facts}

    def keep(self) -> None:
        """Write what was read, where much of it is new; what was not asked for is dropped.

        A cache that cannot be written costs time, nothing else.
        """
        if self._new >= MOST_NEW:
            keep(self._file, lambda file: _write(file, self._read))


class _KeptMetrics(Mapping[str, float]):
    """The metrics of an entry, looked up among those of all: most of them nobody asks for."""

    __slots__ = ("_at", "_places", "_values")

    def __init__(self, places: Mapping[str, int], values: Sequence[float], at: int) -> None:
        self._places, self._values, self._at = places, values, at

    def __getitem__(self, name: str) -> float:
        return self._values[self._at + self._places[name]]

    def get(self, name: str, default: Any = None) -> Any:
        """Return one without the exception by which Mapping finds out that it is not there."""
        place = self._places.get(name)
        return default if place is None else self._values[self._at + place]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        return repr(dict(self))


class _Kept:
    """The file of the cache, in memory; empty where there is none, or none that is understood."""

    def __init__(
        self,
        places: Mapping[str, int] | None = None,
        stamps: Sequence[Stamp] = (),
        layouts: Sequence[Sequence[str]] = (),
        facts: Sequence[Mapping[str, Any]] = (),
        rows: Sequence[tuple[int, int, int]] = (),
        values: Sequence[float] = (),
    ) -> None:
        """`rows` are of each entry its layout, its facts, and where its values begin."""
        self._places, self._stamps, self._rows = places or {}, stamps, rows
        self._layouts = [{name: place for place, name in enumerate(names)} for names in layouts]
        self._facts, self._values = facts, values

    @classmethod
    def load(cls, file: Path) -> _Kept:
        """Read what `_write` wrote."""
        if not file.exists():
            return cls()
        import numpy as np

        try:
            if not zipfile.is_zipfile(file):
                raise ValueError("it is no archive, or not a whole one")
            with np.load(file, allow_pickle=False) as arrays:
                head = json.loads(arrays["head"].tobytes())
                stamps = [(a, b, c, d) for a, b, c, d in arrays["stamps"].tolist()]
                rows = [(a, b, c) for a, b, c in arrays["rows"].tolist()]
                values = memoryview(arrays["values"])
            lengths = [len(layout) for layout in head["layouts"]]
            whole = len(head["keys"]) == len(stamps) == len(rows) and all(
                0 <= facts < len(head["facts"]) and 0 <= at <= len(values) - lengths[layout]
                for layout, facts, at in rows
            )
            if not whole:
                raise ValueError("its parts do not fit")
        except (OSError, ValueError, KeyError, TypeError, IndexError, zipfile.BadZipFile) as error:
            logger.info("%s is made anew: %s", file, error)
            return cls()
        places = {key: place for place, key in enumerate(head["keys"])}
        return cls(places, stamps, head["layouts"], head["facts"], rows, values)

    def entry(self, key: str, stamp: Stamp) -> _Entry | None:
        """Return what is kept of a file that is still the very same."""
        place = self._places.get(key)
        if place is None or self._stamps[place] != stamp:
            return None
        layout, facts, at = self._rows[place]
        metrics = _KeptMetrics(self._layouts[layout], self._values, at)
        return _Entry(stamp, metrics, self._facts[facts])


def _write(file: Path, entries: Mapping[str, _Entry]) -> None:
    """Write arrays and one head of JSON; nothing in it runs code when it is read."""
    import numpy as np

    keys, stamps = list[str](), list[Stamp]()
    rows, values = list[tuple[int, int, int]](), list[float]()
    layouts: dict[tuple[str, ...], int] = {}
    facts: dict[str, int] = {}
    for key, entry in entries.items():
        if not all(type(value) is float for value in entry.metrics.values()):
            continue  # a whole number would come back as another kind of number
        text = json.dumps(entry.facts)
        layout = layouts.setdefault(tuple(entry.metrics), len(layouts))
        rows.append((layout, facts.setdefault(text, len(facts)), len(values)))
        values += entry.metrics.values()
        keys.append(key)
        stamps.append(entry.stamp)
    head = {"keys": keys, "layouts": [*layouts], "facts": [*map(json.loads, facts)]}
    with file.open("wb") as target:
        np.savez(
            target,
            head=np.frombuffer(json.dumps(head).encode(), dtype=np.uint8),
            stamps=np.array(stamps, dtype=np.int64).reshape(-1, 4),
            rows=np.array(rows, dtype=np.int64).reshape(-1, 3),
            values=np.array(values, dtype=np.float64),
        )

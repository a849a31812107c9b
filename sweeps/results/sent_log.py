"""What was sent of a sweep's runs to a place (server or database, and experiment).

So a driver need not send all again. What the place has now is asked of the place itself.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path

from carft_sweep.carft_core.files import append_lines, read_lines, write_text
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.ledger import Ledger
from carft_sweep.tracking.location import TrackingLocation, resolve_location, without_password

STARTED = "started"
"""The fingerprint of a run of which the store has something, and perhaps not all."""


def place_of(home: Home, ledger: Ledger | None) -> TrackingLocation:
    """Return where the runs of a sweep are recorded, by its newest generation, if it has one."""
    experiment = "" if ledger is None else str(ledger.spec.get("experiment", ""))
    return resolve_location(home.path, experiment=experiment)


class SentLog:
    """The file that says what one place was sent of each run of a sweep; the last line of a run
    counts. The sweep's own run has the digest ""."""

    def __init__(self, folder: Path, place: TrackingLocation) -> None:
        self.file = folder / "sent" / f"{place.key}.jsonl"
        self.model = self.file.with_suffix(".model.json")
        """The file that records which model of the sweep the place has."""
        self.place = f"{without_password(place.named)} (experiment {place.experiment})"
        self.experiment = ""
        """The place's id of the experiment; empty if unknown."""
        self.runs: dict[str, Mapping[str, str]] = {}
        """By digest: `id` of the run in the store, and `as`, the fingerprint of what was sent."""
        self._lock = threading.Lock()
        """Held while `runs` changes or is copied (`snapshot`)."""
        self._is_stale = False
        """Whether the file has an entry that is no longer true."""
        lines = read_lines(self.file)
        for line in lines:
            try:
                entry = json.loads(line)
                texts = {key: text for key, text in entry.items() if isinstance(text, str)}
                if "place" in texts:
                    self.place = texts["place"]
                    self.experiment = texts.get("experiment", "")
                elif texts.keys() >= {"run", "id", "as"}:
                    self.runs[texts["run"]] = texts
            except (ValueError, AttributeError, RecursionError):
                continue  # its run is sent again
        if len(lines) > 2 * len(self.runs) + 100:
            self._rewrite()

    def fingerprint(self, digest: str) -> str | None:
        """Return the fingerprint with which a run was last recorded as sent, or None."""
        entry = self.runs.get(digest)
        return None if entry is None else entry["as"]

    def snapshot(self) -> dict[str, Mapping[str, str]]:
        """Return a copy of `runs`, which another thread may change meanwhile."""
        with self._lock:
            return dict(self.runs)

    def run_ids(self) -> dict[str, str]:
        """Return the store's ids of the runs that were sent, by digest."""
        return {digest: entry["id"] for digest, entry in self.snapshot().items()}

    def record(self, digest: str, run_id: str, fingerprint: str) -> None:
        """Record what the store has of a run (`fingerprint`); an unrecorded run is sent again."""
        if not digest and run_id != self.runs.get("", {}).get("id"):
            self.model.unlink(missing_ok=True)  # it belongs to a run that is there no more
        with self._lock:
            self.runs[digest] = {"run": digest, "id": run_id, "as": fingerprint}
        if self._is_stale or not self.file.exists():
            self._rewrite()
        else:
            append_lines(self.file, [json.dumps(self.runs[digest])], durable=False)

    def note_experiment(self, experiment: str | None) -> None:
        """Record the store's id of the experiment."""
        if experiment is not None and experiment != self.experiment:
            self.experiment = experiment
            self._rewrite()

    def correct(self, digest: str, run_id: str | None) -> None:
        """Mark as unsent a run that the store lacks (`run_id` None), or has in another state. The
        file is updated by the next `record`."""
        self._is_stale = True
        with self._lock:
            if run_id is None:
                self.runs.pop(digest, None)
            else:
                self.runs[digest] = {"run": digest, "id": run_id, "as": STARTED}

    def _rewrite(self) -> None:
        place = {"place": self.place, "experiment": self.experiment}
        entries = [{name: entry for name, entry in place.items() if entry}, *self.runs.values()]
        self._is_stale = False
        write_text(self.file, "".join(f"{json.dumps(entry)}\n" for entry in entries))

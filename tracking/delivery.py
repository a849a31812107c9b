"""Takes one journal's records to a tracker, in order, each until it is kept or set aside."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tracking import verbs
from tracking.base import RunKey, ServiceUnreachable, Tracker, TrackingError
from tracking.journal import Journal, Line


class Parcel(NamedTuple):
    """The lines that one call of the tracker delivers; decoded then, since many may wait."""

    lines: Sequence[str]

    def record(self) -> verbs.Record:
        """What is told."""
        records = [verbs.decode(line) for line in self.lines]
        return records[0] if len(records) == 1 else verbs.merged(records)


class Delivery:
    """What of a journal is delivered and what waits. One thread delivers; any may read `behind`."""

    def __init__(self, tracker: Tracker, journal: Journal) -> None:
        self.journal = journal
        self.rejected = 0
        self._tracker = tracker
        self._told = journal.count_waiting()
        self._delivered = 0
        self._parcels: deque[Parcel] = deque()
        self._end = journal.acknowledged

    @property
    def behind(self) -> int:
        """How many records were told and are neither kept nor set aside."""
        return self._told - self._delivered

    @property
    def delivered(self) -> int:
        """How many records this object has brought to their place."""
        return self._delivered

    @property
    def is_full(self) -> bool:
        """Whether so much waits that a longer wait would merge nothing more."""
        return self.journal.is_full

    def add(self, record: verbs.Record, *, durable: bool) -> None:
        """Write a record down."""
        self.journal.append(verbs.encode(record), durable=durable)
        self._told += 1

    def deliver(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Deliver everything told before the call, until it is done or `stopped` says so.

        What is told meanwhile is left for the next call, where more of it can be merged. Raises
        ServiceUnreachable when the store cannot be used; what was delivered by then is not
        delivered again by this object.
        """
        wanted = self._told
        while self._delivered < wanted and not stopped():
            if not self._parcels:
                lines = self.journal.read()
                if not lines:
                    return
                self._parcels.extend(self._packed(lines))
                self._end = lines[-1].end
            while self._parcels and not stopped():
                self._hand_over(self._parcels[0])
            if not self._parcels:
                self.journal.acknowledge(self._end)

    def _hand_over(self, parcel: Parcel) -> None:
        # Whatever a store, a driver of a database or an upload raises: one record must not end
        # the thread that carries all the others. It is set aside with its reason.
        record = parcel.record()
        try:
            verbs.tell(self._tracker, record, self.journal.files)
        except ServiceUnreachable:
            raise
        except Exception as error:
            if len(parcel.lines) == 1:
                known = isinstance(error, TrackingError)
                reason = str(error) if known else f"{type(error).__name__}: {error}"
                self._set_aside(parcel.lines[0], reason)
                self._parcels.popleft()
            else:  # one of them is at fault, the others are not
                single = [Parcel([line]) for line in parcel.lines]
                self._parcels.popleft()
                self._parcels.extendleft(reversed(single))
            return
        self._parcels.popleft()
        self._delivered += len(parcel.lines)
        if record["verb"] == "open":
            key = verbs.key_of(record)
            self.journal.runs[key.digest] = self._tracker.run_id(key) or ""

    def _packed(self, lines: Sequence[Line]) -> list[Parcel]:
        """Parcels in order, the metrics of a run merged up to the next other verb of that run."""
        parcels: list[Parcel] = []
        waiting: dict[RunKey, list[str]] = {}

        def close(key: RunKey) -> None:
            if found := waiting.pop(key, None):
                parcels.append(Parcel(found))

        for line in lines:
            try:
                record = verbs.decode(line.text)
                key = verbs.key_of(record)
            except (ValueError, KeyError, TypeError) as error:
                self._set_aside(line.text, f"the journal is damaged here: {error}")
                continue
            if record["verb"] == "metrics":
                waiting.setdefault(key, []).append(line.text)
            else:
                close(key)
                parcels.append(Parcel([line.text]))
        for key in list(waiting):
            close(key)
        return parcels

    def _set_aside(self, line: str, reason: str) -> None:
        self.journal.reject(line, reason)
        self.rejected += 1
        self._delivered += 1

"""A tracker that writes to a journal, and delivers it to the store in a thread."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tracking.errors import RequestFailed, ServiceUnreachable, TrackingError
from tracking.journal import (
    Journal,
    Line,
    Record,
    decode,
    encode,
    ended,
    kept,
    key_of,
    measured,
    merged,
    opened,
    tagged,
    tell,
)
from tracking.location import home_id, resolve_location
from tracking.store.base import EndState, Metric, RunKey, RunStart, Tracker

LONGEST_ASKED = 600.0
"""A store that asks to be left alone for longer is asked again after these seconds."""
_SHARE = 0.75
_SOON = 0.25


class Pacing:
    """The pause before the next delivery, from how the last one went; all times in seconds.

    Delivering takes at most three quarters of the time: what is told meanwhile is merged, so a
    store under load gets fewer and fuller requests. While it is away, pauses double up to
    `longest`.
    """

    def __init__(self, shortest: float, longest: float) -> None:
        self.pause = shortest
        """How long records gather, unless somebody waits for them."""
        self.least = 0.0
        """How much of it passes though somebody waits."""
        self._shortest, self._longest = shortest, longest
        self._doubled = shortest

    def delivered(self, seconds: float, *, full: bool) -> None:
        """All went well in so many seconds. `full`: longer waiting would merge nothing more."""
        rest = 0.0 if full else seconds * (1 - _SHARE) / _SHARE
        self.pause = min(max(self._shortest, rest), max(self._shortest, self._longest))
        self.least = 0.0
        self._doubled = self._shortest

    def failed(self, *, progress: bool, asked: float | None) -> None:
        """The store could not be used, after `progress` or at once; it may have `asked` to wait.

        A store that takes some of the records and refuses the others as it is busy is not away.
        """
        last = self._shortest if progress else self._doubled
        self._doubled = min(2 * last, self._longest)
        self.pause, self.least = self._doubled, min(self._doubled, _SOON)
        if asked is not None:
            self.least = min(asked, LONGEST_ASKED)
            self.pause = max(self.pause, self.least)


TRIES = 5
"""A record that may not be at fault is set aside when it failed so many times."""


class Parcel(NamedTuple):
    """The lines that one call of the tracker delivers; decoded then, since many may wait."""

    lines: Sequence[str]

    def record(self) -> Record:
        """What is told."""
        records = [decode(line) for line in self.lines]
        return records[0] if len(records) == 1 else merged(records)


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
        self._failures = 0
        """How often the first parcel failed for a reason that may pass."""
        self._unopened: dict[RunKey, str] = {}
        """Why the store has no such run: its `open` was set aside."""

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

    def add(self, record: Record, *, durable: bool) -> None:
        """Write a record down."""
        self.journal.append(encode(record), durable=durable)
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
        record = parcel.record()
        key = key_of(record)
        opens = record["verb"] == "open"
        # A run is opened again by each process: that it failed before says nothing of this time.
        needed = (RunKey(*record["parent"]) if record["parent"] else None) if opens else key
        if needed in self._unopened:
            reason = f"its run was not opened: {self._unopened[needed]}"
            self._refuse(parcel, reason)
            if opens:
                self._unopened[key] = reason
            return
        try:
            tell(self._tracker, record, self.journal.files)
        except RequestFailed as error:
            self._stumble(parcel, key, str(error), opens=opens, may_pass=True)
        except ServiceUnreachable:
            raise
        except TrackingError as error:
            # With an `open` the whole run would be lost, so it is never refused at once.
            self._stumble(parcel, key, str(error), opens=opens, may_pass=opens)
        except Exception as error:
            # Whatever a store, a driver of a database or an upload raises: one record must not end
            # the thread that carries all the others. It is set aside with its reason.
            reason = f"{type(error).__name__}: {error}"
            self._stumble(parcel, key, reason, opens=opens, may_pass=True)
        else:
            self._failures = 0
            self._parcels.popleft()
            self._delivered += len(parcel.lines)
            if opens:
                self._unopened.pop(key, None)
                self.journal.runs[key.digest] = self._tracker.run_id(key) or ""

    def _stumble(
        self, parcel: Parcel, key: RunKey, reason: str, *, opens: bool, may_pass: bool
    ) -> None:
        """Leave the first parcel for later or, where it failed too often, refuse what is in it.

        Raises ServiceUnreachable in the first case.
        """
        self._failures += 1
        if may_pass and self._failures < TRIES:
            raise ServiceUnreachable(reason)
        self._failures = 0
        if len(parcel.lines) > 1:  # one of them is at fault, the others are not
            self._parcels.popleft()
            self._parcels.extendleft(Parcel([line]) for line in reversed(parcel.lines))
            return
        self._refuse(parcel, reason)
        if opens:
            self._unopened[key] = reason

    def _refuse(self, parcel: Parcel, reason: str) -> None:
        for line in parcel.lines:
            self._set_aside(line, reason)
        self._parcels.popleft()

    def _packed(self, lines: Sequence[Line]) -> list[Parcel]:
        """Parcels in order, the metrics of a run merged up to the next other verb of that run."""
        parcels: list[Parcel] = []
        waiting: dict[RunKey, list[str]] = {}

        def close(key: RunKey) -> None:
            if found := waiting.pop(key, None):
                parcels.append(Parcel(found))

        for line in lines:
            try:
                record = decode(line.text)
                key = key_of(record)
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


# A file below this is copied when it is told; a larger one is read when it is delivered.
SMALL = 1_000_000


class Spool(Tracker):
    """Tells `tracker` everything in time; journals lie in `folder`, one for each sweep.

    `pace` is the shortest time between deliveries in seconds. It grows with the time that they
    take, and doubles while the store is away, up to `longest_pause`: see `Pacing`. `close` waits
    at most `patience` seconds for the delivery to end.
    """

    def __init__(
        self,
        tracker: Tracker,
        folder: Path,
        *,
        pace: float = 1.0,
        longest_pause: float = 60.0,
        patience: float = 15.0,
    ) -> None:
        self.tracker = tracker
        self.last_error: str | None = None
        self._folder = folder.resolve()
        self._pacing = Pacing(pace, longest_pause)
        self._patience = patience
        self._deliveries: dict[str, Delivery] = {}
        self._changed = threading.Condition()
        self._flushing = 0
        self._closing = False
        self._abandoned = False
        self._thread = threading.Thread(target=self._pump, name="carft-spool", daemon=True)
        self._thread.start()

    def reach(self) -> None:
        """See Tracker; before anything is told, since the thread has the tracker after that."""
        self.tracker.reach()

    def take_up(self, sweep: str) -> None:
        """Hold the sweep's journal from now on, and deliver what an earlier process left in it.

        A verb does it too; a driver calls it first, since it raises SpoolBusy while another
        process holds the journal.
        """
        self._delivery(sweep)

    def open(self, start: RunStart) -> None:
        """Write it down, durably."""
        self._add(start.key, opened(start), durable=True)

    def metrics(self, key: RunKey, values: Sequence[Metric]) -> None:
        """Write them down."""
        self._add(key, measured(key, values))

    def tags(self, key: RunKey, values: Mapping[str, str]) -> None:
        """Write them down."""
        self._add(key, tagged(key, values))

    def artifact(self, key: RunKey, path: Path, *, folder: str = "") -> None:
        """Copy a file below 1 MB, and note the path of a larger one, which is read later.

        A file that is missing by then becomes a tag `carft.artifact_missing.<name>`.
        """
        path = path.absolute()
        files = self._delivery(key.sweep).journal.files
        try:
            copy, digest = _copied(path, files) if path.stat().st_size < SMALL else (None, None)
        except OSError:  # no such file, or no room for a copy: seen to when it is delivered
            copy, digest = None, None
        self._add(key, kept(key, path, folder, copy, digest))

    def end(self, key: RunKey, state: EndState, *, timestamp: int) -> None:
        """Write it down, durably."""
        self._add(key, ended(key, state, timestamp), durable=True)

    def run_id(self, key: RunKey) -> str | None:
        """The store's id, once the run was delivered by this process or an earlier one."""
        delivery = self._deliveries.get(key.sweep)
        return delivery.journal.runs.get(key.digest) or None if delivery else None

    def behind(self) -> int:
        """How many records are written down and not delivered."""
        with self._changed:
            return self._behind()

    def rejected(self) -> int:
        """How many records the store refused; they lie in `<sweep>.rejected.jsonl`."""
        with self._changed:
            return sum(delivery.rejected for delivery in self._deliveries.values())

    def rejected_files(self) -> list[Path]:
        """Where the records lie that the store refused, with its reasons."""
        with self._changed:
            refused = [one for one in self._deliveries.values() if one.rejected]
            return [delivery.journal.rejected for delivery in refused]

    def flush(self, timeout: float) -> bool:
        """Deliver now. False when records are still waiting after `timeout` seconds."""
        with self._changed:
            self._flushing += 1
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: not self._behind(), timeout)
            self._flushing -= 1
        return done

    def close(self) -> None:
        """Try once to deliver what is left, and let go; a later spool delivers the rest."""
        if self._closing:
            return
        self._end_thread()
        if self._thread.is_alive():  # still in a request: the process may end, nothing is lost
            return
        for delivery in self._deliveries.values():
            if not self._abandoned:
                delivery.journal.compact()
            delivery.journal.close()
        self.tracker.close()

    def abandon(self) -> None:
        """Let go at once and deliver nothing more, as a crash would."""
        self._abandoned = True
        self.close()

    def _delivery(self, sweep: str) -> Delivery:
        with self._changed:
            if self._closing:
                raise TrackingError("this spool is closed")
            if sweep not in self._deliveries:
                journal = Journal(self._folder, sweep)
                self._deliveries[sweep] = Delivery(self.tracker, journal)
                self._changed.notify_all()
            return self._deliveries[sweep]

    def _add(self, key: RunKey, record: Record, *, durable: bool = False) -> None:
        delivery = self._delivery(key.sweep)
        with self._changed:
            delivery.add(record, durable=durable)
            self._changed.notify_all()

    def _behind(self) -> int:
        return sum(delivery.behind for delivery in self._deliveries.values())

    def _end_thread(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(self._patience)

    def _pump(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._behind() > 0)
                self._gather()
                last = self._closing
                deliveries = list(self._deliveries.values())
            self._deliver(deliveries)
            if last:
                return

    def _gather(self) -> None:
        """Let records gather, unless somebody waits for them."""
        pause, least = self._pacing.pause, self._pacing.least
        self._changed.wait_for(lambda: self._closing, least)
        self._changed.wait_for(lambda: self._closing or self._flushing > 0, pause - least)

    def _deliver(self, deliveries: Sequence[Delivery]) -> None:
        error: str | None = None
        asked: float | None = None
        began, before = time.monotonic(), sum(one.delivered for one in deliveries)
        for delivery in deliveries:
            try:
                delivery.deliver(lambda: self._abandoned)
            except OSError as disk:  # the home's own
                error = str(disk)
            except ServiceUnreachable as away:
                error, asked = str(away), away.retry_after
                if asked is not None:  # by the store that the others go to as well
                    break
        if error is None:
            full = any(delivery.is_full for delivery in deliveries)
            self._pacing.delivered(time.monotonic() - began, full=full)
        else:
            progress = sum(one.delivered for one in deliveries) > before
            self._pacing.failed(progress=progress, asked=asked)
        with self._changed:
            self.last_error = error
            self._changed.notify_all()


def _copied(path: Path, files: Path) -> tuple[str, str]:
    """Copy a file below `files` by what it holds; the copy's place there, and the digest."""
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    place = files / digest[:32] / path.name
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        new = place.with_name(f".{place.name}.new")
        new.write_bytes(content)
        new.replace(place)
    return str(place.relative_to(files)), digest


def open_tracking(home: Path, environ: Mapping[str, str] | None = None) -> Spool:
    """The tracker of a home: MLflow behind a spool. Imports MLflow only when a run is opened.

    Raises TrackingError where its database would not be safe.
    """
    from tracking.store.mlflow_store import MlflowStore

    place = resolve_location(home, environ)
    store = MlflowStore(place.uri, place.experiment, place.artifacts, home=home_id(home))
    return Spool(store, place.spool)

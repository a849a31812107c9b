"""A tracker that never fails or slows a sweep: it writes everything down and delivers it meanwhile.

Each verb is a line of `<folder>/<sweep>.jsonl`, written before the verb returns. A thread takes
the lines to the wrapped tracker in order, about once a second, and less often while the store is
busy or away. After a crash the next spool of the folder goes on; what it delivers twice changes
nothing.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tracking import verbs
from tracking.base import (
    EndState,
    Metric,
    RunKey,
    RunStart,
    ServiceUnreachable,
    Tracker,
    TrackingError,
)
from tracking.delivery import Delivery
from tracking.journal import Journal
from tracking.pacing import Pacing

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
        self._add(start.key, verbs.opened(start), durable=True)

    def metrics(self, key: RunKey, values: Sequence[Metric]) -> None:
        """Write them down."""
        self._add(key, verbs.measured(key, values))

    def tags(self, key: RunKey, values: Mapping[str, str]) -> None:
        """Write them down."""
        self._add(key, verbs.tagged(key, values))

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
        self._add(key, verbs.kept(key, path, folder, copy, digest))

    def end(self, key: RunKey, state: EndState, *, timestamp: int) -> None:
        """Write it down, durably."""
        self._add(key, verbs.ended(key, state, timestamp), durable=True)

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

    def _add(self, key: RunKey, record: verbs.Record, *, durable: bool = False) -> None:
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

"""The thread that sends again and again what a store lacks."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

LONGEST_PAUSE = 60.0
"""Seconds between two tries while the store is away."""
SOON = 0.25
"""Seconds between two tries while somebody waits."""
_SHARE = 0.75
"""Share of the time that may go into updates; records that come meanwhile are sent together."""

TURNS = 20
"""The most timeouts that a flush waits for a slow store that makes progress."""

logger = logging.getLogger(__name__)


class SyncThread:
    """Calls `update` in a thread while there is something to send, about every `pace` seconds.

    The pause grows with the time that updates take, and doubles while they fail, up to
    LONGEST_PAUSE. `update` returns False where something waits for another try. With `idle` it is
    also called `idle` seconds after the last call.
    """

    def __init__(
        self, name: str, update: Callable[[], bool], *, pace: float = 1.0, idle: float | None = None
    ) -> None:
        self.last_error: str | None = None
        """Why the last update failed; None if it did not."""
        self._update, self._pace, self._idle = update, pace, idle
        self._changed = threading.Condition()
        self._wanted, self._done = 1, 0
        self._is_closing = False
        self._flushing = 0
        self._thread = threading.Thread(target=self._run, name=f"carft-{name}", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether everything was sent since the last change."""
        return self._done >= self._wanted

    def wake(self) -> None:
        """Wake the thread, since records wait to be sent."""
        with self._changed:
            self._wanted += 1
            self._changed.notify_all()

    def flush(
        self, timeout: float, *, haste: bool = False, progress: Callable[[], int] = lambda: 0
    ) -> bool:
        """Update now and wait until all is sent; return False after `timeout` seconds in which
        `progress()` did not change, after TURNS timeouts, and in `haste` after one or an error."""
        with self._changed:
            self._flushing += 1
            self._changed.notify_all()
            for _ in range(1 if haste else TURNS):
                before = progress()
                self._changed.wait_for(
                    lambda: self.is_done or (haste and self.last_error is not None), timeout
                )
                if self.is_done or progress() == before:
                    break
            self._flushing -= 1
            return self.is_done

    def close(self, patience: float) -> None:
        """Stop the thread, and wait at most `patience` seconds for a running update."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(patience)

    def _run(self) -> None:
        pause = failed_pause = self._pace
        least = 0.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closing or not self.is_done, self._idle)
                # News gathers, unless somebody waits for it.
                self._changed.wait_for(lambda: self._is_closing, min(pause, least))
                self._changed.wait_for(lambda: self._is_closing or self._flushing > 0, pause)
                if self._is_closing:
                    return
                wanted = self._wanted
            began = time.monotonic()
            error: str | None = None
            try:
                is_done = self._update()
            except Exception as failure:  # a place that is away or ill must not end the sweep
                lines = str(failure).splitlines()
                is_done, error = False, lines[0] if lines else type(failure).__name__
                logger.debug("%s: %s", self._thread.name, error, exc_info=failure)
            took = time.monotonic() - began
            if error is None:
                pause = failed_pause = max(self._pace, took * (1 - _SHARE) / _SHARE)
            else:
                logger.info("%s: %s; another try in %.0f s", self._thread.name, error, failed_pause)
                pause = failed_pause
                failed_pause = min(2 * failed_pause, LONGEST_PAUSE)
            least = 0.0 if is_done else SOON
            with self._changed:
                self.last_error = error
                if is_done:
                    self._done = wanted
                self._changed.notify_all()

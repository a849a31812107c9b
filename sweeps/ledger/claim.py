"""One driver a sweep, and requests that it stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from carft_core.errors import RequestError
from carft_core.files import read_json, write_json
from sweeps.ledger.runs import RENEW_AFTER, Lease, new_owner
from tracking.location import Lock, LockHeld


class ClaimLost(RequestError):
    """Another driver has taken over the sweep; this one must write nothing more."""


class Claim:
    """LockHeld while a driver works on the sweep in `folder`; a crash lets go of it.

    A thread renews it, so that a driver that plans, waits or finishes looks alive to other hosts.
    """

    def __init__(self, folder: Path) -> None:
        self._name = folder.name
        self._file = folder / "driver.json"
        self._path = folder / ".lock"
        self._lease = Lease.mine(new_owner())
        self._lock: Lock | None = None
        self._renewing = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="carft-claim", daemon=True)

    def __enter__(self) -> Claim:
        """Raises RequestError when another driver has it."""
        try:
            self._lock = Lock(self._path)
        except LockHeld as held:
            raise self._refusal(holder(self._file.parent) or f"process {held.pid}") from None
        # A lock of another host need not reach here; its lease does.
        other = Lease.read(read_json(self._file))
        if other is not None and other.host != self._lease.host and other.is_live():
            self._lock.release()
            raise self._refusal(str(other))
        write_json(self._file, self._lease.as_dict())
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go, unless another driver has it now."""
        self._closed.set()
        self._thread.join()
        if self._is_ours():
            self._file.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.release()

    def renew(self) -> None:
        """Say that the driver lives, at most every ten seconds on disk.

        Raises ClaimLost when another driver has taken over: this one was silent for too long on a
        file system whose locks do not reach the other host.
        """
        with self._renewing:
            if time.time() - self._lease.renewed < RENEW_AFTER:
                return
            if not self._is_ours():
                raise ClaimLost(
                    f"the sweep {self._name} was taken over by "
                    f"{holder(self._file.parent) or 'another driver'}, since this driver had not "
                    "renewed its claim for too long; it stops and leaves the sweep to the other"
                )
            self._lease = self._lease.again()
            write_json(self._file, self._lease.as_dict())

    def _is_ours(self) -> bool:
        lease = Lease.read(read_json(self._file))
        return lease is not None and lease.owner == self._lease.owner

    def _keep(self) -> None:
        while not self._closed.wait(RENEW_AFTER):
            try:
                self.renew()
            except ClaimLost:
                return  # the driver finds out by its own call
            except (OSError, RequestError):
                continue  # a file system that is away for a moment; the claim outlives six tries

    def _refusal(self, who: object) -> RequestError:
        return RequestError(
            f"the sweep {self._name} is being run by {who}; wait for it, or stop it: "
            f"carft-sweep stop {self._name}, or Ctrl-C there"
        )


def holder(folder: Path) -> Lease | None:
    """The live driver of the sweep in `folder`, if any."""
    lease = Lease.read(read_json(folder / "driver.json"))
    return lease if lease is not None and lease.is_live() else None


@contextmanager
def undriven(folder: Path) -> Iterator[None]:
    """Keep drivers out of the sweep in `folder`. Raises RequestError while it has one."""
    driver = holder(folder)
    if driver is not None:
        raise RequestError(f"the sweep {folder.name} is being run by {driver}")
    try:
        lock = Lock(folder / ".lock")
    except LockHeld as held:
        raise RequestError(f"the sweep {folder.name} is being run by process {held.pid}") from None
    try:
        yield
    finally:
        lock.release()


FILE = "stop.json"
EVERY = 0.5
"""Seconds between two looks for a request."""


def ask_to_stop(folder: Path, now: bool = False) -> Lease | None:
    """Ask the driver of the sweep in `folder` to stop after its epoch, or `now`.

    The driver that is asked; None when no driver lives, and then nothing is written. A request is
    for that driver alone: the next one finds it stale, whatever the clocks of the hosts say.
    """
    driver = holder(folder)
    if driver is not None:
        write_json(folder / FILE, {"owner": driver.owner, "now": now, "asked": time.time()})
    return driver


class StopRequests:
    """While open, a thread calls `stop(now)` for each request to stop.

    To be opened by the driver when it holds its claim.
    """

    def __init__(self, folder: Path, stop: Callable[[bool], None]) -> None:
        self._file = folder / FILE
        self._driver = folder / "driver.json"
        self._stop = stop
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="carft-requests", daemon=True)

    def __enter__(self) -> StopRequests:
        """Begin to look; a request to an earlier driver goes."""
        self._owner = (read_json(self._driver) or {}).get("owner")
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Look no more. What was asked until now is done."""
        self._closed.set()
        self._thread.join()
        self._file.unlink(missing_ok=True)

    def _watch(self) -> None:
        while not self._closed.is_set():
            request = self._take()
            if request is not None and request.get("owner") == self._owner:
                self._stop(bool(request.get("now")))
            self._closed.wait(EVERY)

    def _take(self) -> dict[str, Any] | None:
        taken = self._file.with_name(f".{FILE}.taken")
        try:
            # Renamed first: a later request that comes meanwhile is not removed with this one.
            self._file.replace(taken)
            found = read_json(taken)
            taken.unlink()
        except (OSError, RequestError):  # there is none, or it is unreadable, as none of ours is
            return None
        return found if isinstance(found, dict) else None

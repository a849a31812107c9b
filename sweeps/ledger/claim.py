"""The claim of the one driver of a sweep, and requests that it stop or run less."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.files import read_json, write_json
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.runs import Lease, end_claimant
from carft_sweep.tracking.location import Lock, LockHeld

DRIVER, FILE = "driver.json", "stop.json"
"""The files of a sweep driver's lease, and of the request that it stop."""
LIMITS = "limits.json"
"""The file of the driver's limits."""
EVERY = 0.5
"""Seconds between two looks for a request."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """Limits on the runs of a running driver, which the commands `set` and `pause` request."""

    parallel: int | None = None
    """The most runs at once; None: as it began."""
    is_paused: bool = False
    """Whether no run may begin."""

    def __str__(self) -> str:
        """Return the limits as a sentence for the driver's terminal."""
        if self.is_paused:
            return "paused: what runs goes on to its end, and nothing begins"
        most = f"at most {self.parallel} at once, and no more than it began with"
        return f"goes on: {most if self.parallel else 'as many at once as it began with'}"


class ClaimLost(RequestError):
    """Another driver has taken over the sweep; this one must write nothing more."""


class Claim:
    """The right to drive the sweep in `folder`, from entering the context to leaving it; a crash
    releases it.

    A thread renews the claim, so that a driver that plans, waits or finishes looks alive to other
    hosts; it calls `renew` for what else the driver claims, and `stop(now)` for each request to
    stop.
    """

    def __init__(
        self,
        folder: Path,
        stop: Callable[[bool], object] = lambda _: None,
        renew: Callable[[], object] = lambda: None,
    ) -> None:
        self._folder, self._stop, self._renew_others = folder, stop, renew
        self._file, self._request = folder / DRIVER, folder / FILE
        self.limits = Limits()
        self._lease = Lease.mine()
        self._lock: Lock | None = None
        self._renewing = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="carft-claim", daemon=True)

    def __enter__(self) -> Claim:
        """Take the claim; drop old stop requests. Raises RequestError if another driver has it."""
        self._lock = _lock(self._folder)
        try:
            self._drop_requests()
            self._lease.write(self._file)
        except OSError:  # a full disk: this process may try again
            self._lock.release()
            raise
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Release the claim, unless another driver holds it now."""
        self._closed.set()
        self._thread.join()
        end_claimant(self._lease.owner)
        try:
            if self._is_ours():
                self._drop_requests()
                self._file.unlink(missing_ok=True)
        except (OSError, RequestError):
            # The home became read-only, or the file is damaged: a finished sweep stays finished.
            logger.info("%s cannot be removed", self._file, exc_info=True)
        finally:
            if self._lock is not None:
                self._lock.release()

    def renew(self) -> None:
        """Renew the claim, at most every ten seconds on disk. Raises ClaimLost when another driver
        has taken over: this driver did not renew for too long, on a file system whose locks do not
        reach the other host."""
        with self._renewing:
            if not self._lease.is_due:
                return
            if not self._is_ours():
                raise ClaimLost(
                    f"the sweep {self._folder.name} was taken over by "
                    f"{holder(self._folder) or 'another driver'}, since this driver had not "
                    "renewed its claim for too long; it stops and leaves the sweep to the other"
                )
            self._lease = self._lease.renew()
            self._lease.write(self._file)

    def _drop_requests(self) -> None:
        self._request.unlink(missing_ok=True)
        (self._folder / LIMITS).unlink(missing_ok=True)

    def _is_ours(self) -> bool:
        lease = Lease.read(self._file)
        return lease is not None and lease.owner == self._lease.owner

    def _watch(self) -> None:
        while not self._closed.wait(EVERY):
            try:
                self.renew()
                self._renew_others()
                if self._request.exists() and self._is_ours():
                    self._take_request()
                self.limits = limits_of(self._folder, self._lease)
            except ClaimLost:
                return  # the driver finds out by its own call
            except (OSError, RequestError):
                continue  # a file system that is away for a moment; the claim outlives six tries

    def _take_request(self) -> None:
        """Obey a stop request and remove it; remove an invalid request too."""
        taken = self._request.with_name(f".{FILE}.taken")
        # Renamed first: a later request that comes meanwhile is not removed with this one.
        self._request.replace(taken)
        try:
            request = read_json(taken)
        finally:
            taken.unlink()
        if isinstance(request, dict) and request.get("owner") == self._lease.owner:
            self._stop(bool(request.get("now")))


def holder(folder: Path) -> Lease | None:
    """Return the live driver of the sweep in `folder`; None without one."""
    lease = Lease.read(folder / DRIVER)
    return lease if lease is not None and lease.is_live() else None


@contextmanager
def undriven(folder: Path) -> Iterator[None]:
    """Keep drivers off the sweep in `folder` within the context. Raises RequestError if it has
    one."""
    lock = _lock(folder)
    try:
        yield
    finally:
        lock.release()


def _lock(folder: Path) -> Lock:
    """Return a lock on the sweep in `folder`. Raises RequestError when a driver has locked it."""
    try:
        lock = Lock(folder / ".lock")
    except LockHeld as held:
        raise _refusal(folder, holder(folder) or f"process {held.pid}") from None
    # A lock of another host need not reach here; its lease does.
    try:
        other = holder(folder)
        if other is not None and other.host != socket.gethostname():
            raise _refusal(folder, other)
    except RequestError:
        lock.release()
        raise
    return lock


def _refusal(folder: Path, who: Lease | str) -> RequestError:
    gone = ""
    if isinstance(who, Lease) and who.host != socket.gethostname():
        gone = f". If {who.host} is gone: its claim ends by itself within two minutes"
    return RequestError(
        f"the sweep {folder.name} is being run by {who}; wait for it, or stop it: "
        f"{Home(folder.parent.parent).command('stop', folder.name)}, or Ctrl-C there{gone}"
    )


def ask_to_stop(folder: Path, now: bool = False) -> Lease | None:
    """Request that the driver of the sweep in `folder` stop after its epoch, or `now`. Returns that
    driver; without a live driver returns None and writes nothing. A request is for that driver
    alone: the next driver finds it stale, whatever the clocks of the hosts say."""
    driver = holder(folder)
    if driver is not None:
        write_json(folder / FILE, {"owner": driver.owner, "now": now, "asked": time.time()})
    return driver


def limits_of(folder: Path, driver: Lease) -> Limits:
    """Return the limits that were requested of `driver`, which drives the sweep in `folder`."""
    request = read_json(folder / LIMITS)
    if not isinstance(request, dict) or request.get("owner") != driver.owner:
        return Limits()
    parallel = request.get("parallel")
    is_count = type(parallel) is int and parallel > 0
    return Limits(parallel if is_count else None, request.get("is_paused") is True)


def set_limits(folder: Path, **changes: Any) -> Lease | None:
    """Change limits (`changes`: fields of Limits) of the driver of the sweep in `folder`; return
    this driver, or None, without a change, if none is live. The next driver has no limits."""
    driver = holder(folder)
    if driver is not None:
        limits = replace(limits_of(folder, driver), **changes)
        write_json(folder / LIMITS, {"owner": driver.owner, **asdict(limits)})
    return driver

"""One driver for each sweep: the second one is refused, and told who the first is."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType

from carft_core.errors import RequestError
from carft_core.files import read_json, write_json
from sweeps.lease import Lease, new_owner
from sweeps.runs import RENEW_AFTER
from tracking.locks import Held, Lock


class Claim:
    """Held while a driver works on the sweep in `folder`; a crash lets go of it."""

    def __init__(self, folder: Path) -> None:
        self._name = folder.name
        self._file = folder / "driver.json"
        self._path = folder / ".lock"
        self._lease = Lease.mine(new_owner())
        self._lock: Lock | None = None

    def __enter__(self) -> Claim:
        """Raises RequestError when another driver has it."""
        try:
            self._lock = Lock(self._path)
        except Held as held:
            raise self._refusal(holder(self._file.parent) or f"process {held.pid}") from None
        # A lock of another host need not reach here; its lease does.
        other = Lease.read(read_json(self._file))
        if other is not None and other.host != self._lease.host and other.is_live():
            self._lock.release()
            raise self._refusal(str(other))
        write_json(self._file, self._lease.as_dict())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go."""
        self._file.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.release()

    def renew(self) -> None:
        """Say that the driver lives, at most every ten seconds on disk."""
        if time.time() - self._lease.renewed >= RENEW_AFTER:
            self._lease = self._lease.again()
            write_json(self._file, self._lease.as_dict())

    def _refusal(self, who: object) -> RequestError:
        return RequestError(
            f"the sweep {self._name} is being run by {who}; wait for it, or stop it: "
            f"carft-sweep stop {self._name}, or Ctrl-C there"
        )


def holder(folder: Path) -> Lease | None:
    """The live driver of the sweep in `folder`, if any."""
    lease = Lease.read(read_json(folder / "driver.json"))
    return lease if lease is not None and lease.is_live() else None

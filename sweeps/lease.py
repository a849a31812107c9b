"""Who is working on something, and whether they still live."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

SILENCE = 60.0
"""Seconds after which a lease from another host that nobody renews is void."""


@dataclass(frozen=True)
class Lease:
    """A claim of one process; times in seconds since the Unix epoch."""

    host: str
    pid: int
    born: str | None
    """When the process started, as the system tells it: a pid comes round again."""
    owner: str
    """Tells two claimants in one process apart."""
    since: float
    renewed: float

    @classmethod
    def mine(cls, owner: str) -> Lease:
        """A new claim of this process."""
        now = time.time()
        return cls(socket.gethostname(), os.getpid(), process_start(os.getpid()), owner, now, now)

    @classmethod
    def read(cls, data: Mapping[str, Any] | None) -> Lease | None:
        """What `as_dict` wrote."""
        return None if data is None else cls(**data)

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def again(self) -> Lease:
        """The same claim, renewed now."""
        return replace(self, renewed=time.time())

    def is_live(self) -> bool:
        """Whether its process runs on this host, or renewed it lately on another one."""
        if self.host != socket.gethostname():
            return time.time() - self.renewed < SILENCE
        if not _exists(self.pid):
            return False
        born = process_start(self.pid)
        return self.born is None or born is None or born == self.born

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        return f"process {self.pid} on {self.host} since {since}"


def new_owner() -> str:
    """A name that no other claimant has."""
    return uuid.uuid4().hex


def process_start(pid: int) -> str | None:
    """The start time of a process in ticks since boot; None where the system does not tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name in parentheses may hold spaces and parentheses itself.
    return stat.rpartition(")")[2].split()[19]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

"""The log of a job, line by line until it ends, whatever becomes of the connection."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sweeps.submission.job import Job
from sweeps.submission.jobs_api import JobsApi
from tracking.base import ServiceUnreachable

PAUSE = 1.0
"""Seconds between two looks, at least."""
PATIENCE = 1800.0
"""Seconds without any answer after which nobody is waited for any more."""
_LONGEST = 30.0
_BYTES_A_SECOND = 200_000
"""The API gives a log whole each time: a long one is asked for less often."""
Line = Callable[[str], None]


@dataclass
class Follower:
    """Tells each line of a job's log once.

    `line` is given lines, `note` what becomes of the connection.
    """

    api: JobsApi
    line: Line
    note: Line
    told: int = field(default=0, init=False)
    """Characters of the log that were told."""
    log: str = field(default="", init=False)

    def follow(self, id_: str) -> Job:
        """Until the job ends. Raises ServiceUnreachable after PATIENCE without an answer, and
        RequestError where the cluster does not know the job.
        """
        pause, answered = PAUSE, time.monotonic()
        while True:
            try:
                job = self.api.job(id_)  # before its log: what it has written by its end is there
                self._tell(self.api.logs(id_), is_all=job.has_ended)
            except ServiceUnreachable as error:
                silent = time.monotonic() - answered
                if silent > PATIENCE:
                    raise
                if pause == PAUSE:
                    self.note(f"{error}; the job goes on, trying again")
                pause = min(2 * pause, _LONGEST)
            else:
                if pause > PAUSE:
                    self.note("connected again")
                pause, answered = PAUSE, time.monotonic()
                if job.has_ended:
                    return job
            time.sleep(max(pause, len(self.log) / _BYTES_A_SECOND))

    def _tell(self, log: str, *, is_all: bool) -> None:
        """What is new of the log, in whole lines; the last one may still grow."""
        if len(log) < self.told:
            # Its node has lost what there was.
            self.told = 0
        self.log = log
        end = len(log) if is_all else log.rfind("\n") + 1
        for text in log[self.told : end].splitlines():
            self.line(text)
        self.told = max(self.told, end)

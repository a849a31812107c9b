"""A job as its cluster tells of it, and the exit code that it stands for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sweeps.submission.environment import STOP_SECONDS

Status = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
SWEEP, USER, COMMIT = "carft_sweep", "carft_user", "carft_commit"
"""Keys of a job's metadata."""
_ENDED = ("STOPPED", "SUCCEEDED", "FAILED")
_OURS = (1, 2, 3, 4)
_CAUSES = (
    (
        re.compile(r"No module named '?(sweeps|carft_core|tracking)\b"),
        "carft-sweep is not installed where the job ran: install it on every node, submit from a "
        "clone of it, or name it with --pip",
    ),
    (
        re.compile(r"exit code 127\b"),
        "the head has no such Python: name the one that its Ray runs with, "
        "--python /path/to/venv/bin/python",
    ),
    (
        re.compile(
            r"Failed to (setup|set up) runtime environment|Failed to install pip", re.IGNORECASE
        ),
        "the job's environment could not be made on the node: see its reason above",
    ),
    (
        re.compile(r"exit code -9\b|exit code 137\b"),
        "the driver was killed, maybe for memory; submit again, the sweep goes on",
    ),
)


@dataclass(frozen=True)
class Job:
    """One job. Times are Unix times in seconds."""

    id: str
    status: Status
    sweep: str | None
    user: str | None
    commit: str | None
    message: str
    driver_exit_code: int | None
    began: float | None
    ended: float | None

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Job:
        """From the API's answer. What it tells of the environment is not taken."""
        metadata = told.get("metadata") or {}
        return cls(
            id=str(told.get("submission_id")),
            status=told["status"],
            sweep=metadata.get(SWEEP),
            user=metadata.get(USER),
            commit=metadata.get(COMMIT),
            message=told.get("message") or "",
            driver_exit_code=told.get("driver_exit_code"),
            began=_seconds(told.get("start_time")),
            ended=_seconds(told.get("end_time")),
        )

    @property
    def has_ended(self) -> bool:
        """Whether nothing more comes."""
        return self.status in _ENDED

    @property
    def exit_code(self) -> int | None:
        """The driver's own, where it ended by itself; 3 for a job that was stopped, 1 for one that
        failed in another way; None while it runs.
        """
        if not self.has_ended:
            return None
        if self.status == "SUCCEEDED":
            return 0
        if self.status == "STOPPED":
            return 3
        return self.driver_exit_code if self.driver_exit_code in _OURS else 1

    def explained(self, log: str = "") -> str | None:
        """What a failure means that is none of the sweep's, and what to do; None where its own
        last lines tell it.
        """
        if self.status != "FAILED" or (self.driver_exit_code or 0) in _OURS[1:]:
            return None
        text = f"{self.message}\n{log[-20000:]}"
        return next((told for cause, told in _CAUSES if cause.search(text)), None)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "exit_code": self.exit_code}


def stopping(id_: str) -> str:
    """What happens to a job that is asked to stop."""
    return (
        f"{id_} was asked to stop: its driver ends after the epoch, within {STOP_SECONDS} s or it "
        "is killed; submitted again, the sweep goes on"
    )


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000

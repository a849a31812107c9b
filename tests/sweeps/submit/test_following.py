"""A job's log is told once, whatever becomes of the connection; its end is its exit code."""

from __future__ import annotations

from typing import Any

import pytest

from sweeps.submit import client as following
from sweeps.submit.client import Follower, Job
from tracking.errors import ServiceUnreachable

Step = tuple[str, str] | None


def job(status: str, **more: Any) -> Job:
    return Job.read({"submission_id": "a", "status": status, **more})


class Scripted:
    """An API that answers (status, log) in turn, and is away for None."""

    def __init__(self, *steps: Step) -> None:
        self.steps = list(steps)
        self.log = ""

    def job(self, _: str) -> Job:
        step = self.steps.pop(0)
        if step is None:
            raise ServiceUnreachable("nobody answers")
        status, self.log = step
        return job(status, driver_exit_code=0)

    def logs(self, _: str) -> str:
        if self.log == "away":
            raise ServiceUnreachable("nobody answers")
        return self.log


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses, which take no time but by the clock."""
    pauses: list[float] = []
    clock = [0.0]

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr("sweeps.submit.client.time.sleep", sleep)
    monkeypatch.setattr("sweeps.submit.client.time.monotonic", lambda: clock[0])
    return pauses


def follow(*steps: Step) -> tuple[Job, list[str], list[str]]:
    lines: list[str] = []
    notes: list[str] = []
    api: Any = Scripted(*steps)
    return Follower(api, lines.append, notes.append).follow("a"), lines, notes


def test_each_line_is_told_once_and_whole(slept: list[float]) -> None:
    ended, lines, notes = follow(
        ("PENDING", ""),
        ("RUNNING", "one\ntw"),
        ("RUNNING", "one\ntwo\n"),
        ("RUNNING", "one\ntwo\n"),
        ("SUCCEEDED", "one\ntwo\nthree\nno newline"),
    )
    assert lines == ["one", "two", "three", "no newline"]
    assert notes == []
    assert ended.exit_code == 0
    assert slept == [1.0] * 4


def test_a_lost_connection_is_tried_again_ever_more_slowly(slept: list[float]) -> None:
    _, lines, notes = follow(
        ("RUNNING", "one\n"),
        *[None] * 6,
        ("RUNNING", "away"),
        ("RUNNING", "one\ntwo\n"),
        None,
        ("SUCCEEDED", "one\ntwo\nthree\n"),
    )
    assert lines == ["one", "two", "three"]
    assert notes == [
        "nobody answers; the job goes on, trying again",
        "connected again",
        "nobody answers; the job goes on, trying again",
        "connected again",
    ]
    assert slept[:8] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_nobody_is_waited_for_for_ever(slept: list[float]) -> None:
    with pytest.raises(ServiceUnreachable):
        follow(("RUNNING", "one\n"), *[None] * 1000)
    assert following.PATIENCE < sum(slept) < following.PATIENCE + 100


def test_a_log_that_began_anew_is_told_anew(slept: list[float]) -> None:
    del slept
    _, lines, _ = follow(("RUNNING", "one\ntwo\n"), ("SUCCEEDED", "again\n"))
    assert lines == ["one", "two", "again"]


def test_a_long_log_is_asked_for_less_often(slept: list[float]) -> None:
    follow(("RUNNING", "x" * 1_000_000 + "\n"), ("SUCCEEDED", ""))
    assert slept == [pytest.approx(5.0, abs=0.1)]


@pytest.mark.parametrize(
    ("told", "code"),
    [
        ({"status": "RUNNING"}, None),
        ({"status": "SUCCEEDED", "driver_exit_code": 0}, 0),
        ({"status": "STOPPED"}, 3),
        *(({"status": "FAILED", "driver_exit_code": code}, code) for code in (1, 2, 3, 4)),
        ({"status": "FAILED", "driver_exit_code": -9}, 1),
        ({"status": "FAILED", "driver_exit_code": 127}, 1),
        ({"status": "FAILED"}, 1),
    ],
)
def test_the_exit_code_is_the_drivers_own(told: dict[str, Any], code: int | None) -> None:
    assert Job.read({"submission_id": "a", **told}).exit_code == code


@pytest.mark.parametrize(
    ("message", "log", "code", "said"),
    [
        ("", "/bin/python: No module named sweeps\n", 1, "carft-sweep is not installed where"),
        ("", "ModuleNotFoundError: No module named 'carft_core'", 1, "is not installed where"),
        ("failed with exit code 127", "sh: 1: python: not found", 127, "--python /path"),
        ("Failed to set up runtime environment", "", None, "environment could not be made"),
        ("failed with exit code -9, last", "", -9, "the driver was killed"),
    ],
)
def test_a_failure_before_the_sweep_is_explained(
    message: str, log: str, code: int | None, said: str
) -> None:
    told = job("FAILED", message=message, driver_exit_code=code).explained(log)
    assert told is not None
    assert said in told


def test_what_the_sweep_explains_itself_is_not_explained_again() -> None:
    assert job("FAILED", driver_exit_code=2).explained("No module named sweeps") is None
    assert job("FAILED", driver_exit_code=1).explained("no run succeeded") is None
    assert job("SUCCEEDED").explained("No module named sweeps") is None


def test_what_a_job_is_told_of_its_environment_is_not_read() -> None:
    told = job(
        "RUNNING",
        runtime_env={"env_vars": {"A": "hidden"}},
        metadata={"carft_sweep": "s", "carft_user": "u", "carft_commit": "c"},
        start_time=2000,
    ).as_dict()
    assert told == {
        **{"id": "a", "status": "RUNNING", "sweep": "s", "user": "u", "commit": "c"},
        **{"message": "", "driver_exit_code": None, "began": 2.0, "ended": None},
        "exit_code": None,
    }

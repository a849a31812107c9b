"""Ray's job client: one clear message for each failure, each line of a log once, the exit code."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp
import pytest
from ray.job_submission import JobDetails

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.submit import client as module
from carft_sweep.sweeps.submit.client import JOBS_VARIABLE, JobClient, exit_code, unencrypted
from carft_sweep.tracking.errors import ServiceUnreachable
from tests.services.answering import Answer
from tests.sweeps.submit.conftest import fake_head

VERSION = {"GET /api/version": Answer({"ray_version": "2.60.0", "version": "4"})}


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv(JOBS_VARIABLE, "")  # which the client sets


def test_an_address_that_is_no_dashboard_is_rejected() -> None:
    for address in (None, "head:6379", "me:pw@head", "http://[me:pw@head"):
        with pytest.raises(RequestError, match="give --address http://HOST:8265") as wrong:
            JobClient(address)
        assert "pw" not in str(wrong.value)


def test_the_option_goes_before_rays_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_head(answers=VERSION) as head:
        monkeypatch.setenv(JOBS_VARIABLE, "http://nowhere.invalid:8265")
        assert JobClient(f"{head.address}/").ray_version() == "2.60.0"
        monkeypatch.setenv(JOBS_VARIABLE, head.address)
        assert JobClient(None).shown == head.address


def test_what_answers_and_is_no_job_api() -> None:
    page = Answer("<html>", headers={"Content-Type": "text/html"})
    answers: list[tuple[Answer, type[Exception], str]] = [
        (page, ServiceUnreachable, "JSONDecode"),
        (Answer({"version": "4"}), RequestError, "is no dashboard of Ray"),
        (Answer("", 401), RequestError, "RAY_AUTH_MODE"),
        (Answer("", 403), RequestError, "Authentication failed"),
        (Answer("Traceback\nKeyError: 1", 500), ServiceUnreachable, "answers 500: KeyError: 1"),
        (Answer("bad", 400), RequestError, "answers 400: bad"),
    ]
    with fake_head() as head:
        for head.otherwise, kind, message in answers:
            with pytest.raises(kind, match=message) as wrong:
                JobClient(head.address)
            assert head.address in str(wrong.value)


def test_where_nobody_listens_or_says_anything_it_is_left_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ServiceUnreachable, match="ReadTimeout"):
            JobClient(f"http://127.0.0.1:{port}")
    message = rf"http://127\.0\.0\.1:{port} does not answer \(ConnectionError\); is it the dashb"
    with pytest.raises(ServiceUnreachable, match=message):
        JobClient(f"http://me:hidden-x@127.0.0.1:{port}")


def job(status: str, **more: Any) -> JobDetails:
    return JobDetails(type="SUBMISSION", status=status, entrypoint="", **more)


class Tailed(JobClient):
    """A client that is sent these pieces of a log, and then sees these states of the job."""

    def __init__(self, pieces: Sequence[str | Exception], states: Sequence[str]) -> None:
        self.shown = "http://head"
        self._pieces, self._states = pieces, iter(states)
        self.late = ""
        """What the stream lacks of the log."""

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        del job_id
        for piece in self._pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def get_job_logs(self, job_id: str) -> str:
        del job_id
        return "".join(map(str, self._pieces)) + self.late

    def get_job_info(self, job_id: str) -> JobDetails:
        del job_id
        return job(next(self._states))


def test_each_line_is_emitted_once_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.0)
    for pieces, late, states in (
        (["one\ntw", "o\n", "three\nno newline"], "", ["RUNNING", "SUCCEEDED"]),
        (["one\n", "tw"], "o\nthree\nno newline\n", ["SUCCEEDED"]),  # behind the stream's end
    ):
        lines: list[str] = []
        client = Tailed(pieces, states)
        client.late = late
        assert exit_code(client.follow("a", lines.append)) == 0
        assert lines == ["one", "two", "three", "no newline"]


def test_a_lost_connection_ends_the_following() -> None:
    for error in (aiohttp.ClientError("x"), RuntimeError("x"), OSError("x")):
        lines: list[str] = []
        with pytest.raises(ServiceUnreachable, match="http://head does not answer"):
            Tailed(["one\n", error], []).follow("a", lines.append)
        assert lines == ["one"]


def test_the_exit_code_is_the_drivers_own() -> None:
    assert exit_code(job("SUCCEEDED", driver_exit_code=0)) == 0
    assert exit_code(job("STOPPED")) == 3
    codes = {1: 1, 2: 2, 3: 3, 4: 4, -9: 1, None: 1}
    assert {code: exit_code(job("FAILED", driver_exit_code=code)) for code in codes} == codes


def test_a_token_that_others_could_read_on_its_way_is_warned_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for address, mode, expected in (
        ("http://head:8265", "token", "The token goes to head over http://"),
        ("http://10.0.0.7:8265", "token", "ssh -fN -L 8265:127.0.0.1:8265 10.0.0.7"),
        ("http://me:hidden-x@head:8265", "", "The password goes to head over http://"),
        ("https://head:8265", "token", None),
        ("http://head:8265", "", None),
        ("http://localhost:8265", "token", None),
        ("http://[::1]:8265", "token", None),
        ("http://[broken", "token", None),
    ):
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
        monkeypatch.setenv(JOBS_VARIABLE, address)
        for warning in (unencrypted(address), unencrypted(None)):
            assert (warning is None) == (expected is None), address
            assert (expected or "") in (warning or "")
            assert "hidden-x" not in (warning or "")


def test_an_api_that_wants_a_password_or_does_not_answer_is_not_open() -> None:
    with fake_head(answers=VERSION) as head:
        client = JobClient(head.address)
        for answer, is_open in ((Answer("", 401), False), (Answer([]), True), (Answer(""), True)):
            head.answers["GET /api/jobs/"] = answer
            assert client.is_open() is is_open
    assert not client.is_open()

"""How long a busy server wants to be left alone is read from what it answers."""

from __future__ import annotations

import uuid
from itertools import count

import pytest
from requests import HTTPError, Response

from tests.services.answering import Answer, Asked, answering
from tracking.errors import ServiceUnreachable, TrackingError
from tracking.store.base import RunKey, RunStart
from tracking.store.mlflow_errors import asked_to_wait, meaning_of_os_error
from tracking.store.mlflow_store import MlflowStore

PARENT = RunStart(RunKey("s"), "s", 1_790_000_000_000)


def unique() -> str:
    return f"test-{uuid.uuid4().hex}"


@pytest.mark.parametrize(
    ("status", "said", "seconds"),
    [(429, "7", 7), (503, "3", 3), (503, "soon", None), (500, "7", None)],
)
def test_a_busy_server_says_how_long_it_wants_to_be_left_alone(
    status: int, said: str, seconds: float | None
) -> None:
    with (
        answering(lambda _: Answer("busy", status, {"Retry-After": said})) as uri,
        pytest.raises(ServiceUnreachable) as caught,
    ):
        MlflowStore(uri, unique()).start_run(PARENT)
    assert caught.value.retry_after == seconds


def test_a_server_that_is_no_longer_busy_when_it_is_asked_says_nothing() -> None:
    times = count()

    def answer(_: Asked) -> Answer:
        busy = next(times) == 0
        return Answer("busy" if busy else {}, 503 if busy else 200, {"Retry-After": "7"})

    with answering(answer) as uri, pytest.raises(ServiceUnreachable) as caught:
        MlflowStore(uri, unique()).check()
    assert caught.value.retry_after is None


@pytest.mark.parametrize(
    ("status", "kind", "seconds"),
    [(503, ServiceUnreachable, 5), (500, ServiceUnreachable, None), (413, TrackingError, None)],
)
def test_an_upload_is_answered_with_it_directly(
    status: int, kind: type[Exception], seconds: float | None
) -> None:
    answer = Response()
    answer.status_code = status
    answer.headers["Retry-After"] = "5"
    meant = meaning_of_os_error("http://server", HTTPError("no", response=answer))
    assert type(meant) is kind
    assert getattr(meant, "retry_after", None) == seconds


def test_an_error_of_a_disk_asks_for_nothing() -> None:
    meant = meaning_of_os_error("sqlite:///x", OSError("full"))
    assert isinstance(meant, ServiceUnreachable)
    assert meant.retry_after is None


def test_a_server_that_has_gone_meanwhile_says_nothing() -> None:
    assert asked_to_wait("http://127.0.0.1:9") is None

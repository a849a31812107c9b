"""Ray's job API over HTTP: each way in which it does not answer has one clear message."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from carft_core.errors import RequestError
from sweeps.submit import client as jobs_api
from sweeps.submit.client import JobsApi, api_address
from tests.services.answering import Answer
from tests.sweeps.submit.fake_head import fake_head
from tracking.errors import ServiceUnreachable


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "where is the cluster"),
        ("ray://head:10001", r"ray://head:10001: jobs are .* did you mean http://head:8265\?"),
        ("head:6379", r"did you mean http://head:8265\?"),
        ("10.0.0.7:18265", r"did you mean http://10.0.0.7:18265\?"),
        ("head:port", r"did you mean http://head:8265\?"),
        ("auto", "such as http://HOST:8265"),
        ("http://head:6379", "6379 is the port of Ray's own protocol; .*: http://head:8265"),
        ("https://head:10001", "10001 is the port of Ray Client; .*: https://head:8265"),
        ("http://head:port", "must be of the form"),
        ("http://", r"did you mean"),
    ],
)
def test_what_is_no_address_of_a_dashboard(given: str | None, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        api_address(given, {})


def test_an_address_comes_from_the_option_or_from_rays_variable() -> None:
    environ = {"RAY_API_SERVER_ADDRESS": "https://head/ray/"}
    assert api_address("http://other:8265", environ) == "http://other:8265"
    assert api_address(None, environ) == "https://head/ray"


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (Answer("<html>", headers={"Content-Type": "text/html; x"}), RequestError, "text/html and"),
        (Answer("", headers={"Content-Type": "applicati"}), ServiceUnreachable, "did not end"),
        (Answer({"version": "4"}), RequestError, "is no dashboard of Ray"),
        (Answer([1]), RequestError, "is no dashboard of Ray"),
        (Answer("", 404), RequestError, r"has no job API \(404\)"),
        (Answer("", 401), RequestError, r"wants a token \(401\): set RAY_AUTH_MODE=token"),
        (Answer("", 403), RequestError, r"does not take this token \(403\)"),
        (Answer("", 413), RequestError, "does not take so large an archive"),
        (Answer("", 503), ServiceUnreachable, "answers 503: the head is away"),
        (Answer("", 500), ServiceUnreachable, "answers 500: no reason"),
        (Answer("Traceback\nKeyError: 1", 500), ServiceUnreachable, "answers 500: KeyError: 1"),
        (Answer("bad", 400), RequestError, "answers 400: bad"),
        (
            Answer("", 302, {"Location": "https://me:pw@login/sign-in?x=secret"}),
            RequestError,
            "sends on to https://login/sign-in: give",
        ),
    ],
)
def test_what_answers_and_is_no_job_api(answer: Answer, kind: type[Exception], said: str) -> None:
    with fake_head(otherwise=answer) as head, pytest.raises(kind, match=said) as wrong:
        JobsApi(head.address).ray_version()
    assert head.address in str(wrong.value)
    assert "secret" not in str(wrong.value)


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    said = rf"nobody answers at http://127\.0\.0\.1:{port} \(Connection refused\); is it the dashb"
    with pytest.raises(ServiceUnreachable, match=said):
        JobsApi(f"http://me:hidden-x@127.0.0.1:{port}").ray_version()


def test_what_listens_speaks_something_else_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_api, "ANSWER_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        api = JobsApi(address)
        with pytest.raises(ServiceUnreachable, match="gave no answer in time"):
            api._json("GET", "/api/version", seconds=0.1)
        server.accept()[0].close()

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.recv(1000)
                connection.sendall(b"\x00\x00\x12\x04\n\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ServiceUnreachable, match="nobody answers at"):
            api.ray_version()
        thread.join()


def test_a_certificate_that_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    def refuse(*_: object, **__: object) -> None:
        raise requests.exceptions.SSLError("CERTIFICATE_VERIFY_FAILED")

    api = JobsApi("https://head")
    monkeypatch.setattr(api._session, "request", refuse)
    with pytest.raises(RequestError, match="the certificate is not trusted"):
        api.ray_version()


def test_a_job_that_is_not_there_is_told_with_what_that_may_mean() -> None:
    gone = Answer("Job x does not exist", 404)
    said = r"no job x on .* submit again, the sweep goes on"
    with (
        fake_head(answers={"GET /api/jobs/x": gone}) as head,
        pytest.raises(RequestError, match=said),
    ):
        JobsApi(head.address).job("x")


def test_an_id_is_no_path() -> None:
    gone = Answer("Job ../x does not exist", 404)
    with (
        fake_head(otherwise=gone) as head,
        pytest.raises(RequestError, match=r"no job \.\./x on "),
    ):
        JobsApi(head.address).job("../x")
    assert head.asked[0][0] == "GET /api/jobs/..%2Fx"


def test_a_package_is_sent_only_where_it_is_missing() -> None:
    there = {"GET /api/packages/gcs/a.zip": Answer()}
    missing = {
        "GET /api/packages/gcs/b.zip": Answer("Package gcs://b.zip does not exist", 404),
        "PUT /api/packages/gcs/b.zip": Answer(),
    }
    with fake_head(answers=there | missing) as head:
        api = JobsApi(head.address)
        assert not api.upload("gcs://a.zip", b"a")
        assert api.upload("gcs://b.zip", b"b")
    assert [(what, body) for what, _, body in head.asked if "PUT" in what] == [
        ("PUT /api/packages/gcs/b.zip", b"b")
    ]


def test_the_token_is_that_of_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ok = Answer({"ray_version": "2.60.0"})
    file = tmp_path / "token"
    file.write_text("of-a-file\n")
    monkeypatch.setenv("HOME", str(tmp_path))

    def headers(user: str = "") -> dict[str, str]:
        with fake_head(otherwise=ok) as head:
            JobsApi(head.address.replace("//", f"//{user}")).ray_version()
        return head.asked[0][1]

    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-the-variable")
    assert "Authorization" not in headers()
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert headers()["Authorization"] == "Bearer of-the-variable"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    assert headers()["Authorization"] == "Bearer of-a-file"
    behind = headers("me:pw@")
    assert behind["Authorization"].startswith("Basic ")
    assert behind["X-Ray-Authorization"] == "Bearer of-a-file"
    file.write_text("\n")
    with pytest.raises(RequestError, match=f"RAY_AUTH_MODE is token, but {file} is empty"):
        headers()
    file.write_bytes(b"\xff")
    with pytest.raises(RequestError, match="cannot be read: it is no text"):
        headers()
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    with pytest.raises(RequestError, match=r"\.ray/auth_token cannot be read: No such file"):
        headers()

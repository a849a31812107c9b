"""The webhook: what is posted, that nothing holds a sweep up, and that its URL stays a secret."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.cli import main
from carft_sweep.sweeps.engines.base import Failure, Handler, Job
from carft_sweep.sweeps.engines.local import InProcessEngine
from carft_sweep.sweeps.scheduler import webhook as module
from carft_sweep.sweeps.scheduler.webhook import Webhook, host_of, webhook_url
from tests.sweeps.conftest import ToySweep

SECRET = "T0P-SECRET"
Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Receiver:
    """A real HTTP server that keeps what it is told; `answers` misbehave first, one a request."""

    answers: list[Answer] = field(default_factory=list)
    received: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""


def status(code: int, **headers: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()

    return answer


def silence(released: threading.Event) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        released.wait()
        request.close_connection = True

    return answer


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """Set at the end, so that a hanging answer lets its thread go."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch, released: threading.Event) -> Iterator[Receiver]:
    monkeypatch.setattr(module, "_PAUSES", (0.01, 0.01))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("CARFT_WEBHOOK", raising=False)
    kept = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            kept.received.append(json.loads(body))
            kept.headers.append(dict(self.headers))
            (kept.answers.pop(0) if kept.answers else status(200))(self)

        def log_message(self, *_: Any) -> None:
            """Tell nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        kept.url = f"http://127.0.0.1:{server.server_port}/hooks/{SECRET}"
        yield kept
        released.set()
        server.shutdown()
        thread.join()


def test_a_message_is_json_with_a_text_that_slack_shows(receiver: Receiver) -> None:
    hook = Webhook(receiver.url)
    hook.send("finished", "toy", "toy is done", state="done", verdict="better", best=math.nan)
    hook.close()
    (message,) = receiver.received
    assert message.pop("time") == pytest.approx(time.time(), abs=60)
    assert message == {
        "text": "toy is done",
        "event": "finished",
        "sweep": "toy",
        "state": "done",
        "verdict": "better",
        "best": None,
    }
    assert receiver.headers[0]["Content-Type"] == "application/json"


def test_messages_come_in_order_and_close_waits_for_all(receiver: Receiver) -> None:
    hook = Webhook(receiver.url)
    for number in range(5):
        hook.send("run_failed", "toy", f"run {number} failed", folder=Path("runs"))
    hook.close()
    assert [m["text"] for m in receiver.received] == [f"run {n} failed" for n in range(5)]
    assert receiver.received[0]["folder"] == "runs"


def test_a_long_text_is_cut(receiver: Receiver) -> None:
    hook = Webhook(receiver.url)
    hook.send("breaker", "toy", "x" * 100_000)
    hook.close()
    assert 1000 < len(receiver.received[0]["text"]) <= 4000


def test_an_answer_500_is_tried_twice_more(receiver: Receiver) -> None:
    told: list[str] = []
    receiver.answers = [status(500), status(503)]
    hook = Webhook(receiver.url, told.append)
    hook.send("finished", "toy", "done")
    hook.close()
    assert len(receiver.received) == 3
    assert told == []


def test_what_is_wrong_is_told_once_and_the_next_message_is_tried_all_the_same(
    receiver: Receiver,
) -> None:
    told: list[str] = []
    receiver.answers = [status(500)] * 6
    hook = Webhook(receiver.url, told.append)
    for _ in range(3):
        hook.send("run_failed", "toy", "failed")
    hook.close()
    assert len(receiver.received) == 7
    assert told == ["the webhook at 127.0.0.1 answered 500; the sweep continues"]


def test_a_refusal_is_not_repeated(receiver: Receiver) -> None:
    told: list[str] = []
    receiver.answers = [status(404)]
    hook = Webhook(receiver.url, told.append)
    hook.send("finished", "toy", "done")
    hook.close()
    assert len(receiver.received) == 1
    assert "answered 404" in told[0]


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("target", ["ftp://127.0.0.1/x", "file:///etc/passwd", "/elsewhere"])
def test_no_redirect_is_followed(receiver: Receiver, code: int, target: str) -> None:
    told: list[str] = []
    receiver.answers = [status(code, Location=target)]
    hook = Webhook(receiver.url, told.append)
    hook.send("finished", "toy", "done")
    hook.close()
    assert len(receiver.received) == 1
    assert f"answered {code}" in told[0]


def test_a_server_that_hangs_holds_up_neither_the_sweep_nor_for_long_its_end(
    receiver: Receiver, released: threading.Event
) -> None:
    told: list[str] = []
    receiver.answers = [silence(released)]
    hook = Webhook(receiver.url, told.append)
    for _ in range(1000):
        hook.send("run_failed", "toy", "failed")
    hook.close(0.2)
    assert len(receiver.received) <= 1
    assert told == [
        "the webhook at 127.0.0.1 took too long; the last messages of the sweep are not "
        "delivered; the sweep continues"
    ]


def test_an_answer_that_does_not_come_in_time_is_an_answer_that_does_not_come(
    receiver: Receiver, released: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.05)
    told: list[str] = []
    receiver.answers = [silence(released)] * 3
    hook = Webhook(receiver.url, told.append)
    hook.send("finished", "toy", "done")
    hook.close()
    assert len(receiver.received) == 3
    assert "gave no answer within 0.05 s" in told[0]


@pytest.mark.parametrize(
    "place", ["http://127.0.0.1:1/hooks/", "http://no-such-host.invalid/hooks/"]
)
def test_a_server_that_is_absent_is_told_by_its_host_alone(
    receiver: Receiver, place: str, capfd: pytest.CaptureFixture[str]
) -> None:
    del receiver  # for short pauses
    told: list[str] = []
    hook = Webhook(place + SECRET, told.append)
    hook.send("finished", "toy", "done")
    hook.close()
    assert len(told) == 1
    assert str(host_of(place)) in told[0]
    assert SECRET not in told[0]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "url",
    [
        f"file:///{SECRET}",
        f"ftp://host/{SECRET}",
        f"host/{SECRET}",
        f"http:///{SECRET}",
        f"http://host:port/{SECRET}",
        f"http://host:99999/{SECRET}",
        f"http://host/a b/{SECRET}",
        f"http://host/\n{SECRET}",
        f"https://user:{SECRET}@host/x",
        f"http://[{SECRET}/",
    ],
)
def test_a_url_that_nothing_can_be_posted_to_is_refused_without_showing_it(url: str) -> None:
    for given, environ in (("env:HOOK", {"HOOK": url}), (None, {"CARFT_WEBHOOK": url})):
        with pytest.raises(RequestError) as refused:
            webhook_url(given, environ)
        assert SECRET not in str(refused.value)
        assert "a webhook's URL must" in str(refused.value)
    told: list[str] = []
    hook = Webhook(url, told.append)  # and where nobody has looked at it, it is still told safely
    assert SECRET not in repr(hook)
    assert SECRET not in host_of(url)


def test_the_environment_goes_before_the_file() -> None:
    assert webhook_url(None, {}) is None
    environ = {"CARFT_WEBHOOK": "https://env/x", "HOOK": "https://named/x"}
    assert webhook_url("env:HOOK", environ) == "https://env/x"
    assert webhook_url("env:HOOK", {"HOOK": "https://named/x"}) == "https://named/x"
    with pytest.raises(RequestError, match="the environment variable HOOK is not set"):
        webhook_url("env:HOOK", {})


def test_without_a_url_nothing_happens() -> None:
    hook = Webhook(None)
    hook.send("finished", "toy", "done")
    hook.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("carft-webhook")]


def test_a_sweep_tells_of_failures_of_the_breaker_and_of_its_end(
    receiver: Receiver, toy_cli: ToySweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARFT_WEBHOOK", receiver.url)
    act = [{"do": "raise", "error": "request"}]
    toy_cli.plan({"0.1/0": act, "0.1/1": act})
    command = ["run", str(toy_cli.file()), "--in-process", "--quiet"]
    assert main([*command, "--set", "breaker=2"]) == 1
    events = [message["event"] for message in receiver.received]
    assert events == ["run_failed", "run_failed", "breaker", "failed"]
    assert {message["sweep"] for message in receiver.received} == {"toy"}
    assert "data.root: there is no folder x" in receiver.received[0]["text"]
    receiver.received.clear()
    assert main(command) == 0
    (message,) = receiver.received
    assert (message["event"], message["state"]) == ("finished", "done")
    assert message["verdict"] in message["text"]


class FailingTogether(InProcessEngine):
    """Begins three runs at once, and all of them fail."""

    def run(self, handler: Handler) -> None:
        jobs = [job for _ in range(3) if isinstance(job := handler.next_job(), Job)]
        for job in jobs:
            handler.started(job, "w")
        for job in jobs:
            handler.failed(job, Failure("data", "there is no folder x"))


def test_a_break_is_told_once_though_runs_that_were_under_way_fail_too(
    receiver: Receiver, toy_cli: ToySweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARFT_WEBHOOK", receiver.url)
    monkeypatch.setattr("carft_sweep.sweeps.api.make_engine", lambda *_, **__: FailingTogether())
    assert main(["run", str(toy_cli.file(breaker=1)), "--in-process", "--quiet"]) == 1
    events = [message["event"] for message in receiver.received]
    assert events == ["run_failed", "breaker", "run_failed", "run_failed", "failed"]


def test_the_url_is_in_nothing_that_a_run_writes_or_prints(
    receiver: Receiver,
    toy_cli: ToySweep,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    receiver.answers = [status(500)] * 3
    monkeypatch.setenv("MY_HOOK", receiver.url)
    assert main(["run", str(toy_cli.file(webhook="env:MY_HOOK")), "--in-process"]) == 0
    assert len(receiver.received) == 3
    told = capfd.readouterr()
    assert "the webhook at 127.0.0.1 answered 500; the sweep continues" in told.err
    assert SECRET not in told.out + told.err
    written = [path for path in toy_cli.home.path.rglob("*") if path.is_file()]
    assert written
    assert [path for path in written if SECRET.encode() in path.read_bytes()] == []


def test_webhook_no_tells_nobody(
    receiver: Receiver, toy_cli: ToySweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARFT_WEBHOOK", receiver.url)
    assert main(["run", str(toy_cli.file()), "--in-process", "--webhook", "no"]) == 0
    assert receiver.received == []


def test_a_webhook_that_cannot_be_is_refused_before_anything_runs(
    toy_cli: ToySweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CARFT_WEBHOOK", f"ftp://host/{SECRET}")
    assert main(["run", str(toy_cli.file()), "--in-process"]) == 2
    told = capsys.readouterr().err
    assert (
        told == "carft-sweep: CARFT_WEBHOOK: a webhook's URL must begin with https:// or http://\n"
    )
    assert not toy_cli.home.path.exists()

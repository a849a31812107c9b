"""Tells a URL what became of a sweep, as JSON that Slack and its like show, and never holds it up.

A webhook's URL is a secret: whoever has it can post. It stands in no output, log or exception;
what is said of it names its host alone.
"""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping
from typing import IO, Any, Literal
from urllib.parse import urlsplit

Event = Literal["finished", "failed", "run_failed", "breaker", "interrupted"]
WEBHOOK_VARIABLE = "CARFT_WEBHOOK"
TIMEOUT = 10.0
"""Seconds that a request may wait for its answer."""
FLUSH = 15.0
"""Seconds that the end of a sweep waits for what is still to be told."""
_PAUSES = (1.0, 3.0)
"""Seconds before the first and before the second retry."""
_MOST = 100
_LONGEST = 3000
_AGAIN = frozenset({408, 425, 429})


class Webhook:
    """Posts messages from a thread; without a URL it does nothing.

    `told` is called once, from that thread, with what is wrong when a message cannot be delivered.
    """

    def __init__(self, url: str | None, told: Callable[[str], None] | None = None) -> None:
        self._url = url
        self._told = told
        self._waiting: deque[bytes] = deque(maxlen=_MOST)  # a hanging host loses the oldest
        self._changed = threading.Condition()
        self._busy = False
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def send(self, event: Event, sweep: str, text: str, **facts: Any) -> None:
        """Tell of an event, soon. Never raises and never waits."""
        if self._url is None or self._closed.is_set():
            return
        body = _body({"text": text[:_LONGEST], "event": event, "sweep": sweep, **facts})
        with self._changed:
            self._waiting.append(body)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._deliver, name="carft-webhook", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def close(self, timeout: float = FLUSH) -> None:
        """Wait until everything is told, at most `timeout` seconds."""
        with self._changed:
            done = self._changed.wait_for(lambda: not (self._waiting or self._busy), timeout)
            self._closed.set()
            self._changed.notify_all()
        if not done:
            self._complain("took too long; what the sweep still had to tell is not delivered")

    def _deliver(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting) or self._closed.is_set())
                if self._closed.is_set():
                    return
                body, self._busy = self._waiting.popleft(), True
            try:
                self._post(body)
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _post(self, body: bytes) -> None:
        for pause in (*_PAUSES, None):
            problem, may_pass = _posted(self._url or "", body)
            if problem is None:
                return
            if not may_pass or pause is None or self._closed.wait(pause):
                self._complain(problem)
                return

    def _complain(self, problem: str) -> None:
        with self._changed:
            told, self._told = self._told, None
        if told is not None:
            told(f"the webhook at {host_of(self._url or '')} {problem}; the sweep goes on")


def webhook_url(given: str | None, environ: Mapping[str, str] | None = None) -> str | None:
    """The URL that a sweep tells: CARFT_WEBHOOK, else what its file gives, `env:NAME` looked up.

    Raises RequestError, without the URL in it, for one that nothing can be posted to.
    """
    from carft_core.errors import RequestError

    chosen = os.environ if environ is None else environ
    source, url = WEBHOOK_VARIABLE, chosen.get(WEBHOOK_VARIABLE, "").strip() or None
    if url is None and given is not None:
        source, url = "webhook", given
        if given.startswith("env:"):
            source = given.removeprefix("env:")
            url = chosen.get(source, "").strip()
            if not url:
                raise RequestError(f"webhook: the environment variable {source} is not set")
    problem = None if url is None else _problem(url)
    if problem:
        raise RequestError(f"{source}: a webhook's URL {problem}")
    return url


def host_of(url: str) -> str:
    """All that may be shown of a webhook's URL."""
    try:
        return urlsplit(url).hostname or "(no host)"
    except ValueError:
        return "(no host)"


def _problem(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        return "must be of the form https://host/path"
    if parts.scheme not in ("http", "https"):
        return "must begin with https:// or http://"
    if not parts.hostname or not port_is_fine or any(c.isspace() or c < " " for c in url):
        return "must be of the form https://host/path"
    if parts.username is not None or parts.password is not None:
        return "must not carry a user and a password"
    return None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would become a GET, or take the secret to another place."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> None:
        """Follow nothing."""


def _posted(url: str, body: bytes) -> tuple[str | None, bool]:
    """What went wrong, and whether it may pass by itself. No exception's text is shown: some of
    them quote the URL.
    """
    request = urllib.request.Request(
        url,
        data=body,
        headers={"Content-Type": "application/json", "User-Agent": "carft-sweep"},
        method="POST",
    )
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT):
            return None, False
    except urllib.error.HTTPError as error:
        error.close()
        if 300 <= error.code < 400:
            return f"answered {error.code}: it has moved, and redirects are not followed", False
        return f"answered {error.code}", error.code >= 500 or error.code in _AGAIN
    except urllib.error.URLError as error:
        return _away(error.reason), True
    except (OSError, http.client.HTTPException, ValueError) as error:
        return _away(error), True


def _away(reason: object) -> str:
    if isinstance(reason, TimeoutError):
        return f"gave no answer within {TIMEOUT:g} s"
    words = reason.strerror if isinstance(reason, OSError) and reason.strerror else None
    return f"cannot be reached ({words or type(reason).__name__})"


def _body(message: Mapping[str, Any]) -> bytes:
    """Standard JSON: what is not finite becomes null, what is no plain data its text."""
    plain = json.loads(json.dumps(message, default=str), parse_constant=lambda _: None)
    return json.dumps({**plain, "time": time.time()}, allow_nan=False).encode()

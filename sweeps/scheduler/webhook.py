"""Notifications of a sweep to a URL, as JSON that Slack and its like show.

A webhook's URL is a secret: whoever has it can post. No output, log or exception shows more of it
than its host.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Literal
from urllib.parse import urlsplit

import requests

from carft_sweep.sweeps.spec.settings import WEBHOOK_VARIABLE

logger = logging.getLogger(__name__)

Event = Literal["finished", "failed", "run_failed", "breaker", "interrupted"]
TIMEOUT = 10.0
"""Seconds that a request may wait for its answer."""
FLUSH = 15.0
"""Seconds that the end of a sweep waits for messages that are not sent yet."""
_PAUSES = (1.0, 3.0)
"""Seconds before the first and before the second retry."""
_MAX_TEXT = 3000
_TEMPORARY = frozenset({408, 425, 429})


class Webhook:
    """Posts messages from a thread; without a URL it does nothing.

    `note` is called once, from that thread, when a message cannot be delivered.
    """

    def __init__(self, url: str | None, note: Callable[[str], None] | None = None) -> None:
        self._url = url
        self._note = note
        self._sender = ThreadPoolExecutor(1, "carft-webhook")  # one: messages stay in order
        self._last: Future[None] | None = None
        self._closed = threading.Event()

    def send(self, event: Event, sweep: str, text: str, **facts: Any) -> None:
        """Send an event soon. Never raises and never waits."""
        if self._url is None or self._closed.is_set():
            return
        message = {"text": text[:_MAX_TEXT], "event": event, "sweep": sweep, **facts}
        self._last = self._sender.submit(self._post, self._url, _body(message))

    def close(self, timeout: float = FLUSH) -> None:
        """Wait until everything is sent, at most `timeout` seconds."""
        unsent = self._last is not None and wait([self._last], timeout).not_done
        self._closed.set()
        self._sender.shutdown(wait=False, cancel_futures=True)
        if unsent:
            self._report("took too long; the last messages of the sweep are not delivered")

    def _post(self, url: str, body: bytes) -> None:
        # Not urllib3's Retry: it logs the URL with each attempt.
        for pause in (*_PAUSES, None):
            problem, is_temporary = _attempt(url, body)
            if problem is None:
                return
            logger.info("the webhook at %s %s", host_of(url), problem)
            if not is_temporary or pause is None or self._closed.wait(pause):
                self._report(problem)
                return

    def _report(self, problem: str) -> None:
        note, self._note = self._note, None
        if note is not None:
            note(f"the webhook at {host_of(self._url or '')} {problem}; the sweep continues")


def webhook_url(setting: str | None, environ: Mapping[str, str] | None = None) -> str | None:
    """Return the URL to notify: CARFT_WEBHOOK, else that of the sweep file's `env:NAME`.

    Raises RequestError, without the URL in it, for one that nothing can be posted to.
    """
    from carft_sweep.carft_core.errors import RequestError

    environ = os.environ if environ is None else environ
    source = WEBHOOK_VARIABLE
    url = environ.get(source, "").strip()
    if not url and setting is not None:
        source = setting.removeprefix("env:")
        url = environ.get(source, "").strip()
        if not url:
            raise RequestError(f"webhook: the environment variable {source} is not set")
    if url and (problem := _problem(url)):
        raise RequestError(f"{source}: a webhook's URL {problem}")
    return url or None


def host_of(url: str) -> str:
    """Return all that may be shown of a webhook's URL."""
    try:
        return urlsplit(url).hostname or "(no host)"
    except ValueError:
        return "(no host)"


def _problem(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        is_whole = bool(parts.hostname) and parts.port != 0 and url.isprintable()
    except ValueError:
        return "must be of the form https://host/path"
    if parts.scheme not in ("http", "https"):
        return "must begin with https:// or http://"
    if not is_whole or any(character.isspace() for character in url):
        return "must be of the form https://host/path"
    if parts.username is not None or parts.password is not None:
        return "must not carry a user and a password"
    return None


def _attempt(url: str, body: bytes) -> tuple[str | None, bool]:
    """Post once. Return what went wrong, in words of our own, and whether it is temporary."""
    try:
        with requests.post(
            url,
            data=body,
            headers={"Content-Type": "application/json", "User-Agent": "carft-sweep"},
            timeout=TIMEOUT,
            # A redirected POST would become a GET, or take the secret to another place.
            allow_redirects=False,
            stream=True,
        ) as answer:
            code = answer.status_code
    except requests.Timeout:
        return f"gave no answer within {TIMEOUT:g} s", True
    except (requests.RequestException, ValueError, OSError) as error:
        # Not its text, which may quote the URL.
        return f"cannot be reached ({type(error).__name__})", True
    if code < 300:
        return None, False
    if code < 400:
        return f"answered {code}: it has moved, and redirects are not followed", False
    return f"answered {code}", code >= 500 or code in _TEMPORARY


def _body(message: Mapping[str, Any]) -> bytes:
    """Return standard JSON: what is not finite becomes null, what is no plain data its text."""
    plain = json.loads(json.dumps(message, default=str), parse_constant=lambda _: None)
    return json.dumps({**plain, "time": time.time()}, allow_nan=False).encode()

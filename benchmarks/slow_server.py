"""A server in front of another one: as slow and as busy as it is told to be, counting what passes.

    python benchmarks/slow_server.py http://127.0.0.1:5000

Prints its own address. `POST /_load` with `{"delay": 0.2, "busy_every": 20, "retry_after": 2}`
makes every answer wait, and one of so many requests be refused with 429 and `Retry-After`; `"away":
true` breaks every connection off, `"rejects": TEXT` answers 400 to every request that has the text;
`GET /_load` tells what has passed since it was asked before.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

CONTROL = "/_load"
REJECTED = b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "this record is rejected"}'


class Counts:
    """What has passed: requests, those that were refused, batches of metrics, and their points."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.told = self._fresh()

    def add(self, **counts: int) -> None:
        """Count."""
        with self._lock:
            for name, count in counts.items():
                self.told[name] += count
            points = counts.get("points", 0)
            self.told["most_points"] = max(self.told["most_points"], points)

    def take(self) -> dict[str, int]:
        """The counts, which begin again at 0."""
        with self._lock:
            told, self.told = self.told, self._fresh()
            return told

    @staticmethod
    def _fresh() -> dict[str, int]:
        return {"requests": 0, "refused": 0, "batches": 0, "points": 0, "most_points": 0}


class Proxy(ThreadingHTTPServer):
    """In front of `address`."""

    daemon_threads = True

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self.upstream = (str(parts.hostname), int(parts.port or 80))
        self.delay, self.busy_every, self.retry_after = 0.0, 0, 1
        self.away, self.rejects = False, ""
        self.counts = Counts()
        self.passed = 0
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    """One client's connection, with one of its own to the server behind."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Proxy
    _connection: http.client.HTTPConnection | None = None

    def log_message(self, *_: Any) -> None:
        """Not for each request."""

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == CONTROL:
            self._control(body)
            return
        proxy = self.server
        proxy.passed += 1
        if proxy.away:
            proxy.counts.add(requests=1, refused=1)
            self.close_connection = True
            return
        time.sleep(proxy.delay)
        if proxy.rejects and proxy.rejects.encode() in body:
            proxy.counts.add(requests=1, refused=1)
            self._answer(400, REJECTED, {"Content-Type": "application/json"})
            return
        if proxy.busy_every and proxy.passed % proxy.busy_every == 0:
            proxy.counts.add(requests=1, refused=1)
            self._answer(429, b"busy", {"Retry-After": str(proxy.retry_after)})
            return
        points = 0
        if self.path.endswith("/runs/log-batch"):
            points = len(json.loads(body).get("metrics", []))
        status, answer, kind = self._ask(body)
        proxy.counts.add(requests=1, batches=int(points > 0), points=points)
        self._answer(status, answer, {"Content-Type": kind})

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on  # noqa: N815 - of the base class

    def _control(self, body: bytes) -> None:
        if body:
            for name, value in json.loads(body).items():
                setattr(self.server, name, value)
        self._answer(200, json.dumps(self.server.counts.take()).encode(), {})

    def _ask(self, body: bytes) -> tuple[int, bytes, str]:
        headers = {name: value for name, value in self.headers.items() if name != "Connection"}
        for attempt in range(2):
            if self._connection is None:
                self._connection = http.client.HTTPConnection(*self.server.upstream, timeout=120)
            try:
                self._connection.request(self.command, self.path, body or None, headers)
                answer = self._connection.getresponse()
                return answer.status, answer.read(), answer.headers.get("Content-Type", "")
            except (http.client.HTTPException, OSError):
                # The server has closed a connection that was idle for long; once more, afresh.
                self._connection.close()
                self._connection = None
                if attempt:
                    raise
        raise AssertionError

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    made = Proxy(sys.argv[1])
    sys.stdout.write(f"http://127.0.0.1:{made.server_port}\n")
    sys.stdout.flush()
    made.serve_forever()

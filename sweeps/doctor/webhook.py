"""The webhook: whether its host can be reached; nothing is sent."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

from sweeps.doctor.base import Asked, Check, Finding, ok, warning
from sweeps.webhook import host_of, webhook_url

_SECONDS = 5.0
_PORTS = {"http": 80, "https": 443}


def _host(_: Asked) -> Iterator[Finding]:
    url = webhook_url(None)
    if url is None:
        yield ok("none is set in CARFT_WEBHOOK")
        return
    parts = urlsplit(url)
    port = parts.port or _PORTS[parts.scheme]
    try:
        socket.create_connection((parts.hostname or "", port), _SECONDS).close()
    except OSError as error:
        # Only a warning: sweeps go on without it, and behind a proxy no host is reached straight.
        yield warning(f"{host_of(url)} cannot be reached: {error.strerror or error}")
        return
    yield ok(f"{host_of(url)} can be reached; nothing was sent")


CHECKS = (
    Check(
        "webhook.host",
        "whether the host in CARFT_WEBHOOK takes connections; nothing is sent",
        "look at the address, and at the network; sweeps go on without it",
        _host,
    ),
)

"""The address of Ray's job API: what it may look like, and what is said of those that are not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from carft_core.errors import RequestError
from tracking.where import without_password

VARIABLE = "RAY_API_SERVER_ADDRESS"
PORT = 8265
_OTHERS = {6379: "the port of Ray's own protocol", 10001: "the port of Ray Client"}
"""Ports of a head that are known and serve something else."""
_EXAMPLE = f"http://HOST:{PORT}"


def api_address(given: str | None, environ: Mapping[str, str] | None = None) -> str:
    """`given`, else RAY_API_SERVER_ADDRESS, without a slash at its end.

    Raises RequestError for what is no http(s) address, or one of another service of Ray's.
    """
    address = given or (os.environ if environ is None else environ).get(VARIABLE, "")
    if not address:
        raise RequestError(f"where is the cluster? Give --address {_EXAMPLE}, or set {VARIABLE}")
    shown = without_password(address)
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise RequestError(f"{shown}: must be of the form {_EXAMPLE}") from None
    if parts.scheme not in ("http", "https") or not host:
        hint = f"http://{host or address.partition(':')[0]}:{PORT}"
        known = address not in ("auto", "local")
        raise RequestError(
            f"{shown}: jobs are taken by Ray's dashboard, at an http(s) address"
            + (f"; did you mean {hint}?" if known else f" such as {_EXAMPLE}")
        )
    if port in _OTHERS:
        raise RequestError(
            f"{shown}: {port} is {_OTHERS[port]}; jobs are taken by its dashboard: "
            f"{parts.scheme}://{host}:{PORT}"
        )
    return address.rstrip("/")

"""Ray's token authentication, and a proxy's user and password in the address."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from requests import PreparedRequest
from requests.auth import AuthBase, HTTPBasicAuth

from carft_core.errors import RequestError

DEFAULT = "~/.ray/auth_token"
HOW = f"set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (or RAY_AUTH_TOKEN, or {DEFAULT})"
_PROXIED = "X-Ray-Authorization"


class Authentication(AuthBase):
    """Adds the token. Where a proxy takes the usual header, Ray reads another one."""

    def __init__(self, address: str, token: str | None) -> None:
        parts = urlsplit(address)
        self._token = token
        self._basic = (
            HTTPBasicAuth(unquote(parts.username), unquote(parts.password or ""))
            if parts.username
            else None
        )

    def __call__(self, r: PreparedRequest) -> PreparedRequest:
        """See AuthBase."""
        if self._basic is not None:
            self._basic(r)
        if self._token is not None:
            header = "Authorization" if self._basic is None else _PROXIED
            r.headers[header] = f"Bearer {self._token}"
        return r


def token(environ: Mapping[str, str] | None = None) -> str | None:
    """The token that Ray itself would use, in its order; None where RAY_AUTH_MODE is not `token`.

    Raises RequestError where there is none, or its file cannot be read.
    """
    chosen = os.environ if environ is None else environ
    if chosen.get("RAY_AUTH_MODE", "").lower() != "token":
        return None
    if given := chosen.get("RAY_AUTH_TOKEN", "").strip():
        return given
    path = Path(chosen.get("RAY_AUTH_TOKEN_PATH") or DEFAULT).expanduser()
    try:
        found = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise RequestError(f"RAY_AUTH_MODE is token, but {path} cannot be read: {reason}") from None
    if not found:
        raise RequestError(f"RAY_AUTH_MODE is token, but {path} is empty")
    return found

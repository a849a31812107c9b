"""Where a webhook is: the forms of an address, and the part of it that may be shown."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

VARIABLE = "CARFT_WEBHOOK"
"""The environment's variable that serves too."""
HIDDEN = "***"
_VARIABLE = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*")
_ALLOWED = "must be an http:// or https:// address, or env:NAME for a variable that holds one"


def address(given: object) -> str:
    """The address as given. Raises ValueError, which shows none of it: it is a secret."""
    if not isinstance(given, str):
        raise ValueError(_ALLOWED)
    if given.startswith("env:"):
        if not _VARIABLE.fullmatch(given):
            raise ValueError(f"{_ALLOWED}; a variable's name has letters, digits and '_'")
        return given
    if not _is_url(given):
        raise ValueError(_ALLOWED)
    return given


def masked(given: str) -> str:
    """What may be shown and kept of an address: `env:NAME` whole, of a URL only the host."""
    if given.startswith("env:"):
        return given
    parts = urlsplit(given)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{host}{port}/{HIDDEN}"


def is_masked(given: str) -> bool:
    """Whether only the mask is left of an address, so that nothing can be sent there."""
    return given.endswith(f"/{HIDDEN}")


def _is_url(given: str) -> bool:
    if not given.isprintable() or any(character.isspace() for character in given):
        return False
    try:
        parts = urlsplit(given)
        # The port is read only when it is asked for.
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False

"""Ray's token authentication: which Ray has it, and the token of a Ray of our own.

`python -m carft_sweep.sweeps.engines.ray_tokens` ends with 2 and the reason where the
installed Ray lacks it: scripts that start Ray call it first.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.requirements import installed_version

OLDEST = (2, 59)
"""The first Ray whose local clusters ask for a token; before 2.52 none can."""
_MODE, _TOKEN, _PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


def check_version(version: str, place: str) -> None:
    """Raise RequestError where `place` has a Ray that is older than `OLDEST`."""
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST:
        raise RequestError(
            f"{place} has Ray {version}; carft-sweep needs {OLDEST[0]}.{OLDEST[1]} or newer: an "
            "older one starts without a token or ignores RAY_AUTH_MODE, and then whoever reaches "
            "its ports runs code as its user"
        )


def require_ray() -> None:
    """Raise RequestError where this machine has no Ray, or a version older than `OLDEST`."""
    version = installed_version("ray")
    if version is None:
        raise RequestError(
            'Ray is not installed here: pip install "carft-sweep[ray]" brings it; engine local '
            "does without"
        )
    check_version(version, "this machine")


@contextmanager
def own_token() -> Iterator[None]:
    """Give the Ray that is started within the context a token that only its processes know. A mode,
    a token or a token's path set by the user is used instead. Without these Ray would write a token
    into the user's home folder, which others may read by the umask's permissions."""
    mode = os.environ.get(_MODE) or "token"
    changes = {_MODE: mode}
    if mode.lower() == "token" and not (os.environ.get(_TOKEN) or os.environ.get(_PATH)):
        changes[_TOKEN] = secrets.token_hex(32)
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    _read_anew()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _read_anew()


def _read_anew() -> None:
    """Make Ray read its authentication mode and token again, which it reads once in a process."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined] # compiled

    Config.initialize("")  # first: a thread that still ends would miss a token that the mode wants
    AuthenticationTokenLoader.instance().reset_cache()


if __name__ == "__main__":
    try:
        require_ray()
    except RequestError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)

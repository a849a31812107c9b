"""Under which names MLflow's server answers, and whose pages may ask it.

A server that answers to any name can be asked by any page that a browser shows: its author lets
the name of their site point to the server's address (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterator, Sequence

_LOCAL = ("localhost", "127.0.0.1", "[::1]")
_ALL = ("0.0.0.0", "::", "")
_NAME = re.compile(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_-]+)*(:\d+)?")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name, or an empty text, which stands for every address


def check_name(name: str) -> None:
    """Raise ValueError unless it is a host's name or address, with or without a port."""
    if name == "*":
        raise ValueError(
            "'*' would let any page that a browser shows ask the server: name the hosts"
        )
    if not _NAME.fullmatch(name) and not re.fullmatch(r"\[[0-9a-fA-F:.]+\](:\d+)?", name):
        raise ValueError(
            f"{name!r} is no host: lab, mlflow.lab.example, *.lab.example, 10.0.0.7:5000 or "
            "[fd00::7] are"
        )


def allowed_hosts(host: str, names: Sequence[str]) -> list[str]:
    """What `--allowed-hosts` of `mlflow server` is given: this machine's own names, `host`, and
    `names`, those without a port with any.
    """
    own = [socket.gethostname(), socket.getfqdn()] if host in _ALL else [_bracketed(host)]
    hosts = dict.fromkeys((*_LOCAL, *own, *names))
    return [pattern for name in hosts for pattern in _patterns(name)]


def allowed_origins(hosts: Sequence[str]) -> list[str]:
    """What `--cors-allowed-origins` is given for them: else the server's own pages could not ask
    it anything, except on localhost.
    """
    return [f"{scheme}://{host}" for host in hosts for scheme in ("http", "https")]


def _patterns(name: str) -> Iterator[str]:
    """MLflow compares by fnmatch where there is a star, in which brackets are a set of letters."""
    yield name
    if not re.search(r"[^:]:\d+$|\]:\d+$", name):
        yield f"{name.replace('[', '[[]', 1)}:*"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host

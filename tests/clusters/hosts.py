"""Several hosts on one machine: network namespaces with a name and an address each."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

FILES = Path("/etc/netns")
"""Files that `ip netns exec` shows in the place of those in /etc."""
LONGEST = 15
"""Characters of the name of a network interface."""


@dataclass(frozen=True)
class Host:
    """Where a command runs as if on a machine of its own, but for its files."""

    name: str
    address: str
    inside: tuple[str, ...] = ()
    """The words before a command; none where it runs on this machine itself."""

    def command(self, *words: str) -> list[str]:
        """What to start here for `words` to run there."""
        return [*self.inside, *words]

    def call(self, *words: str) -> str:
        """What the command prints there; raises CalledProcessError where it fails."""
        done = subprocess.run(self.command(*words), capture_output=True, text=True, timeout=60)
        done.check_returncode()
        return done.stdout


@contextmanager
def hosts(names: Sequence[str]) -> Iterator[list[Host]]:
    """Hosts that reach one another, the first being this machine itself.

    Where no namespaces can be made, all of them are this machine, at 127.0.0.1. At the end every
    process in a namespace is killed.
    """
    own = os.getpid() % 10_000
    net = f"10.{200 + own % 50}.{own // 50}"
    bridge, spaces = f"t{own}br", {name: f"t{own}{name}" for name in names[1:]}
    assert all(len(space) + 1 <= LONGEST for space in spaces.values())
    try:
        if not _bridge(bridge, f"{net}.1/24"):
            yield [Host(name, "127.0.0.1") for name in names]
            return
        made = [Host(names[0], f"{net}.1")]
        book = "".join(f"{net}.{n} {name}\n" for n, name in enumerate(names, start=1))
        for number, (name, space) in enumerate(spaces.items(), start=2):
            _namespace(space, bridge, f"{net}.{number}/24", gateway=f"{net}.1")
            _names(space, f"127.0.0.1 localhost\n{book}")
            named = ("unshare", "--uts", "sh", "-c", f'hostname {name}; exec "$0" "$@"')
            inside = ("ip", "netns", "exec", space, *named)
            made.append(Host(name, f"{net}.{number}", inside))
        yield made
    finally:
        for space in spaces.values():
            _remove(space)
        subprocess.run(["ip", "link", "del", bridge], capture_output=True)


def _bridge(name: str, address: str) -> bool:
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("unshare") is None:
        return False
    steps = (
        ("ip", "netns", "add", f"{name}0"),
        ("ip", "netns", "del", f"{name}0"),
        ("unshare", "--uts", "true"),
        ("ip", "link", "add", name, "type", "bridge"),
        ("ip", "address", "add", address, "dev", name),
        ("ip", "link", "set", name, "up"),
    )
    return all(subprocess.run(step, capture_output=True).returncode == 0 for step in steps)


def _namespace(name: str, bridge: str, address: str, *, gateway: str) -> None:
    """A network namespace with one interface, on the bridge."""
    outer = f"{name}h"
    for step in (
        f"netns add {name}",
        f"link add {outer} type veth peer name eth0 netns {name}",
        f"link set {outer} master {bridge} up",
        f"-n {name} link set lo up",
        f"-n {name} link set eth0 up",
        f"-n {name} address add {address} dev eth0",
        f"-n {name} route add default via {gateway}",
    ):
        subprocess.run(["ip", *step.split()], check=True, capture_output=True)


def _names(space: str, book: str) -> None:
    """What names mean there; nobody else is asked, since nobody would answer."""
    folder = FILES / space
    folder.mkdir(parents=True)
    (folder / "hosts").write_text(book)
    (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")


def _remove(space: str) -> None:
    listed = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True)
    for pid in listed.stdout.split():
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(int(pid), signal.SIGKILL)
    subprocess.run(["ip", "netns", "del", space], capture_output=True)
    shutil.rmtree(FILES / space, ignore_errors=True)

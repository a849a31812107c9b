"""A Ray cluster that `start_head.sh` and `start_worker.sh` have started."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.clusters.conftest import SCRIPTS, call, variables
from tests.clusters.hosts import Host
from tests.e2e.conftest import Tiny
from tests.services import processes
from tests.services.processes import free_port

OF_THE_HEAD = (
    *("GCS_PORT", "DASHBOARD_PORT", "CLIENT_PORT"),
    *("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT"),
)
OF_EVERY_NODE = (
    *("NODE_MANAGER_PORT", "OBJECT_MANAGER_PORT", "RUNTIME_ENV_PORT"),
    *("AGENT_PORT", "AGENT_HTTP_PORT", "METRICS_PORT"),
)
ALL = (*OF_THE_HEAD, *OF_EVERY_NODE)


@dataclass(frozen=True)
class Cluster:
    """One that the scripts have started, and the environment of who uses it on the head."""

    head: str
    workers: list[Host]
    environ: dict[str, str]
    scratch: Path
    known: dict[str, dict[str, str]] = field(default_factory=dict)
    """Host to the environment that its script was called with."""

    def carft(self, command: str, *words: str) -> list[str]:
        """`carft-sweep COMMAND` on the head, in a shell that has read cluster.env."""
        script = f'source {SCRIPTS}/cluster.env; exec "$VENV/bin/carft-sweep" "$@"'
        return ["bash", "-euc", script, "bash", command, *words]

    def start_worker(self, host: Host) -> str:
        """Let a host join, as `ssh HOST start_worker.sh` does."""
        script = str(SCRIPTS / "start_worker.sh")
        return call(*host.command(script, "--num-cpus", "1"), environ=self.on(host))

    def on(self, host: Host) -> dict[str, str]:
        """The environment there: a machine of its own has the ports of cluster.env to itself."""
        folder = self.scratch / host.name
        folder.mkdir(exist_ok=True)
        variables = {**self.environ, "RAY_SCRATCH": str(folder)}
        taken = () if host.inside else OF_EVERY_NODE
        variables |= {name: str(free_port()) for name in taken}
        self.known[host.name] = variables
        return variables

    def kill(self, host: Host) -> None:
        """As if somebody had pulled its plug."""
        for pid in self.processes(host.name):
            os.kill(pid, signal.SIGKILL)

    def mend(self) -> None:
        """Let those join again that were killed."""
        for host in self.workers:
            if not self.processes(host.name):
                self.start_worker(host)

    def host_of(self, pid: int) -> Host | None:
        """The worker on which a process runs, by the Ray that started it; None if it ended."""
        while pid > 1:
            for host in self.workers:
                if pid in self.processes(host.name):
                    return host
            try:
                stat = Path(f"/proc/{pid}/stat").read_text()
            except OSError:
                return None
            pid = int(stat.rpartition(")")[2].split()[1])
        return None

    def processes(self, host: str) -> list[int]:
        """Of Ray on one host, known by its folder."""
        return processes.running(str(self.scratch / host).encode())


@contextmanager
def running(machines: Sequence[Host], home: Path, **environ: str) -> Iterator[Cluster]:
    """A head on the first machine that executes no runs, and a worker on each of the others.

    `environ` are variables of cluster.env, such as those of a server and a database.
    """
    head, *workers = machines
    known = variables(Tiny(home, home), HEAD=head.address, **environ)
    known |= {name: str(free_port()) for name in OF_THE_HEAD}
    # The path of pytest's folder leaves no room for the names of sockets.
    with tempfile.TemporaryDirectory(prefix="hand-") as scratch:
        made = Cluster(head.address, workers, known, Path(scratch))
        try:
            call(str(SCRIPTS / "start_head.sh"), "--num-cpus", "0", environ=made.on(head))
            for host in workers:
                made.start_worker(host)
            yield made
        finally:
            for pid in made.processes(""):
                os.kill(pid, signal.SIGKILL)

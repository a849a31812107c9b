"""A real Slurm of the system's package: a controller, and a daemon for each host."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.clusters.hosts import Host
from tests.services.processes import environment, free_port, until

LACKS = (
    "needs Slurm (Debian: slurm-wlm) and root"
    if os.geteuid() != 0 or not all(map(shutil.which, ("slurmctld", "slurmd", "sbatch")))
    else None
)
SOCKET = Path("/run/slurm/sack.socket")
"""Where commands let a daemon sign for them."""
CPUS, GPUS = 2, 2
"""Of each node, whatever this machine has."""
_OWN_RUN = "mkdir -p /run/slurm /run/slurmctld" + "".join(
    f" && mount -t tmpfs tmpfs {folder}" for folder in ("/run/slurm", "/run/slurmctld")
)
"""All daemons of a machine, also of another run of the tests, would have the same one."""
_CONF = """\
ClusterName=tests
SlurmctldHost={name}({controller.address})
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/slurm
CredType=auth/slurm
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
SlurmdTimeout=10
KillWait=10
SchedulerParameters=sched_interval=1,sched_min_interval=100000,bf_interval=1
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=DEFAULT Nodes=ALL MaxTime=INFINITE State=UP
PartitionName=low PriorityTier=1 Default=YES
PartitionName=high PriorityTier=10 PreemptMode=OFF
"""


@dataclass
class Slurm:
    """Of `folder`; jobs are root's. A requeued job waits some seconds, not Slurm's two minutes."""

    folder: Path
    nodes: Sequence[Host]
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environ(self) -> dict[str, str]:
        """What Slurm's commands need to find it."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def call(self, *words: str, environ: Mapping[str, str] | None = None) -> str:
        """What a command of Slurm's prints."""
        known = environment(**self.environ, **(environ or {}))
        if self.nodes[0].inside:
            words = ("nsenter", f"--mount=/proc/{self.daemons['slurmctld'].pid}/ns/mnt", *words)
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=known)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, FAILED, ..."""
        match = re.search(r"JobState=(\w+)", self.call("scontrol", "show", "job", job))
        assert match is not None
        return match.group(1)

    def until(self, job: str, *states: str, seconds: float = 150) -> str:
        """Wait until the job is in one of the states; which."""
        last = time.monotonic() + seconds
        while (state := self.state(job)) not in states:
            assert time.monotonic() < last, f"job {job} is still {state}"
            time.sleep(0.5)
        return state

    def start(self) -> None:
        """The controller and the daemons, until every node is idle."""
        own = ["unshare", "--mount"] if self.nodes[0].inside else []
        self._daemon("slurmctld", [*own, *self._apart("slurmctld", "-D")])
        for node in self.nodes:
            command = self._apart("slurmd", "-D", "-N", node.name)
            self._daemon(node.name, node.command(*command))
        states = ("sinfo", "--noheader", "--partition=low", "--format=%t")
        until(lambda: self.call(*states) == "idle", self._logs, seconds=30)

    def stop(self) -> None:
        """End every job and daemon."""
        with suppress(AssertionError, KeyError):  # it has not come so far
            self.call("scancel", "--full", "--signal=KILL", "--user=root")
        for daemon in reversed(self.daemons.values()):
            daemon.send_signal(signal.SIGTERM)
        for daemon in self.daemons.values():
            try:
                daemon.wait(5)
            except subprocess.TimeoutExpired:  # slurmd waits for the ends of jobs
                daemon.kill()
                daemon.wait()

    def _apart(self, *command: str) -> list[str]:
        """The command with a /run of its own, where its mounts are."""
        alone = ["sh", "-c", f'{_OWN_RUN} && exec "$0" "$@"'] if self.nodes[0].inside else []
        return [*alone, *command]

    def _logs(self) -> str:
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"{log.name}:\n{log.read_text()[-2000:]}" for log in logs)

    def _daemon(self, name: str, command: Sequence[str]) -> None:
        known = environment(**self.environ)
        with (self.folder / f"{name}.log").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                command, env=known, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        file = self.folder / f"{name}.log"
        until(lambda: "started" in file.read_text(), self._logs, seconds=30)


def _remove_dead(path: Path) -> None:
    """Remove a socket that a daemon has left: commands would try no other."""
    with socket.socket(socket.AF_UNIX) as asking:
        try:
            asking.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        except FileNotFoundError:
            pass


@contextmanager
def running(controller: Host, nodes: Sequence[Host]) -> Iterator[Slurm]:
    """A Slurm for as long as it lasts: two seconds to start."""
    with tempfile.TemporaryDirectory(prefix="carft-slurm-") as name:
        folder = Path(name)
        made = Slurm(folder, nodes)
        key = folder / "slurm.key"
        key.write_bytes(os.urandom(512))
        key.chmod(0o600)
        (folder / "state").mkdir()
        conf = _CONF.format(
            name=socket.gethostname(), controller=controller, port=free_port(), folder=folder
        )
        for node in nodes:
            (folder / f"spool-{node.name}").mkdir()
            conf += (
                f"NodeName={node.name} NodeHostname={node.name if node.inside else '_'} "
                f"NodeAddr={node.address} Port={free_port()} CPUs={CPUS} RealMemory=4000 "
                f"Gres=gpu:{GPUS}\n"
            ).replace("NodeHostname=_", f"NodeHostname={socket.gethostname()}")
        (folder / "slurm.conf").write_text(conf)
        # A network namespace has a /sys of its own, without control groups.
        (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
        for number in range(GPUS):
            (folder / f"gpu{number}").touch()
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{GPUS - 1}]\n")
        _remove_dead(SOCKET)
        try:
            made.start()
            yield made
        finally:
            made.stop()

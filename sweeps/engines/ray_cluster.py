"""A Ray cluster: connecting to it or starting it, and whether its nodes can run the runs."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import socket
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import worker
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from carft_core.errors import RequestError
from sweeps.engines.resources import Gpu, Node, this_machine
from sweeps.spec.user_code import FAMILY_SUFFIXES, source_digest
from tracking.errors import ServiceUnreachable

ANSWER_SECONDS = 120.0
"""How long all nodes together may take to answer."""
_SEEN_SECONDS = 5.0
"""A network file system may show late what another host wrote."""

Answer = Mapping[str, Any]


def check_nodes(
    nodes: Mapping[str, Node],
    home: Path,
    *,
    imports: Sequence[str] = (),
    seen_as: Path | None = None,
) -> dict[str, Node]:
    """Ask each node (by Ray's id) whether it can serve; the nodes, with what they say of GPUs.

    The home is shared when each node reads what this process writes into it, and the other way
    round. `seen_as` is the path under which nodes look for it, the same when left out. Raises
    RequestError with the name of each node that cannot serve.
    """
    token = f".shared-{uuid.uuid4().hex}"
    files = [path for path in imports if path.endswith((".py", *FAMILY_SUFFIXES))]
    home.mkdir(parents=True, exist_ok=True)
    try:
        (home / token).write_text("the driver was here")
        asked = {
            node: _question(node).remote(
                str(seen_as or home), token, f"{token}-{node}", source_digest(), files
            )
            for node in nodes
        }
        answers = _answers(asked)
        for node, answer in answers.items():
            if "refused" not in answer and not _appears(home / f"{token}-{node}"):
                answers[node] = {"refused": _not_shared(home)}
    finally:
        for file in home.glob(f"{token}*"):
            file.unlink(missing_ok=True)
    refused = [f"  {nodes[n].name}: {a['refused']}" for n, a in answers.items() if "refused" in a]
    if refused:
        raise RequestError("\n".join(["not every node of the cluster can serve:", *refused]))
    return {
        id_: nodes[id_].with_gpus([Gpu(**gpu) for gpu in answer["gpus"]])
        for id_, answer in answers.items()
    }


def _question(node: str) -> Any:
    def look(home: str, token: str, own: str, digest: str, files: list[str]) -> Answer:
        # It travels whole, since it lies in a function: this package may not be there.
        try:
            from sweeps.engines.ray_cluster import answer_of_node
            from sweeps.engines.resources import visible_gpus
            from sweeps.spec.user_code import SOURCES_ROOT, source_digest
        except ImportError as error:
            return {"refused": f"carft-sweep is not installed there ({error})"}
        if source_digest() != digest:
            return {"refused": f"has another version of carft-sweep, in {SOURCES_ROOT}"}
        gpus = [vars(gpu) for gpu in visible_gpus({})]
        return answer_of_node(home, token, own, files) | {"gpus": gpus}

    pinned = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0, max_retries=0)(look).options(scheduling_strategy=pinned)


def answer_of_node(home: str, token: str, own: str, files: Sequence[str]) -> dict[str, Any]:
    """What a node says: why it refuses, or nothing, having left its own token in the home."""
    if not _appears(Path(home) / token):
        return {"refused": _not_shared(home)}
    missing = [path for path in files if not Path(path).is_file()]
    if missing:
        return {"refused": f"does not see {missing[0]}, which the sweep imports"}
    (Path(home) / own).write_text("a node was here")
    return {}


def _answers(asked: Mapping[str, Any]) -> dict[str, Answer]:
    ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_SECONDS)
    answers: dict[str, Answer] = {}
    for node, future in asked.items():
        if future not in ready:
            answers[node] = {"refused": f"did not answer within {ANSWER_SECONDS:g} s"}
            continue
        try:
            answers[node] = ray.get(future)
        except (ray.exceptions.RayError, OSError) as error:
            answers[node] = {"refused": str(error).strip().splitlines()[-1]}
    return answers


def _appears(file: Path) -> bool:
    until = time.monotonic() + _SEEN_SECONDS
    while not file.is_file():
        if time.monotonic() > until or not file.parent.is_dir():
            return False
        time.sleep(0.2)
    return True


def _not_shared(home: str | Path) -> str:
    return f"does not share the home {home} with this machine: put it on shared storage (--home)"


ROOT = Path(__file__).parents[2]
_SCRATCH = "carft-ray-"
_OWNER = "owner"
"""The file of a scratch folder that says where its driver's process id is valid."""
_CONNECT_SECONDS = 10.0
_OBJECT_STORE_BYTES = 100 * 2**20  # runs send a few kilobytes through it
_NOT_CUSTOM = ("node:", "memory", "object_store_memory", "CPU", "GPU")
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Else every worker warns that some day Ray will no longer hide GPUs from who asks for none.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class Cluster:
    """A connection to Ray. What it started it ends; what was there it leaves alone."""

    def __init__(self, address: str | None = None) -> None:
        """Connect to `address` (`HOST:PORT`, or `auto` for the one on this machine), or start Ray
        here. A Ray that this process is connected to already is taken as it is.

        Raises RequestError for an address that cannot serve, ServiceUnreachable when nobody
        answers there.
        """
        _clear_left_behind()
        # Not in TMPDIR, which may be long: the paths of Ray's sockets are limited to 107 bytes.
        self.scratch = Path(tempfile.mkdtemp(prefix=f"{_SCRATCH}{os.getpid()}-", dir=_place()))
        """For what Ray writes and nobody needs afterwards; removed at the end."""
        (self.scratch / _OWNER).write_text(pid_namespace())
        self._owned = not ray.is_initialized()
        if not self._owned:
            return
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        with signals_kept():
            if address is None:
                self._start()
            else:
                _connect(address)
        # Ray prints to stdout what it thinks of nodes that went, whatever `log_to_driver` says, at
        # any time and into the midst of what a command prints.
        self._prints, worker.print_to_stdstream = worker.print_to_stdstream, _ignored

    def nodes(self) -> list[Node]:
        """What each living node has."""
        return list(self.nodes_by_id().values())

    def nodes_by_id(self) -> dict[str, Node]:
        """The same by Ray's id of the node."""
        living = [node for node in ray.nodes() if node["Alive"]]
        hosts = Counter(node["NodeManagerHostname"] for node in living)
        return {
            node["NodeID"]: Node(
                _name(node, hosts),
                node["Resources"].get("CPU", 0.0),
                node["Resources"].get("GPU", 0.0),
                {
                    name: amount
                    for name, amount in node["Resources"].items()
                    if not name.startswith(_NOT_CUSTOM)
                },
            )
            for node in living
        }

    def close(self) -> None:
        """Disconnect; a Ray of our own ends."""
        if self._owned and ray.is_initialized():
            with signals_kept():
                ray.shutdown()
            worker.print_to_stdstream = self._prints
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _start(self) -> None:
        ray.init(
            address="local",
            num_cpus=int(this_machine().cpus),
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=False,
            _temp_dir=str(self.scratch),
            **_options(os.environ.get("PYTHONPATH", "")),
        )


@contextmanager
def signals_kept() -> Iterator[None]:
    """What Ray does to the handlers of signals is undone: they are the session's."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [(number, signal.getsignal(number)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _place() -> str:
    return os.environ.get("RAY_TMPDIR", "/tmp")


def pid_namespace() -> str:
    """Identify what process ids belong to: the machine since it was started, and the container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def _clear_left_behind() -> None:
    """Remove the scratch folders of drivers that were killed on this machine.

    The folder they lie in may be shared with other machines and containers, where the same process
    ids are other processes.
    """
    for folder in Path(_place()).glob(f"{_SCRATCH}*"):
        pid = folder.name.removeprefix(_SCRATCH).partition("-")[0]
        if pid.isdigit() and _owner(folder) == pid_namespace() and _is_gone(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _owner(folder: Path) -> str | None:
    try:
        return (folder / _OWNER).read_text()
    except OSError:
        return None


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # another user's
    return False


def _connect(address: str) -> None:
    if address.startswith("ray://"):
        raise RequestError(
            f"{address}: the driver takes part in the cluster and cannot be a Ray client; start it "
            "on a machine of the cluster and give --address HOST:6379, or auto"
        )
    _see_somebody(address)
    try:
        ray.init(address=address, **_options("${PYTHONPATH}"))
    except ConnectionError as error:
        raise ServiceUnreachable(f"no Ray cluster at {address}: {_first(error)}") from None
    except (RuntimeError, ValueError) as error:  # another version of Ray or Python, a bad address
        told = _versions(str(error)) or f"the Ray cluster at {address} cannot be used: {error}"
        raise RequestError(told) from None


def _versions(error: str) -> str | None:
    """What Ray's error says of versions, and what to do; None when it is another one."""
    found = re.findall(r"^\s*(Ray|Python): (\S+)$", error, re.MULTILINE)
    if "Version mismatch" not in error or len(found) != 4:
        return None
    there, here = (" and ".join(f"{k} {v}" for k, v in found[at : at + 2]) for at in (0, 2))
    return (
        f"the cluster was started with {there}, this process has {here}: both must be equal on "
        "every machine. Start the driver with the cluster's Python, let `carft-sweep submit` start "
        "it there, or install the same versions everywhere and restart Ray"
    )


def _see_somebody(address: str) -> None:
    """Ray itself would try for a minute."""
    host, _, port = address.rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdigit():
        raise RequestError(f"an address of Ray is HOST:PORT (the port is 6379), got {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        raise ServiceUnreachable(f"no Ray cluster at {address}: {_first(error)}") from None


def _options(path: str) -> dict[str, Any]:
    """Nothing of Ray's is printed, and its processes find this very package first."""
    search = os.pathsep.join([str(ROOT), *([path] if path else [])])
    return {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": {"PYTHONPATH": search}},
    }


def _ignored(*_: Any, **__: Any) -> None:
    """In the place of what prints."""


def _name(node: dict[str, Any], hosts: Counter[str]) -> str:
    host: str = node["NodeManagerHostname"]
    return host if hosts[host] == 1 else f"{host} ({node['NodeID'][:8]})"


def _first(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

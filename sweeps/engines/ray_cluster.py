"""A Ray cluster: connecting to it or starting it, and whether its nodes can run the runs."""

from __future__ import annotations

import http.client
import logging
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.engines.ray_tokens import check_version, own_token
from carft_sweep.sweeps.engines.resources import Gpu, Node, this_machine
from carft_sweep.sweeps.spec.user_code import FAMILY_SUFFIXES, source_digest
from carft_sweep.tracking.errors import ServiceUnreachable

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 120.0
"""How long all nodes together may take to answer."""
HEAD_SECONDS = 20.0
"""How long a cluster's head may take to accept a connection."""
LOST_SECONDS = 45.0
"""How long a head that had answered may be away. Ray itself ends the process after 60 s, with an
exit code that says nothing."""
WATCH_SECONDS = 5.0
"""Between two connections that ask whether the head is there."""
_SEEN_SECONDS = 5.0
"""A network file system may show late what another host wrote."""

_SENT = re.compile(r"/.*/working_dir_files/(_ray_pkg_\w+)/(.*)")
"""A file of the folder that `submit` sent, as Ray unpacks it: the package, and the path in it."""

Answer = Mapping[str, Any]


def check_nodes(
    nodes: Mapping[str, Node],
    home: Path,
    *,
    imports: Sequence[str] = (),
    seen_as: Path | None = None,
) -> dict[str, Node]:
    """Check that each node (by Ray's id) can serve and has the files of `imports`; return the nodes
    that can, with the GPUs that they report.

    The home counts as shared when each node reads a file that this process wrote into the home, and
    the reverse. `seen_as` is the path under which nodes look for the home, by default the same. A
    node that was lost meanwhile is left out, and so is one that cannot serve, with a warning.
    Raises RequestError with the name of each node where none can.
    """
    token = f".shared-{uuid.uuid4().hex}"
    files = [path for path in imports if path.endswith((".py", *FAMILY_SUFFIXES))]
    home.mkdir(parents=True, exist_ok=True)
    try:
        (home / token).write_text("the driver was here")
        place, digest = str(seen_as or home), source_digest()
        futures = {
            node: _question(node).remote(place, token, f"{token}-{node}", digest, files)
            for node in nodes
        }
        answers = _answers(futures)
        for node, answer in answers.items():
            if "refused" not in answer and not _appears(home / f"{token}-{node}"):
                answers[node] = {"refused": _not_shared(home)}
    finally:
        for file in home.glob(f"{token}*"):
            file.unlink(missing_ok=True)
    refused = [f"{nodes[n].name}: {a['refused']}" for n, a in answers.items() if "refused" in a]
    if len(refused) == len(answers):
        lines = (f"  {line}" for line in refused)
        raise RequestError("\n".join(["no node of the cluster can serve:", *lines]))
    for line in refused:
        logger.warning("the sweep goes without a node of the cluster: %s", line)
    return {
        id_: nodes[id_].with_gpus([Gpu(**gpu) for gpu in answer["gpus"]])
        for id_, answer in answers.items()
        if "refused" not in answer
    }


def _question(node: str) -> Any:
    def look(home: str, token: str, own: str, digest: str, files: list[str]) -> Answer:
        # It travels whole, since it lies in a function: this package may not be there.
        try:
            from carft_sweep.sweeps.engines.ray_cluster import answer_of_node
            from carft_sweep.sweeps.engines.resources import visible_gpus
            from carft_sweep.sweeps.spec.user_code import SOURCES_ROOT, source_digest
        except ImportError as error:
            return {"refused": f"carft-sweep is not installed there ({error})"}
        if source_digest() != digest:
            return {"refused": f"has another version of carft-sweep, in {SOURCES_ROOT}"}
        gpus = [vars(gpu) for gpu in visible_gpus({})]
        return answer_of_node(home, token, own, files) | {"gpus": gpus}

    pinned = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0, max_retries=0)(look).options(scheduling_strategy=pinned)


def answer_of_node(home: str, token: str, own: str, files: Sequence[str]) -> dict[str, Any]:
    """Return {"refused": reason} where this node sees no file `token` in the home, or lacks one of
    `files`; else write the file `own` into the home and return {}."""
    if not _appears(Path(home) / token):
        return {"refused": _not_shared(home)}
    missing = [path for path in files if not Path(own_copy(path)).is_file()]
    if missing:
        return {"refused": f"does not see {missing[0]}, which the sweep imports"}
    (Path(home) / own).write_text("a node was here")
    return {}


def own_copy(path: str) -> str:
    """Return the path of this node's copy of a file that `submit` sent, given the path of another
    node's: Ray unpacks what is sent on each node, below a folder of that node's own, and names it
    in PYTHONPATH. Other paths are returned unchanged."""
    sent = _SENT.fullmatch(path)
    if sent is not None:
        for place in os.environ.get("PYTHONPATH", "").split(os.pathsep):
            if Path(place).name == sent[1]:
                return f"{place}/{sent[2]}"
    return path


def _answers(futures: Mapping[str, Any]) -> dict[str, Answer]:
    ready, _ = ray.wait(list(futures.values()), num_returns=len(futures), timeout=ANSWER_SECONDS)
    answers: dict[str, Answer] = {}
    for node, future in futures.items():
        if future not in ready:
            answers[node] = {"refused": f"did not answer within {ANSWER_SECONDS:g} s"}
            continue
        try:
            answers[node] = ray.get(future)
        except ray.exceptions.TaskUnschedulableError:  # the node is gone: Ray lists it for a while
            logger.info("the node %s has gone", node)
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


ROOT = Path(__file__).parents[3]
_OBJECT_STORE_BYTES = 100 * 2**20  # runs send a few kilobytes through it
_NOT_CUSTOM = ("node:", "memory", "object_store_memory", "CPU", "GPU")
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Else every worker warns that some day Ray will no longer hide GPUs from who asks for none.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class Cluster:
    """A connection to Ray. Closing it ends Ray only if this process has started it."""

    def __init__(self, address: str | None = None) -> None:
        """Connect to `address` (`HOST:PORT`, or `auto` for a cluster on this machine), or start Ray
        here. An existing connection of this process is reused.

        Raises RequestError for an address that cannot serve and for a Ray without tokens,
        ServiceUnreachable when nothing answers at that address.
        """
        check_version(ray.__version__, "this machine")
        self._end = ExitStack()
        self.scratch = _make_scratch()
        """The folder of Ray's temporary files; removed at the end."""
        self._end.callback(shutil.rmtree, self.scratch, ignore_errors=True)
        if ray.is_initialized():
            return
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        try:
            with restored_signals():
                if address is None:
                    self._start()
                else:
                    self._watch_head(_connect(address))
        except BaseException:
            self.close()
            raise
        self._end.callback(_disconnect)

    def nodes_by_id(self) -> dict[str, Node]:
        """Return the resources of each living node by Ray's id."""
        living = [node for node in ray.nodes() if node["Alive"]]
        hosts = Counter(node["NodeManagerHostname"] for node in living)
        nodes = {}
        for node in living:
            has: dict[str, float] = node["Resources"]
            custom = {name: has[name] for name in has if not name.startswith(_NOT_CUSTOM)}
            host, id_ = node["NodeManagerHostname"], node["NodeID"]
            name = host if hosts[host] == 1 else f"{host} ({id_[:8]})"
            nodes[id_] = Node(name, has.get("CPU", 0.0), has.get("GPU", 0.0), custom)
        return nodes

    def close(self) -> None:
        """Disconnect from Ray; end Ray if this process has started it."""
        self._end.close()

    def _watch_head(self, address: str) -> None:
        is_closed = threading.Event()
        self._end.callback(is_closed.set)
        threading.Thread(target=_watch, args=(address, is_closed), daemon=True).start()

    def _start(self) -> None:
        self._end.enter_context(own_token())
        if threading.current_thread() is threading.main_thread():
            # Ray's processes inherit it: a terminal that is closed reaches them too, and then the
            # driver still needs them. Ours is as before when they are started.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        ray.init(
            address="local",
            num_cpus=int(this_machine().cpus),
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=False,
            # Ray opens its folder to everybody: above it lies one that is closed.
            _temp_dir=str(self.scratch / "r"),
            **_options(os.environ.get("PYTHONPATH", "")),
        )


def _disconnect() -> None:
    if ray.is_initialized():
        with restored_signals():
            ray.shutdown()


@contextmanager
def restored_signals() -> Iterator[None]:
    """Restore the session's signal handlers after Ray has replaced them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    before = [(number, signal.getsignal(number)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _make_scratch() -> Path:
    """Make a folder that only the user may enter, and return it. Raises RequestError on failure."""
    # Not in TMPDIR, which may be long: the paths of Ray's sockets are limited to 107 bytes.
    place = os.environ.get("RAY_TMPDIR", "/tmp")
    try:
        return Path(tempfile.mkdtemp(prefix="carft-ray-", dir=place))
    except OSError as error:
        raise RequestError(
            f"{place} cannot hold Ray's sockets and logs ({_first(error)}): name another local "
            "folder in RAY_TMPDIR"
        ) from None


def _connect(address: str) -> str:
    """Connect to a cluster, and return its head's HOST:PORT. Raises as `Cluster` does."""
    if address.startswith("ray://"):
        raise RequestError(
            f"{address}: the driver takes part in the cluster and cannot be a Ray client; start it "
            "on a machine of the cluster and give --address HOST:6379, or auto"
        )
    if address.startswith(("http://", "https://")):
        raise RequestError(_DASHBOARD.format(address))
    if address.rpartition(":")[2].isdecimal():
        try:  # Ray itself would try for a quarter of an hour
            _knock(address, HEAD_SECONDS)
        except OSError as error:
            raise ServiceUnreachable(
                f"no Ray head answers at {address} ({_first(error)}): start it, or name another"
            ) from None
        if _is_page(address):  # of which Ray would complain for a minute
            raise RequestError(_DASHBOARD.format(address))
        if all(process.info["name"] != "raylet" for process in psutil.process_iter(["name"])):
            raise RequestError(
                f"{address}: the driver takes part in the cluster, and this machine is no node of "
                "one; start it on a node, or send the sweep by `submit`"
            )
    try:
        ray.init(address=address, **_options("${PYTHONPATH}"))
    except ConnectionError as error:  # Ray says so of a token that it refuses too
        raise ServiceUnreachable(
            f"no Ray cluster at {address} that accepts this process: {_first(error)}. Where one "
            "runs there, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN as its "
            "nodes do"
        ) from None
    except (RuntimeError, ValueError) as error:  # another version of Ray or Python, a bad address
        raise RequestError(f"the Ray cluster at {address} cannot be used: {error}") from None
    head: str = ray.get_runtime_context().gcs_address
    return head


def _knock(address: str, timeout: float) -> None:
    """Raise OSError where nothing accepts a connection at HOST:PORT within `timeout` seconds."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout).close()


_DASHBOARD = (
    "{} is the cluster's dashboard, which takes sweeps by `submit`; to `run` one on a node, give "
    "the head's own port: --address HOST:6379, or auto"
)


def _is_page(address: str) -> bool:
    """Return whether HTTP is spoken at HOST:PORT, as by Ray's dashboard and not by a head."""
    connection = http.client.HTTPConnection(address, timeout=2)
    try:
        connection.request("HEAD", "/")
        connection.getresponse()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True


def _watch(address: str, is_closed: threading.Event) -> None:
    """End this process with a message once the head has been away for LOST_SECONDS. Nothing could
    be closed: calls of Ray do not return without a head."""
    answered = time.monotonic()
    while not is_closed.wait(WATCH_SECONDS):
        try:
            _knock(address, WATCH_SECONDS)
            answered = time.monotonic()
        except OSError as error:
            if time.monotonic() - answered > LOST_SECONDS:
                sys.stderr.write(
                    f"carft-sweep: the Ray head at {address} is gone ({_first(error)}). Start it, "
                    "then `resume` the sweep, which keeps what is done\n"
                )
                sys.stderr.flush()
                os._exit(4)  # the command line's code for a service that does not answer


def _options(path: str) -> dict[str, Any]:
    """Return options by which Ray prints nothing; its processes find this package, then `path`."""
    search = os.pathsep.join([str(ROOT), *([path] if path else [])])
    return {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": {"PYTHONPATH": search}},
    }


def _first(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

"""Several runs at once on Ray, and what becomes of them when actors and nodes go."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import psutil
import pytest
import ray
from ray.tune.experiment import Trial

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.cli import UNREACHABLE
from carft_sweep.sweeps.engines import factory, ray_cluster
from carft_sweep.sweeps.engines import ray_tune as ray_loop
from carft_sweep.sweeps.engines.base import Failure, Job, Wait
from carft_sweep.sweeps.engines.factory import make_engine
from carft_sweep.sweeps.engines.ray_cluster import Cluster, check_nodes, own_copy
from carft_sweep.sweeps.engines.ray_tune import RayEngine
from carft_sweep.sweeps.engines.resources import Gpu, Node, RunRequirements
from carft_sweep.sweeps.scheduler.retries import CircuitBreaker
from carft_sweep.sweeps.spec.spec import load_spec
from carft_sweep.tracking.errors import ServiceUnreachable
from tests.services.answering import Answer, answering
from tests.services.processes import free_port
from tests.sweeps.conftest import ToySweep
from tests.sweeps.engines.conftest import CORES, MakeEngine, MakeJob, Scripted
from tests.sweeps.toy_runs import Recorder, gone_within, is_running, parent_of

ROOT = Path(__file__).parents[3]
AddNode = Callable[[], Any]
Patch = pytest.MonkeyPatch
pytestmark = pytest.mark.xdist_group("ray")


def first_node(ray_nodes: Any) -> dict[str, Node]:
    """The one that is always there: others may be seen for a moment after their end."""
    id_ = ray_nodes.head_node.node_id
    return {id_: Cluster().nodes_by_id()[id_]}


def go(tmp_path: Path) -> Callable[[Job], None]:
    """Lets runs end that wait."""
    return lambda _: (tmp_path / "go").touch()


def test_as_many_runs_as_fit_are_there_at_once_and_that_of_a_killed_actor_goes_on_in_another(
    on_ray: MakeEngine, job: MakeJob, tmp_path: Path
) -> None:
    def kill_one(_: Job) -> None:
        if len(recorder.workers) == CORES:
            victim.append(recorder.events[0][1])
            os.kill(parent_of(recorder.pids()[0]), signal.SIGKILL)

    victim: list[str] = []
    jobs: list[Job | Wait] = [job(digest, do="wait") for digest in "abc"]
    recorder = Scripted(jobs, retries=True, started=kill_one, failed=go(tmp_path))
    on_ray(need=RunRequirements(1)).run(recorder)
    ((lost, failure),) = recorder.failures.items()
    assert [lost] == victim
    assert (failure.kind, "epoch=1/2" in failure.log_tail) == ("preempted", True)
    assert failure.message == "the run was lost: its worker process has died"
    assert failure.node
    order = recorder.order("started", "failed", "finished")
    assert {*order[:2]} == {"started a", "started b"}
    ends = [order.index(f"failed {lost}"), *(order.index(f"finished {digest}") for digest in "ab")]
    assert order.index("started c") > min(ends)
    assert (order.count(f"started {lost}"), {*recorder.results}) == (2, {*"abc"})
    assert gone_within(10, recorder.pids()[0])
    assert recorder.pids()[0] not in recorder.pids()[1:]


@pytest.fixture
def looks_often(monkeypatch: Patch) -> None:
    monkeypatch.setattr(ray_loop, "LOOK", 0.5)


@pytest.mark.usefixtures("looks_often")
def test_a_job_that_waits_for_room_is_kept_alive_and_stopped_without_having_begun(
    on_ray: MakeEngine, job: MakeJob
) -> None:
    class Tenant:
        def is_here(self) -> bool:
            return True

    tenant: Any = ray.remote(num_cpus=CORES)(Tenant).remote()
    ray.get(tenant.is_here.remote())
    engine = on_ray()
    jobs: list[Job | Wait] = [job("a"), job("b")]
    recorder = Scripted(jobs, alive=lambda _: engine.stop() if recorder.beats == 2 else None)
    engine.run(recorder)
    ray.kill(tenant)
    assert recorder.events == [("stopped", "a")]


@pytest.fixture(scope="module")
def add_spot(ray_nodes: Any) -> Iterator[AddNode]:
    """Makes nodes of a kind of its own, of which there is one."""
    add = functools.partial(ray_nodes.add_node, num_cpus=1, resources={"spot": 1})
    first = add()
    yield add
    ray_nodes.remove_node(first)


@pytest.mark.usefixtures("looks_often")
def test_room_grows_with_the_nodes_and_what_a_lost_node_had_goes_on_elsewhere(
    ray_nodes: Any, add_spot: AddNode, on_ray: MakeEngine, job: MakeJob, tmp_path: Path
) -> None:
    second: list[Any] = []
    recorder = Scripted(
        [job("a", do="wait"), job("b", do="wait")],
        retries=True,
        started_a=lambda _: second.append(add_spot()),
        started_b=lambda _: (
            ray_nodes.remove_node(second.pop(), allow_graceful=False) if second else None
        ),
        failed=go(tmp_path),
    )
    on_ray(need=RunRequirements(1, custom={"spot": 1})).run(recorder)
    assert recorder.order("started", "failed", "finished") == [
        *["started a", "started b", "failed b", "finished a", "started b", "finished b"]
    ]
    assert recorder.failures["b"].kind == "preempted"
    assert "the run was lost: " in recorder.failures["b"].message


class Quarantining(Recorder):
    """Retries what failed elsewhere, and lets nothing begin where that has succeeded."""

    def __init__(self, jobs: list[Job | Wait]) -> None:
        super().__init__(jobs)
        self.bad: set[str] = set()

    @property
    def nodes(self) -> list[str]:
        """Of each run that was begun."""
        return [worker.split(":")[1] for worker in self.workers]

    def usable(self, nodes: Collection[str]) -> Collection[str]:
        return {*nodes} - self.bad

    def failed(self, job: Job, failure: Failure) -> None:
        super().failed(job, failure)
        config = {**job.config, "do": "nothing"}
        self.jobs.insert(0, replace(job, config=config, avoid=(failure.node,)))

    def finished(self, job: Job, result: Mapping[str, Any]) -> None:
        super().finished(job, result)
        self.bad.add(self.nodes[-1]) if job.digest == "a" else None


@pytest.mark.slow
def test_ray_is_asked_for_a_share_that_fits_on_the_kind_of_gpu_that_a_sweep_names(
    ray_nodes: Any, toy: ToySweep, monkeypatch: Patch
) -> None:
    """By a real cluster, with GPUs that Ray is told of, and their memory by us."""
    memory_mb = {"accelerator_type:NEW": 80_000.0, "accelerator_type:OLD": 24_000.0}
    added = [ray_nodes.add_node(num_cpus=4, num_gpus=1, resources={kind: 1}) for kind in memory_mb]
    ray_nodes.wait_for_nodes()

    def check_nodes(nodes: dict[str, Node], *_: object, **__: object) -> dict[str, Node]:
        memories = {id_: memory_mb[node.gpu_type] for id_, node in nodes.items()}
        return {id_: nodes[id_].with_gpus([Gpu(memories[id_], bf16=True)]) for id_ in nodes}

    monkeypatch.setattr(ray_cluster, "check_nodes", check_nodes)
    monkeypatch.setattr(factory, "memory_on_gpu_mb", lambda _: 10_000.0)

    def bundle(**kind: float) -> dict[str, float]:
        custom = {f"accelerator_type:{name}": amount for name, amount in kind.items()}
        spec = load_spec(toy.file(engine="ray", resources={"gpus": "auto", "custom": custom}))
        engine = make_engine(spec, address=ray_nodes.address, home=toy.home.path)
        assert isinstance(engine, RayEngine)
        return {**engine.bundle, "CPU": 0.5}

    try:
        assert bundle()["GPU"] == 0.5
        assert bundle(NEW=0.001)["GPU"] == 0.25
        groups = [ray.util.placement_group([bundle(OLD=0.001)]) for _ in range(3)]
        assert [group.wait(timeout_seconds=20) for group in groups[:2]] == [True, True]
        assert not groups[2].wait(timeout_seconds=1), "the GPU of this kind holds two"
        tables = [ray.util.placement_group_table(group) for group in groups[:2]]
        places = {table["bundles_to_node_id"][0] for table in tables}
        assert places == {added[1].node_id}
        for group in groups:
            ray.util.remove_placement_group(group)
    finally:
        for node in added:
            ray_nodes.remove_node(node)


@pytest.mark.slow  # below, the loop decides it without Ray
def test_a_retry_goes_elsewhere_and_nothing_begins_on_a_node_that_is_left_out(
    ray_nodes: Any, add_spot: AddNode, on_ray: MakeEngine, job: MakeJob, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(ray_loop, "LOOK", 0.0)
    other = add_spot()
    recorder = Quarantining([job("a", do="raise", error="key"), job("b"), job("c")])
    on_ray(need=RunRequirements(1, custom={"spot": 1}), parallel=1).run(recorder)
    ray_nodes.remove_node(other)
    first, second, *rest = recorder.nodes
    assert first != second
    assert rest == [first, first]
    assert {*recorder.results} == {"a", "b", "c"}


def placing(handler: Recorder, nodes: dict[str, Node], **more: Any) -> ray_loop.Loop:
    """The loop of an engine on nodes that are only told of; a run takes a GPU."""
    options: dict[str, Any] = {"need": RunRequirements(1, 1), "parallel": None, "supervision": ""}
    cluster = SimpleNamespace(nodes_by_id=lambda: nodes)
    state = {"cluster": cluster, "is_stopping": False, "is_stopping_now": False, "left_out": ()}
    engine = SimpleNamespace(**{**options, "bundle": {}, **state, **more})
    return ray_loop.Loop(handler, cast(ray_loop.RayEngine, engine))


def test_an_actor_that_tells_nothing_is_given_up(job: MakeJob, monkeypatch: Patch) -> None:
    killed: list[object] = []
    monkeypatch.setattr(ray_loop, "LOOK", 0.0)
    monkeypatch.setattr(ray_loop, "GRACE", 2.0)
    monkeypatch.setattr(ray, "kill", killed.append)
    recorder = Recorder([job("a")])
    loop = placing(recorder, {"1": FIRST}, silence=4)
    clock: Any = SimpleNamespace(now=0.0, turn=lambda: None, standing_still=nullcontext)
    monkeypatch.setattr(loop, "_clock", clock)
    loop.next("t")
    state = SimpleNamespace(ray_actor="its actor")
    trial: Any = SimpleNamespace(trial_id="t", status=Trial.RUNNING, temporary_state=state)
    for clock.now, dead in ((6.0, []), (6.1, ["its actor"])):
        loop.check_actors(SimpleNamespace(get_live_trials=lambda: [trial]))
        assert killed == dead
    loop.on_trial_lost(trial)
    failure = recorder.failures["a"]
    assert (failure.kind, failure.message) == ("timeout", "nothing was heard of the node for 6 s")


HEAD, FIRST, SECOND = Node("head", 4), Node("n1", 4, 1), Node("n2", 4, 1)


@pytest.mark.parametrize(
    ("avoid", "bad", "nodes", "left_out", "without"),
    [
        ("n1", "", "012", "", ["1"]),
        ("n1", "", "01", "", []),
        ("", "", "01", "", []),
        # Nothing holds a run any more: the handler is asked, which says that it has given up.
        ("", "n1", "012", "2", ["1", "2"]),
    ],
)
def test_a_node_is_left_only_while_another_one_holds_a_run(
    job: MakeJob, avoid: str, bad: str, nodes: str, left_out: str, without: list[str]
) -> None:
    handler = Quarantining([replace(job("a"), avoid=(avoid,))])
    handler.bad = {bad}
    known = {"0": HEAD, "1": FIRST, "2": SECOND}
    loop = placing(handler, {id_: known[id_] for id_ in nodes}, left_out={*left_out})
    suggestion: Any = loop.next("t")
    assert json.loads(suggestion["place"])["without"] == without


def test_a_node_that_was_refused_is_none_that_could_go_on(job: MakeJob, monkeypatch: Patch) -> None:
    handler, breaker = Recorder([job("a")]), CircuitBreaker(1)
    monkeypatch.setattr(handler, "usable", breaker.usable)
    placing(handler, {"1": FIRST, "2": SECOND}, left_out={"2"}).next("t")
    failure = Failure("crashed", "an old driver", node="n1")
    assert breaker.failed(failure, "trial 0") is not None  # else jobs would wait for the other one


def test_a_job_that_no_worker_was_given_is_stopped_at_the_end(job: MakeJob) -> None:
    recorder = Recorder([job("a"), replace(job("b"), avoid=("n1",))])
    loop = placing(recorder, {"1": FIRST, "2": SECOND})
    loop.next("t")
    ended = json.dumps([{"kind": "finished", "result": {}}])
    trial = SimpleNamespace(trial_id="t", temporary_state=SimpleNamespace(ray_actor=None))
    result = {"hostname": "n1", "node": "1", "events": ended}
    assert loop.on_result(cast(Any, trial), result) == "STOP"
    loop.release()
    loop.release()
    assert recorder.events == [("finished", "a"), ("stopped", "b")]


def test_nodes_that_see_the_home_and_what_is_imported_are_accepted_and_others_named(
    ray_nodes: Any, tmp_path: Path
) -> None:
    nodes = first_node(ray_nodes)
    (name,) = [node.name for node in nodes.values()]
    gone = {"0123abcd" * 7: Node("gone-node", 1)}
    assert check_nodes(nodes | gone, tmp_path).keys() == nodes.keys()
    with pytest.raises(RequestError, match=rf"{re.escape(name)}: does not share the home"):
        check_nodes(nodes, tmp_path, seen_as=tmp_path / "on another disk")
    with pytest.raises(RequestError, match=r"does not see /nowhere/own\.py, which the sweep imp"):
        check_nodes(nodes, tmp_path, imports=["installed_package", "/nowhere/own.py"])
    assert list(tmp_path.iterdir()) == []


def test_a_node_that_cannot_serve_is_left_out_while_another_can(
    ray_nodes: Any, tmp_path: Path, monkeypatch: Patch, caplog: Any
) -> None:
    nodes = first_node(ray_nodes)
    answers: dict[str, Any] = {id_: {"gpus": []} for id_ in nodes}
    answers["far"] = {"refused": "does not share the home"}
    monkeypatch.setattr(ray_cluster, "_answers", lambda _: answers)
    monkeypatch.setattr(ray_cluster, "_question", lambda _: SimpleNamespace(remote=print))
    monkeypatch.setattr(ray_cluster, "_appears", lambda _: True)
    assert check_nodes(nodes | {"far": Node("n3", 1)}, tmp_path).keys() == nodes.keys()
    assert "goes without a node of the cluster: n3: does not share the home" in caplog.text


def test_a_run_whose_folder_is_not_there_fails_before_it_writes_anywhere(
    job: MakeJob, tmp_path: Path
) -> None:
    run = ray_loop.WarmRun.__new__(ray_loop.WarmRun)  # no actor, which Ray takes long to make
    run.assign(json.dumps(vars(replace(job("a"), workdir=str(tmp_path / "unshared" / "a")))))
    (event,) = run._events()
    assert event["kind"] == "failed"
    assert "must be shared storage" in event["failure"]["message"]
    assert not (tmp_path / "unshared").exists()


def test_a_cluster_that_cannot_be_joined_is_said_with_what_ray_says(monkeypatch: Patch) -> None:
    with pytest.raises(RequestError, match="cannot be a Ray client"):
        ray_cluster._connect("ray://head:10001")
    with answering(lambda _: Answer()) as dashboard:
        for address in (dashboard, dashboard.removeprefix("http://")):
            with pytest.raises(RequestError, match=f"{address} is the cluster's dashboard, which"):
                ray_cluster._connect(address)
    with pytest.raises(RequestError, match="at head cannot be used: Invalid address format"):
        ray_cluster._connect("head")
    raised: list[tuple[Exception, type[Exception], str]] = [
        (RuntimeError("of 2.9"), RequestError, r"cannot be used: of 2\.9"),
        (ConnectionError("No"), ServiceUnreachable, r"No\. .* set RAY_AUTH_MODE=token and"),
    ]
    for error, kind, message in raised:
        monkeypatch.setattr(ray, "init", Mock(side_effect=error))
        with pytest.raises(kind, match=message):
            ray_cluster._connect("auto")


def test_ray_is_not_asked_where_no_head_listens_nor_on_a_machine_that_is_no_node(
    monkeypatch: Patch,
) -> None:
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was asked"))
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(ServiceUnreachable, match=rf"no Ray head answers at {address} \(.*refused"):
        ray_cluster._connect(address)
    monkeypatch.setattr(psutil, "process_iter", lambda _: iter(()))
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = "127.0.0.1:{1}".format(*head.getsockname())
        with pytest.raises(RequestError, match=rf"{address}: .* no node of one; .*`submit`"):
            ray_cluster._connect(address)


SCRIPT = f"""
import json, os, signal, stat, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
import grpc
import ray
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
from carft_sweep.sweeps.engines.base import Job
from carft_sweep.sweeps.engines.ray_cluster import Cluster
from carft_sweep.sweeps.engines.ray_tune import RayEngine
from carft_sweep.sweeps.engines.resources import RunRequirements
from tests.sweeps.toy_runs import ENTRY, Recorder
place, config = Path(sys.argv[1]), json.loads(sys.argv[2])
class Telling(Recorder):
    def started(self, job, worker):
        print(worker.rpartition(":")[2], file=sys.__stdout__, flush=True)
def handler(number, frame):
    engine.stop()
numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
for number in numbers:
    signal.signal(number, handler)
cluster = Cluster()
engine = RayEngine(cluster, RunRequirements(1), ENTRY, parallel=1)
telling = Telling([Job("a", "a", config, 0, str(place / "a"))])
engine.run(telling)
folder = Path(ray._private.worker._global_node.get_temp_dir_path())
private = folder.is_relative_to(cluster.scratch) and stat.S_IMODE(cluster.scratch.stat().st_mode)
with grpc.insecure_channel(ray.get_runtime_context().gcs_address) as channel:
    stranger = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
    try:
        stranger.GetAllNodeInfo(gcs_service_pb2.GetAllNodeInfoRequest(), timeout=60)
        answer = "let in"
    except grpc.RpcError as error:
        answer = error.code().name
engine.close()
handlers = {{signal.getsignal(number) is handler for number in numbers}}
print(json.dumps({{"event": telling.events[-1][0], "handlers stay": handlers == {{True}},
    "scratch stays": cluster.scratch.exists(), "folder": private, "stranger": answer,
    "token stays": "RAY_AUTH_TOKEN" in os.environ, "token file": (Path.home() / ".ray").exists()}}))
"""


def driver(tmp_path: Path, **config: Any) -> subprocess.Popen[str]:
    """A process of its own, with a Ray of its own."""
    command = [sys.executable, "-W", "error", "-c", SCRIPT, str(tmp_path), json.dumps(config)]
    environ = {name: os.environ[name] for name in os.environ if not name.startswith("RAY_AUTH")}
    environ["HOME"] = str(tmp_path)
    options: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
    return subprocess.Popen(command, text=True, env=environ, **options)


def test_a_ray_of_our_own_leaves_no_trace_and_no_port_open(tmp_path: Path) -> None:
    """Ctrl-C at a terminal reaches Ray's own processes too, which must not mind. Its ports are open
    to the network: only its own processes have the token, and its folder is the user's."""
    with driver(tmp_path, epochs=200, pause=0.1) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        os.killpg(process.pid, signal.SIGINT)
        printed, errors = process.communicate(timeout=120)
    assert errors == ""
    assert json.loads(printed) == {
        **{"event": "stopped", "handlers stay": True, "scratch stays": False, "folder": 0o700},
        **{"stranger": "UNAUTHENTICATED", "token stays": False, "token file": False},
    }
    assert process.returncode == 0
    assert gone_within(10, worker)


@pytest.mark.slow  # it starts one more Ray
def test_a_driver_that_is_killed_takes_its_ray_and_workers_along(tmp_path: Path) -> None:
    with driver(tmp_path, do="sleep", seconds=300) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        assert is_running(worker)
        process.kill()
        process.communicate(timeout=60)
    assert gone_within(60, worker)


def test_a_ray_that_does_not_start_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    before = {**os.environ}
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", Mock(side_effect=RuntimeError("no ports")))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(RuntimeError, match="no ports"):
        Cluster()
    assert list(tmp_path.iterdir()) == []
    names = {name for name in (*before, *os.environ) if name.startswith("RAY_AUTH")}
    assert [name for name in names if before.get(name) != os.environ.get(name)] == []
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "nowhere"))
    with pytest.raises(RequestError, match=r"nowhere cannot hold Ray's .* folder in RAY_TMPDIR"):
        Cluster()


def test_a_ray_without_tokens_is_neither_started_nor_joined(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    """Before 2.52 Ray ignores RAY_AUTH_MODE, before 2.59 its local clusters ask for no token."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(ray, "__version__", "2.58.1")
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("it was started"))
    for address in (None, "127.0.0.1:6379", "auto"):
        with pytest.raises(RequestError, match=r"this machine has Ray 2\.58\.1.* needs 2\.59"):
            Cluster(address)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_sent_is_found_where_each_node_has_it(monkeypatch: Patch) -> None:
    heads, own = (f"/tmp/{n}/r/session_1/runtime_resources/working_dir_files" for n in ("a", "b"))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{own}/_ray_pkg_12ab:/elsewhere")
    sent = f"{heads}/_ray_pkg_12ab/methods/mine.py"
    assert own_copy(sent) == f"{own}/_ray_pkg_12ab/methods/mine.py"
    for other in (f"{heads}/_ray_pkg_34cd/mine.py", "/shared/mine.py", "installed.module"):
        assert own_copy(other) == other


def test_a_driver_ends_when_its_head_is_gone(
    monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_cluster, "WATCH_SECONDS", 0.1)
    monkeypatch.setattr(ray_cluster, "LOST_SECONDS", 0.3)
    monkeypatch.setattr(os, "_exit", sys.exit)
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(SystemExit) as caught:
        ray_cluster._watch(address, threading.Event())
    assert caught.value.code == UNREACHABLE
    assert f"the Ray head at {address} is gone" in capsys.readouterr().err


def test_the_head_of_a_cluster_that_was_closed_may_go(monkeypatch: Patch) -> None:
    """Else a notebook that went on with another Ray would be ended for the first one's."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_cluster, "WATCH_SECONDS", 0.1)
    monkeypatch.setattr(ray_cluster, "_connect", lambda address: address)
    before = set(threading.enumerate())
    cluster = Cluster("127.0.0.1:1")
    (watch,) = set(threading.enumerate()) - before
    cluster.close()
    watch.join(10)
    assert not watch.is_alive()

"""Engines on toy runs: one Ray for all tests of this folder, since it takes seconds to start."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from carft_sweep.sweeps.engines.base import Engine, Failure, Job, Wait
from carft_sweep.sweeps.engines.local import InProcessEngine, LocalEngine
from carft_sweep.sweeps.engines.resources import RunRequirements
from tests.sweeps.toy_runs import ENTRY, Recorder


class Scripted(Recorder):
    """Does more when things happen: `started`, `alive`, `finished`, `failed`, or `failed_a` of the
    job a. A failed job is given again if `retries`."""

    def __init__(
        self, jobs: list[Job | Wait], *, retries: bool = False, **on: Callable[[Job], object]
    ) -> None:
        super().__init__(jobs)
        self.retries, self.on = retries, on

    def _happened(self, kind: str, job: Job) -> None:
        for name in (kind, f"{kind}_{job.digest}"):
            self.on.get(name, lambda _: None)(job)

    def started(self, job: Job, worker: str) -> None:
        super().started(job, worker)
        self._happened("started", job)

    def alive(self, job: Job) -> None:
        super().alive(job)
        self._happened("alive", job)

    def finished(self, job: Job, result: Mapping[str, Any]) -> None:
        super().finished(job, result)
        self._happened("finished", job)

    def failed(self, job: Job, failure: Failure) -> None:
        super().failed(job, failure)
        if self.retries:
            self.jobs.append(job)
        self._happened("failed", job)

    def order(self, *kinds: str) -> list[str]:
        """`started a`, ... of some kinds of event."""
        return [f"{kind} {digest}" for kind, digest in self.events if kind in kinds]


CORES = 2
"""Of Ray's first node, whatever this machine has."""
MakeJob = Callable[..., Job]
MakeEngine = Callable[..., Engine]


@pytest.fixture
def job(tmp_path: Path) -> MakeJob:
    def make(digest: str, **config: Any) -> Job:
        return Job(digest, f"run {digest}", config, 5, str(tmp_path / digest))

    return make


@pytest.fixture(scope="session")
def ray_nodes() -> Iterator[Any]:
    """Ray's own way to have several nodes on one machine; this process is connected to it."""
    from ray.cluster_utils import Cluster as Nodes

    from carft_sweep.sweeps.engines.ray_cluster import Cluster

    head = {"num_cpus": CORES, "include_dashboard": False, "object_store_memory": 100 * 2**20}
    nodes = Nodes(initialize_head=True, head_node_args=head)
    connected = Cluster(nodes.address)
    yield nodes
    connected.close()
    nodes.shutdown()


@pytest.fixture
def on_ray(ray_nodes: object) -> Iterator[MakeEngine]:
    """Makes Ray engines."""
    del ray_nodes
    from carft_sweep.sweeps.engines.ray_cluster import Cluster
    from carft_sweep.sweeps.engines.ray_tune import RayEngine

    def make(entry: str = ENTRY, *, need: RunRequirements | None = None, **options: Any) -> Engine:
        engine = RayEngine(Cluster(), need or RunRequirements(CORES), entry, **options)
        return made.enter_context(closing(engine))

    with ExitStack() as made:
        yield make


@pytest.fixture
def on_local() -> Iterator[MakeEngine]:
    def make(entry: str = ENTRY, **options: Any) -> Engine:
        return made.enter_context(closing(LocalEngine(entry, **options)))

    with ExitStack() as made:
        yield make


RAY = pytest.param("ray", marks=pytest.mark.xdist_group("ray"))
SLOW_RAY = pytest.param("ray", marks=[pytest.mark.slow, pytest.mark.xdist_group("ray")])


@pytest.fixture
def on_two_workers(on_local: MakeEngine) -> MakeEngine:
    """Makes local engines with two runs at once."""
    return functools.partial(on_local, devices=[None, None])


@pytest.fixture(params=["two_workers", RAY])
def make_for_two(request: pytest.FixtureRequest) -> MakeEngine:
    """Makes engines with room for two runs at once."""
    if request.param == "ray":
        return functools.partial(request.getfixturevalue("on_ray"), need=RunRequirements(1))
    made: MakeEngine = request.getfixturevalue("on_two_workers")
    return made


@pytest.fixture(params=["local", SLOW_RAY])
def supervised(request: pytest.FixtureRequest) -> MakeEngine:
    """Makes engines that supervise worker processes: Ray's actors hand on what theirs tell."""
    made: MakeEngine = request.getfixturevalue(f"on_{request.param}")
    return made


@pytest.fixture(params=["in process", "local", RAY])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """One engine of each kind."""
    if request.param == "in process":
        with closing(InProcessEngine(ENTRY)) as made:
            yield made
    else:
        yield request.getfixturevalue(f"on_{request.param}")()

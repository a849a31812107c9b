"""Which engine a sweep gets, and what is refused before anything starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.training import memory
from carft_sweep.carft_core.training.memory import RunCost
from carft_sweep.carft_core.training.numerics import CONTEXT_AT_MOST_MB
from carft_sweep.sweeps.engines import factory as choosing
from carft_sweep.sweeps.engines.factory import feasible_requirements, is_ray, make_engine
from carft_sweep.sweeps.engines.local import InProcessEngine, LocalEngine
from carft_sweep.sweeps.engines.resources import Gpu, Node
from carft_sweep.sweeps.spec.spec import SweepSpec, load_spec

MakeSpec = Callable[..., SweepSpec]
Keys = dict[str, Any]


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeSpec:
    """Makes sweeps of one trial, on a machine that the test names."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def make(machine: Node = Node("this machine", 8), **keys: Any) -> SweepSpec:  # noqa: B008
        monkeypatch.setattr(choosing, "this_machine", lambda: machine)
        file = tmp_path / "sweep.yaml"
        trial = {"algorithm": {"name": "car_ft"}}
        parameters = {"algorithm.kl_weight": {"values": [0.1]}}
        file.write_text(json.dumps({"name": "s", "trial": trial, "parameters": parameters, **keys}))
        return load_spec(file)

    return make


def gpu_node(cpus: int, *memory_mb: float | None) -> Node:
    """This machine with GPUs of so much memory."""
    gpus = [Gpu(size, bf16=True, name=f"GPU-{i}") for i, size in enumerate(memory_mb)]
    return Node("m", cpus, len(gpus)).with_gpus(gpus)


ONE_GPU, TWO_GPUS, FOUR_GPUS = (gpu_node(8, *[24_000.0] * gpus) for gpus in (1, 2, 4))


def test_auto_is_ray_where_there_is_a_cluster_which_is_not_named_in_vain(
    spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_ray(spec())
    assert is_ray(spec(engine="ray"))
    for keys in ({}, {"parallel": 1}):
        assert is_ray(spec(**keys), address="head:6379")
    assert not is_ray(spec(engine="local"), address="local")
    message = r"--address head:6379 .* engine is local; leave out one"
    with pytest.raises(RequestError, match=message):
        is_ray(spec(engine="local"), address="head:6379")
    auto, local = spec(), spec(engine="local")
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")  # is for every sweep of this shell
    assert is_ray(auto)
    assert not is_ray(auto, address="local")
    assert not is_ray(local)


MANY = {"seeds": 40}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a local engine is made with."""
    options: dict[str, Any] = {}
    monkeypatch.setattr(choosing, "LocalEngine", lambda **arguments: options.update(arguments))
    return options


@pytest.mark.parametrize(
    ("node", "keys", "devices", "threads", "by_memory"),
    [
        (Node("m", 8), {}, [None] * 8, 1, True),
        (Node("m", 8), {"seeds": 3}, [None] * 3, 2, True),
        (Node("m", 8), {"seeds": 1}, [None], None, False),
        (Node("m", 8), {"parallel": 1}, [None], None, False),
        (Node("m", 8), {"parallel": 3}, [None] * 3, 2, False),
        (Node("m", 8), {"resources": {"cpus": 3}}, [None] * 2, 3, True),
        (Node("m", 8), {"parallel": 1, "resources": {"cpus": 3}}, [None], 3, False),
        (Node("m", 8), {"parallel": 4, "resources": {"cpus": 8}}, [None], 8, False),
        (Node("m", 8), {"resources": {"gpus": "auto"}}, [None] * 8, 1, True),
        (ONE_GPU, {"parallel": 1}, [None], None, False),
        (ONE_GPU, {"resources": {"gpus": "auto"}}, ["GPU-0"] * 4, 2, True),
        (TWO_GPUS, {}, ["GPU-0", "GPU-1"], 4, False),
        (TWO_GPUS, {"parallel": 2, "resources": {"gpus": 0}}, ["", ""], 4, False),
        (TWO_GPUS, {"resources": {"gpus": 2}}, ["GPU-0,GPU-1"], None, False),
        (TWO_GPUS, {"resources": {"gpus": 0.5}}, ["GPU-0", "GPU-1"] * 2, 2, False),
        (TWO_GPUS, {"resources": {"gpus": "auto"}}, ["GPU-0", "GPU-1"] * 4, 1, True),
        (FOUR_GPUS, {"resources": {"gpus": 2}}, ["GPU-0,GPU-1", "GPU-2,GPU-3"], 4, False),
    ],
)
def test_runs_share_this_machine_evenly_and_each_gets_its_gpus_and_threads(
    spec: MakeSpec, made: Keys, node: Node, keys: Keys, devices: Any, threads: Any, by_memory: bool
) -> None:
    sweep = spec(node, **{**MANY, **keys})
    make_engine(sweep)
    assert (made["devices"], made["threads"]) == (devices, threads)
    assert (made["memory"] is not None) == by_memory
    need, at_once, _ = choosing.share_of_machine(sweep, node)
    assert (need.cpus, at_once) == (threads or 8, len(devices))


def test_gpus_auto_lets_as_many_share_one_as_its_memory_holds(
    spec: MakeSpec, made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for memory_mb, after, fits in ((24_000.0, 5_000.0, 4), (24_000.0, 15_000.0, 1), (None, 1.0, 1)):
        make_engine(spec(gpu_node(8, memory_mb), **MANY, resources={"gpus": "auto"}))
        assert made["memory"].holds("GPU-0") == 1
        cost = RunCost(round((after - CONTEXT_AT_MOST_MB) * 2**20), 0, 0, 0)
        monkeypatch.setattr(memory, "run_cost", lambda _, cost=cost: cost)
        made["memory"].learn(made["memory"].needs({"algorithm": "fine_tune"}))
        assert made["memory"].holds("GPU-0") == fits


def test_with_gpus_auto_ray_is_asked_for_a_share_that_the_smallest_gpu_has(
    spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = spec(engine="ray", resources={"gpus": "auto"})
    cases: list[tuple[list[tuple[float | None, ...]], float | None, float]] = [
        ([(80_000.0,)], 10_000.0, 0.25),  # no more than four
        ([(80_000.0,)], 30_000.0, 0.5),
        ([(80_000.0,), (24_000.0, 24_000.0)], 9_000.0, 0.5),
        ([(80_000.0, 24_000.0)], 20_000.0, 1.0),
        ([(80_000.0,), (None,)], 10_000.0, 1.0),  # it may be a slice of MIG
        ([(80_000.0,)], None, 1.0),
        ([(80_000.0,), ()], 30_000.0, 0.5),
        ([()], 10_000.0, 0.0),
    ]
    for sizes, peak_mb, gpus in cases:
        cost = None if peak_mb is None else RunCost(0, round(peak_mb * 2**20), 0, 0)
        monkeypatch.setattr(memory, "run_cost", lambda *_, cost=cost: cost)
        nodes = [replace(gpu_node(8, *of), name=str(number)) for number, of in enumerate(sizes)]
        assert feasible_requirements(sweep, nodes).gpus == gpus, (sizes, peak_mb)


def test_what_this_machine_does_not_have_is_refused_before_any_ray_is_started(
    spec: MakeSpec,
) -> None:
    cases: dict[str, dict[str, Any]] = {
        "1 CPU, 1 GPU; there are\n  this machine: 8": {"resources": {"gpus": 1}},
        "9 CPUs, 0 GPUs; there are\n  this machine: 8": {"resources": {"cpus": 9}},
        "1 CPU, 2 GPUs": {"engine": "ray", "resources": {"gpus": 2}},
    }
    for need, keys in cases.items():
        with pytest.raises(RequestError, match=f"one run needs {need}"):
            make_engine(spec(**keys))
    with pytest.raises(RequestError, match="fast: engine local has no such thing"):
        make_engine(spec(resources={"custom": {"fast": 1}}))


def test_engines_on_this_machine_are_made_without_starting_anything(spec: MakeSpec) -> None:
    with closing(make_engine(spec())) as engine:
        assert isinstance(engine, LocalEngine)
    with closing(make_engine(spec(engine="ray"), in_process=True)) as engine:
        assert isinstance(engine, InProcessEngine)


@pytest.mark.xdist_group("ray")
def test_a_cluster_is_asked_whether_its_nodes_serve_and_left_as_it_was(
    ray_nodes: Any, spec: MakeSpec, tmp_path: Path
) -> None:
    import ray

    from carft_sweep.sweeps.engines.ray_tune import RayEngine

    with closing(make_engine(spec(parallel=2), address=ray_nodes.address, home=tmp_path)) as engine:
        assert isinstance(engine, RayEngine)
    assert ray.is_initialized()
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.yaml"]
    with pytest.raises(RequestError, match="one run needs 1 CPU, 8 GPUs"):
        make_engine(spec(resources={"gpus": 8}), address=ray_nodes.address, home=tmp_path)

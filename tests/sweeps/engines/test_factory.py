"""Which engine a sweep gets, and what is refused before anything starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from carft_core.errors import RequestError
from sweeps.engines import factory as choosing
from sweeps.engines.factory import is_ray, make_engine
from sweeps.engines.local import InProcessEngine, LocalEngine
from sweeps.engines.resources import Node
from sweeps.spec.spec import SweepSpec, load_spec

MakeSpec = Callable[..., SweepSpec]


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


ONE_GPU, TWO_GPUS = Node("m", 8, 1), Node("m", 8, 2)


@pytest.mark.parametrize(
    ("machine", "keys", "options", "ray"),
    [
        (Node("m", 8), {}, {}, False),
        (ONE_GPU, {}, {}, False),
        (TWO_GPUS, {}, {}, True),
        (TWO_GPUS, {"parallel": 1}, {}, False),
        (TWO_GPUS, {"resources": {"gpus": 0}}, {}, False),
        (TWO_GPUS, {"engine": "local"}, {}, False),
        (ONE_GPU, {"resources": {"gpus": 0.5}}, {}, True),
        (Node("m", 8), {"parallel": 4}, {}, True),
        (Node("m", 8), {"engine": "ray"}, {}, True),
        (Node("m", 8), {}, {"address": "head:6379"}, True),
        (Node("m", 8), {"engine": "local"}, {"address": "head:6379"}, False),
    ],
)
def test_auto_is_ray_where_runs_can_share_a_cluster_or_this_machine(
    spec: MakeSpec, machine: Node, keys: dict[str, Any], options: dict[str, str], ray: bool
) -> None:
    assert is_ray(spec(machine, **keys), **options) is ray


def test_an_address_in_the_environment_counts_until_another_is_given(
    spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = spec()
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert is_ray(sweep)
    assert not is_ray(sweep, address="local")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"resources": {"gpus": 1}}, "one run needs 1 CPU, 1 GPU; there are\n  this machine: 8"),
        ({"resources": {"cpus": 9}}, "one run needs 9 CPUs, 0 GPUs; there are\n  this machine: 8"),
        ({"resources": {"custom": {"fast": 1}}}, "fast: engine local has no such thing"),
    ],
)
def test_the_local_engine_refuses_what_this_machine_does_not_have(
    spec: MakeSpec, keys: dict[str, Any], said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        make_engine(spec(**keys))


def test_a_request_that_this_machine_cannot_meet_is_refused_before_ray_is_started(
    spec: MakeSpec,
) -> None:
    with pytest.raises(RequestError, match="one run needs 1 CPU, 2 GPUs"):
        make_engine(spec(engine="ray", resources={"gpus": 2}))


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

    from sweeps.engines.ray_tune import RayEngine

    with closing(make_engine(spec(parallel=2), address=ray_nodes.address, home=tmp_path)) as engine:
        assert isinstance(engine, RayEngine)
    assert ray.is_initialized()
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.yaml"]
    with pytest.raises(RequestError, match="one run needs 1 CPU, 8 GPUs"):
        make_engine(spec(resources={"gpus": 8}), address=ray_nodes.address, home=tmp_path)

"""The doctor's look at a Ray cluster: one that is there, and those that are not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from carft_sweep.sweeps.doctor import services as cluster
from carft_sweep.sweeps.doctor.services import _node
from carft_sweep.sweeps.engines import ray_tokens
from carft_sweep.sweeps.submit.client import JOBS_VARIABLE
from tests.services.answering import Answer, Asked, answering
from tests.sweeps.doctor.findings import look, only

pytestmark = pytest.mark.xdist_group("ray")


def test_each_node_is_asked_whether_it_can_serve(ray_nodes: Any, tmp_path: Path) -> None:
    supply, token, node = look("ray.nodes", tmp_path, address=ray_nodes.address, nodes=True)
    assert [finding.level for finding in (supply, token, node)] == ["ok", "warning", "ok"], supply
    assert f"{ray_nodes.address} asks for no token" in token.message
    assert f"at {ray_nodes.address}: 1 node, 2 CPUs, 0 GPUs" in supply.message
    assert "takes no jobs" in supply.message  # it was started without a dashboard
    python = ".".join(str(part) for part in sys.version_info[:3])
    assert f"python {python}, torch " in node.message
    assert list(tmp_path.iterdir()) == []


def test_without_a_cluster_there_is_nothing_to_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "on this machine" in only(look("ray.cluster", tmp_path), "ok")
    with monkeypatch.context() as patch:
        patch.setattr(metadata, "version", lambda _: "2.58.0")
        assert "this machine has Ray 2.58.0" in only(look("ray.cluster", tmp_path), "wrong")
    assert look("ray.nodes", tmp_path, nodes=True) == []
    assert look("ray.cluster", tmp_path, address="lab:6379", nodes=True) == []


@pytest.mark.parametrize(
    ("address", "level", "said"),
    [
        ("127.0.0.1:1", "unreachable", "no Ray cluster at 127.0.0.1:1"),
        ("ray://lab:10001", "wrong", "cannot be a Ray client"),
    ],
)
def test_an_address_where_no_cluster_is_says_so(
    tmp_path: Path, address: str, level: Any, said: str
) -> None:
    assert said in only(look("ray.cluster", tmp_path, address=address), level)


def test_a_look_that_hangs_or_breaks_is_a_service_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(command: Any, **_: Any) -> Any:
        raise subprocess.TimeoutExpired(command, 1)

    def broken(command: Any, **_: Any) -> Any:
        return subprocess.CompletedProcess(command, 1, "", "a trace\nthe reason\n")

    monkeypatch.setattr(subprocess, "run", hang)
    assert "within 45 s" in only(look("ray.cluster", tmp_path, address="lab:6379"), "unreachable")
    monkeypatch.setattr(subprocess, "run", broken)
    told = only(look("ray.cluster", tmp_path, address="lab:6379"), "unreachable")
    assert "cannot be probed: the reason" in told


def test_nodes_that_differ_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = {"versions": {"torch": "2.8.0"}, "gpus": ["H100, 570"]}
    other = {**first, "versions": {"torch": "2.9.0"}}
    told = {
        "version": "2.60.0",
        "jobs": "10.0.0.1:8265",
        "token": True,
        "nodes": {name: {"cpus": 8, "gpus": 1} for name in "abc"},
        "problems": ["d: does not share the home"],
        "answers": {"a": first, "b": other, "c": {"failed": "the node died"}},
    }
    monkeypatch.setattr(cluster, "probe_cluster", lambda *_: told)
    supply = only(look("ray.cluster", tmp_path, address="lab:6379"), "ok")
    assert "3 nodes, 24 CPUs, 3 GPUs (a, b, c); takes jobs at 10.0.0.1:8265" in supply
    found = look("ray.nodes", tmp_path, address="lab:6379", nodes=True)
    levels = [finding.level for finding in found]
    assert levels == ["ok", "wrong", "ok", "ok", "warning", "unreachable"]
    said = "\n".join(finding.message for finding in found)
    assert "does not share the home" in said
    assert "b has torch 2.9.0, the first node 2.8.0" in said
    _, missing, *_ = _node("e", {**first, "versions": {"torch": "missing"}}, first)
    assert missing.message == "e has no torch"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Answer]]:
    """A job API that answers what it is told, by path."""
    answers = {"/api/version": Answer({"ray_version": "2.60.0", "version": "4"})}

    def answer(asked: Asked) -> Answer:
        lets_in = "authorization" in map(str.lower, asked.headers) or asked.path != "/api/jobs/"
        return answers.get(asked.path, Answer([]) if lets_in else Answer("", 401))

    reset = ray_tokens._read_anew
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x" * 32)
    reset()
    with answering(answer) as address:
        monkeypatch.setenv(JOBS_VARIABLE, f"{address}/")
        yield answers
    monkeypatch.delenv("RAY_AUTH_MODE")
    reset()


def test_the_job_api_is_asked_where_it_is_named(
    api: dict[str, Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "answers, Ray 2.60.0" in only(look("ray.jobs", tmp_path), "ok")
    api["/api/jobs/"] = Answer([])
    answers, is_open = look("ray.jobs", tmp_path)
    assert (answers.level, is_open.level) == ("ok", "warning")
    assert "takes jobs from whoever reaches it" in is_open.message
    api["/api/version"] = Answer({"ray_version": "2.51.0", "version": "4"})
    assert "the cluster has Ray 2.51.0" in only(look("ray.jobs", tmp_path), "wrong")
    api["/api/version"] = Answer({"ray_version": "2.60.0", "version": "4"})
    api["/api/jobs/"] = Answer("Unauthorized", 401)
    assert "Authentication required" in only(look("ray.jobs", tmp_path), "wrong")
    api["/api/version"] = Answer("", 503)
    assert "answers 503" in only(look("ray.jobs", tmp_path), "unreachable")
    monkeypatch.setenv(JOBS_VARIABLE, "head:6379")
    assert "give --address http://HOST:8265" in only(look("ray.jobs", tmp_path), "wrong")
    monkeypatch.delenv(JOBS_VARIABLE)
    assert look("ray.jobs", tmp_path) == []

"""The doctor's look at a Ray cluster: one that is there, and those that are not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from sweeps.doctor import cluster
from sweeps.doctor.cluster import _jobs, _node
from tests.sweeps.doctor.looked import look, only

pytestmark = pytest.mark.xdist_group("ray")


def test_each_node_is_asked_whether_it_can_serve(ray_nodes: Any, tmp_path: Path) -> None:
    supply, jobs, node, clock = look("ray.nodes", tmp_path, address=ray_nodes.address, nodes=True)
    assert [finding.level for finding in (supply, jobs, node, clock)] == ["ok"] * 4, supply
    assert f"at {ray_nodes.address}: 1 node, 2 CPUs, 0 GPUs" in supply.told
    assert "takes no jobs" in jobs.told  # it was started without a dashboard
    python = ".".join(str(part) for part in sys.version_info[:3])
    assert f"python {python}, torch " in node.told
    assert "agrees with ours" in clock.told
    assert list(tmp_path.iterdir()) == []


def test_without_a_cluster_there_is_nothing_to_ask(tmp_path: Path) -> None:
    assert "on this machine" in only(look("ray.cluster", tmp_path), "ok")
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
    assert "cannot be looked at: the reason" in told


def test_nodes_that_differ_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = {"versions": {"torch": "2.8.0"}, "gpus": ["H100, 570"], "now": 1.0}
    first |= {"asked": 0.5, "came": 1.5}
    other = {**first, "versions": {"torch": "2.9.0"}, "now": 100.0}
    told = {
        "version": "2.60.0",
        "jobs": None,
        "nodes": {name: {"cpus": 8, "gpus": 1} for name in "abc"},
        "problems": ["d: does not share the home"],
        "answers": {"a": first, "b": other, "c": {"failed": "the node died"}},
    }
    monkeypatch.delenv(cluster.API, raising=False)
    monkeypatch.setattr(cluster, "look", lambda *_: told)
    found = look("ray.nodes", tmp_path, address="lab:6379", nodes=True)
    levels = [finding.level for finding in found]
    assert levels == ["ok", "ok", "wrong", "ok", "ok", "ok", "warning", "wrong", "unreachable"]
    said = "\n".join(finding.told for finding in found)
    assert "3 nodes, 24 CPUs, 3 GPUs (a, b, c)" in said
    assert "does not share the home" in said
    assert "b has torch 2.9.0, the first node 2.8.0" in said
    assert "the clock of b is 98 s ahead of ours" in said
    _, missing, *_ = _node("e", {**first, "versions": {"torch": "missing"}}, first)
    assert missing.told == "e has no torch"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A job API that answers what it is told."""
    answer: dict[str, Any] = {"status": 200, "text": json.dumps({"ray_version": "2.60.0"})}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer["path"] = self.path
            self.send_response(answer["status"])
            self.end_headers()
            self.wfile.write(answer["text"].encode())

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv(cluster.API, f"http://127.0.0.1:{server.server_port}/")
    yield answer
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "text", "level", "said"),
    [
        (200, None, "ok", "answers, Ray 2.60.0"),
        (401, "Unauthorized", "wrong", "wants a token"),
        (403, "Forbidden", "wrong", "wants a token"),
        (404, "Not found", "warning", "answers 404"),
        (200, "<html>", "warning", "no job API at"),
    ],
)
def test_the_job_api_is_asked_for_its_version(
    api: dict[str, Any], status: int, text: str | None, level: str, said: str
) -> None:
    api.update({"status": status} | ({} if text is None else {"text": text}))
    (finding,) = _jobs(None)
    assert (finding.level, said in finding.told) == (level, True), finding
    assert api["path"] == "/api/version"


def test_where_nothing_listens_there_is_no_job_api(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cluster.API, raising=False)
    (finding,) = _jobs("127.0.0.1:1")
    assert finding.level == "warning"
    assert "http://127.0.0.1:1" in finding.told

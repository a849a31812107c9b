"""A Ray cluster: reachable, of our versions, its nodes, and its job API."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from sweeps.doctor.base import Asked, Check, Finding, ok, unreachable, warning, wrong
from sweeps.doctor.clock import agree
from sweeps.doctor.cluster_look import look
from sweeps.submission.address import VARIABLE, api_address

_SECONDS, _NODES_SECONDS = 45.0, 150.0


def _cluster(asked: Asked) -> Iterator[Finding]:
    if asked.address is None:
        yield ok("no cluster is named (--address, RAY_ADDRESS): runs execute on this machine")
        return
    if asked.nodes:
        return  # one look tells both
    told = look(asked.address, None, _SECONDS)
    yield _supply(asked.address, told)


def _nodes(asked: Asked) -> Iterator[Finding]:
    if asked.address is None or not asked.nodes:
        return
    told = look(asked.address, asked.home.path, _NODES_SECONDS)
    yield _supply(asked.address, told)
    for problem in told["problems"]:
        yield wrong(problem)
    for name, answer in told["answers"].items():
        yield from _node(name, answer, next(iter(told["answers"].values())))


def _supply(address: str, told: Mapping[str, Any]) -> Finding:
    nodes = told["nodes"]
    jobs = f"takes jobs at {told['jobs']}" if told["jobs"] else "takes no jobs: no dashboard"
    cpus, gpus = (sum(node[what] for node in nodes.values()) for what in ("cpus", "gpus"))
    return ok(
        f"Ray {told['version']} at {address}: {_count(len(nodes), 'node')}, "
        f"{_count(cpus, 'CPU')}, {_count(gpus, 'GPU')} ({', '.join(nodes)}); {jobs}"
    )


def _node(name: str, answer: Mapping[str, Any], first: Mapping[str, Any]) -> Iterator[Finding]:
    if "failed" in answer:
        yield unreachable(f"{name} does not answer: {answer['failed']}")
        return
    versions = answer["versions"]
    told = ", ".join(f"{package} {version}" for package, version in versions.items())
    gpus = "; ".join(answer["gpus"]) or "no GPU"
    yield ok(f"{name}: {told}, {gpus}")
    others = first.get("versions", versions)
    for package, version in versions.items():
        if version == "missing":
            yield wrong(f"{name} has no {package}")
        elif version != others[package]:
            yield warning(f"{name} has {package} {version}, the first node {others[package]}")
    yield agree(name, answer["now"], answer["asked"], answer["came"])


def _jobs(_: Asked) -> Iterator[Finding]:
    """What `submit` talks to, from wherever it is reached."""
    if not os.environ.get(VARIABLE):
        return
    from sweeps.submission.jobs_api import JobsApi

    api = JobsApi(api_address(None))
    version = api.ray_version()
    api.jobs()  # a token is wanted for these
    yield ok(f"the job API at {api.shown} answers, Ray {version}")


def _count(amount: float, what: str) -> str:
    return f"{amount:g} {what}{'' if amount == 1 else 's'}"


CHECKS = (
    Check(
        "ray.cluster",
        "the cluster at --address or RAY_ADDRESS: version, nodes, resources, dashboard",
        "start it (ray start --head), or mend the address; Python and Ray must be the cluster's",
        _cluster,
        seconds=_SECONDS + 15,
    ),
    Check(
        "ray.nodes",
        "with --nodes: each node sees the home, has our sources and like versions, its GPUs, clock",
        "mount the home under the same path, and install the same versions everywhere",
        _nodes,
        seconds=_NODES_SECONDS + 15,
    ),
    Check(
        "ray.jobs",
        "the job API at RAY_API_SERVER_ADDRESS, which submit talks to, and that it takes our token",
        "start the head with ray[default] and --dashboard-host, or mend RAY_API_SERVER_ADDRESS",
        _jobs,
        seconds=60.0,
    ),
)

"""A Ray cluster: reachable, of our versions, its nodes, and its job API."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

from sweeps.doctor.base import Asked, Check, Finding, ok, unreachable, warning, wrong
from sweeps.doctor.clock import agree
from sweeps.doctor.cluster_look import look

API = "RAY_API_SERVER_ADDRESS"
_SECONDS, _NODES_SECONDS = 45.0, 150.0
_HTTP_SECONDS = 5.0


def _cluster(asked: Asked) -> Iterator[Finding]:
    if asked.address is None:
        yield ok("no cluster is named (--address, RAY_ADDRESS): runs execute on this machine")
        return
    if asked.nodes:
        return  # one look tells both
    told = look(asked.address, None, _SECONDS)
    yield from _supply(asked.address, told)
    yield from _jobs(told["jobs"])


def _nodes(asked: Asked) -> Iterator[Finding]:
    if asked.address is None or not asked.nodes:
        return
    told = look(asked.address, asked.home.path, _NODES_SECONDS)
    yield from _supply(asked.address, told)
    yield from _jobs(told["jobs"])
    for problem in told["problems"]:
        yield wrong(problem)
    for name, answer in told["answers"].items():
        yield from _node(name, answer, next(iter(told["answers"].values())))


def _supply(address: str, told: Mapping[str, Any]) -> Iterator[Finding]:
    nodes = told["nodes"]
    cpus, gpus = (sum(node[what] for node in nodes.values()) for what in ("cpus", "gpus"))
    yield ok(
        f"Ray {told['version']} at {address}: {_count(len(nodes), 'node')}, "
        f"{_count(cpus, 'CPU')}, {_count(gpus, 'GPU')} ({', '.join(nodes)})"
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


def _jobs(dashboard: str | None) -> Iterator[Finding]:
    """The API that `submit` talks to: where the environment says, else where the cluster says."""
    place = os.environ.get(API, "").strip() or (f"http://{dashboard}" if dashboard else "")
    if not place:
        yield ok('the cluster takes no jobs: its head has no dashboard; only "submit" needs it')
        return
    request = urllib.request.Request(f"{place.rstrip('/')}/api/version", headers=_token())
    try:
        with urllib.request.urlopen(request, timeout=_HTTP_SECONDS) as answer:
            version = json.load(answer)["ray_version"]
    except urllib.error.HTTPError as error:
        yield _refused(place, error.code)
    except (OSError, ValueError, KeyError) as error:
        yield warning(
            f"no job API at {place} ({getattr(error, 'reason', error)}); only submit needs it",
            'start the head with pip install "ray[default]" and --dashboard-host 0.0.0.0, or name '
            f"the address in {API}",
        )
    else:
        yield ok(f"the job API at {place} answers, Ray {version}")


def _refused(place: str, status: int) -> Finding:
    if status in (401, 403):
        return wrong(
            f"the job API at {place} wants a token, and not the one that it got",
            "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_FILE or RAY_AUTH_TOKEN_PATH with the "
            "cluster's token",
        )
    return warning(f"{place} answers {status} to /api/version, as no job API does")


def _token() -> dict[str, str]:
    """Ray's own header, where its token authentication is on."""
    from ray._private.authentication.http_token_authentication import (
        get_auth_headers_if_auth_enabled,
    )

    return get_auth_headers_if_auth_enabled({})


def _count(amount: float, what: str) -> str:
    return f"{amount:g} {what}{'' if amount == 1 else 's'}"


CHECKS = (
    Check(
        "ray.cluster",
        "the cluster at --address or RAY_ADDRESS: versions, nodes, resources, job API, token",
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
)

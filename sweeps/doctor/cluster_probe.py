"""A probe of a Ray cluster, in a process of its own: Ray prints what it likes, and may hang.

`python -m carft_sweep.sweeps.doctor.cluster_probe ADDRESS [HOME]` prints JSON on its last line.
With a home each node is probed too.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.tracking.errors import ServiceUnreachable

NODE_SECONDS = 60.0
"""How long all nodes together may take to answer."""
_REFUSED, _UNREACHABLE = "refused", "unreachable"


def probe_cluster(address: str, home: Path | None, seconds: float) -> dict[str, Any]:
    """Probe the cluster. Raises RequestError and ServiceUnreachable as `Cluster` does, the latter
    also when there is no answer within `seconds`.
    """
    from carft_sweep.sweeps.spec.user_code import SOURCES_ROOT

    command = [sys.executable, "-m", __name__, address]
    command += [] if home is None else [str(home.absolute())]
    try:
        done = subprocess.run(
            command,
            cwd=SOURCES_ROOT.parent,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ServiceUnreachable(
            f"the Ray cluster at {address} does not answer within {seconds:g} s"
        ) from None
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        last = (done.stderr.strip() or "no reason given").splitlines()[-1]
        raise ServiceUnreachable(f"the Ray cluster at {address} cannot be probed: {last}")
    facts: dict[str, Any] = json.loads(lines[-1])
    if _REFUSED in facts:
        raise RequestError(facts[_REFUSED])
    if _UNREACHABLE in facts:
        raise ServiceUnreachable(facts[_UNREACHABLE])
    return facts


def _probe(address: str, home: Path | None) -> dict[str, Any]:
    import ray

    from carft_sweep.sweeps.engines.ray_cluster import Cluster
    from carft_sweep.sweeps.engines.ray_tokens import asks_for_token

    try:
        cluster = Cluster(address)
    except RequestError as error:
        return {_REFUSED: str(error)}
    except ServiceUnreachable as error:
        return {_UNREACHABLE: str(error)}
    try:
        facts = _facts(cluster, home)
        books = ray.get_runtime_context().gcs_address
    finally:
        cluster.close()
    return facts | {"token": asks_for_token(books)}


def _facts(cluster: Any, home: Path | None) -> dict[str, Any]:
    import ray
    from ray._private import worker

    nodes, here = cluster.nodes_by_id(), cast(Any, worker._global_node)
    facts: dict[str, Any] = {
        "version": ray.__version__,
        "jobs": here.webui_url or None,
        "nodes": {node.name: {"cpus": node.cpus, "gpus": node.gpus} for node in nodes.values()},
        "problems": [],
        "answers": {},
    }
    if home is not None:
        facts |= {"problems": _problems(nodes, home), "answers": _answers(nodes)}
    return facts


def _problems(nodes: Mapping[str, Any], home: Path) -> list[str]:
    """Return why nodes cannot serve, by the checks of `run`."""
    from carft_sweep.sweeps.engines.ray_cluster import check_nodes

    if not home.exists():
        return [f"{home} does not exist yet, so whether the nodes share it was not checked"]
    try:
        check_nodes(nodes, home)
    except RequestError as error:
        return [line.strip() for line in str(error).splitlines()[1:]]
    return []


def _answers(nodes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is installed on each node, by name, and its GPUs."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def facts() -> dict[str, Any]:
        # It travels whole, since it lies in a function: this package may not be there.
        import platform
        import subprocess
        from importlib import metadata

        versions: dict[str, str] = {"python": platform.python_version()}
        for name in ("torch", "ray", "open_clip_torch"):
            try:
                versions[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                versions[name] = "missing"
        try:
            query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
            shown = subprocess.run(query, capture_output=True, text=True, timeout=15, check=False)
            gpus = shown.stdout.splitlines() if shown.returncode == 0 else []
        except (OSError, subprocess.TimeoutExpired):
            gpus = []
        return {"versions": versions, "gpus": gpus}

    remote = ray.remote(num_cpus=0, max_retries=0)(facts)
    answers: dict[str, Any] = {}
    for identity, node in nodes.items():
        pinned = NodeAffinitySchedulingStrategy(identity, soft=False)
        task = remote.options(scheduling_strategy=pinned)
        try:
            answers[node.name] = ray.get(task.remote(), timeout=NODE_SECONDS)
        except (ray.exceptions.RayError, OSError) as error:
            answers[node.name] = {"failed": str(error).strip().splitlines()[-1]}
    return answers


if __name__ == "__main__":
    print(json.dumps(_probe(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else None)))  # noqa: T201

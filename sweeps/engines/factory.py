"""Which engine a sweep runs on, and whether what its runs need is there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from carft_core.errors import RequestError
from sweeps.engines.base import Engine
from sweeps.engines.local import InProcessEngine, LocalEngine
from sweeps.engines.resources import (
    Need,
    Node,
    need_of,
    peak_memory_mb,
    refusal,
    this_machine,
    too_little_memory,
)

if TYPE_CHECKING:
    from carft_core.config import TrialConfig
    from sweeps.engines.ray_cluster import Cluster
    from sweeps.spec.spec import SweepSpec


ADDRESS = "RAY_ADDRESS"


def choose(
    spec: SweepSpec,
    *,
    address: str | None = None,
    in_process: bool = False,
    home: Path | None = None,
) -> Engine:
    """The engine of a sweep, ready to run it: connected, and able to.

    `home` is the folder that a cluster's nodes must share and
    where memory that earlier runs took is looked up. Raises RequestError when a run needs what is
    not there, ServiceUnreachable when no Ray answers.
    """
    if in_process:
        return InProcessEngine(gpus=spec.resources.gpus, cpus=spec.resources.cpus)
    if not is_ray(spec, address=address):
        return _local(spec)
    return _ray(spec, address_of(address), home)


def is_ray(spec: SweepSpec, *, address: str | None = None) -> bool:
    """Whether the engine is ray: asked for, or `auto` finds a cluster or that runs can share this
    machine.
    """
    if spec.engine == "auto":
        return address_of(address) is not None or shares(spec, this_machine())
    return spec.engine == "ray"


def address_of(given: str | None) -> str | None:
    """Of the cluster to connect to: what is given, else RAY_ADDRESS; None (or `local`) for a Ray of
    our own on this machine.
    """
    address = given or os.environ.get(ADDRESS)
    return None if address in ("", "local") else address


def shares(spec: SweepSpec, machine: Node) -> bool:
    """Whether runs are to share this machine: GPUs for several, or the file asks for it."""
    gpus, parallel = spec.resources.gpus, spec.parallel
    if parallel is not None:
        return parallel > 1
    return (machine.gpus > 1 and gpus != 0) or (gpus is not None and 0 < gpus < 1)


def _local(spec: SweepSpec) -> Engine:
    asked, machine = spec.resources, this_machine()
    if asked.custom:
        raise RequestError(
            f"resources.custom: {', '.join(asked.custom)}: engine local has no such thing, only "
            "the nodes of a Ray cluster have; give --address or RAY_ADDRESS"
        )
    problem = refusal(Need(asked.cpus or 1, asked.gpus or 0), [machine])
    if problem is not None:
        raise RequestError(problem)
    return LocalEngine(timeout=spec.timeout, threads=asked.cpus, gpus=asked.gpus)


def _ray(spec: SweepSpec, address: str | None, home: Path | None) -> Engine:
    if address is None:  # before Ray is started for nothing
        _need(spec, [this_machine()], home)
    from sweeps.engines.ray_cluster import Cluster
    from sweeps.engines.ray_tune import RayEngine

    cluster = Cluster(address)
    try:
        supply = [this_machine()] if address is None else _able_nodes(cluster, spec, home)
        need = _need(spec, supply, home)
    except BaseException:
        cluster.close()
        raise
    return RayEngine(cluster, need, supply=supply, parallel=spec.parallel, timeout=spec.timeout)


def _able_nodes(cluster: Cluster, spec: SweepSpec, home: Path | None) -> list[Node]:
    """The nodes that could run it, once they have told that they can serve."""
    need = _need(spec, cluster.nodes(), None)
    able = {id_: node for id_, node in cluster.nodes_by_id().items() if node.fits(need)}
    if home is None:
        return list(able.values())
    from sweeps.engines.ray_cluster import check_nodes

    return list(check_nodes(able, home.absolute(), imports=spec.imports).values())


def _need(spec: SweepSpec, supply: Sequence[Node], home: Path | None) -> Need:
    """What one run takes. Raises RequestError when no node can ever give it."""
    need = need_of(spec.resources, supply, spec.parallel)
    problem = refusal(need, supply)
    if problem is None and home is not None and 0 < need.gpus < 1:
        peaks = [peak_memory_mb(home / "runs", config) for config in _some_configs(spec)]
        peak = max((peak for peak in peaks if peak is not None), default=None)
        problem = too_little_memory(need, supply, peak)
    if problem is not None:
        raise RequestError(problem)
    return need


def _some_configs(spec: SweepSpec) -> list[TrialConfig]:
    """Configs with the models and batches of the sweep, as far as they are known beforehand."""
    points = spec.points() if spec.method == "grid" else [{}]
    configs = [spec.config_for(point) for point in points]
    distinct = {(config.model, config.optim.batch_size): config for config in configs}
    return list(distinct.values())

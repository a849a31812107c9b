"""Which engine a sweep runs on, and whether what its runs need is there."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from carft_core.errors import RequestError
from sweeps.engines.base import Engine
from sweeps.engines.local import InProcessEngine, LocalEngine
from sweeps.engines.resources import (
    Node,
    RunRequirements,
    infeasible_reason,
    requirements_of,
    this_machine,
)

if TYPE_CHECKING:
    from sweeps.spec.spec import SweepSpec


ADDRESS = "RAY_ADDRESS"
logger = logging.getLogger(__name__)


def make_engine(
    spec: SweepSpec,
    *,
    address: str | None = None,
    in_process: bool = False,
    home: Path | None = None,
) -> Engine:
    """Make the engine of a sweep, connected and able to run it.

    `home` is the folder that a cluster's nodes must share. Raises RequestError when a run needs
    what is not there, ServiceUnreachable when no Ray answers.
    """
    if in_process:
        return InProcessEngine(gpus=spec.resources.gpus, cpus=spec.resources.cpus)
    if is_ray(spec, address=address):
        return _ray(spec, address_of(address), home)
    resources = spec.resources
    if resources.custom:
        raise RequestError(
            f"resources.custom: {', '.join(resources.custom)}: engine local has no such thing, "
            "only the nodes of a Ray cluster have; give --address or RAY_ADDRESS"
        )
    need = feasible_requirements(spec, [this_machine()])
    logger.debug("engine local: %s", need)
    return LocalEngine(timeout=spec.timeout, threads=resources.cpus, gpus=resources.gpus)


def is_ray(spec: SweepSpec, *, address: str | None = None) -> bool:
    """Whether the engine is ray: stated, or `auto` with a cluster or runs that can share this
    machine.
    """
    if spec.engine == "auto":
        return address_of(address) is not None or shares_machine(spec, this_machine())
    return spec.engine == "ray"


def address_of(given: str | None) -> str | None:
    """Return the address of the cluster: `given`, else RAY_ADDRESS; None (or `local`) for a Ray of
    our own on this machine.
    """
    address = given or os.environ.get(ADDRESS)
    return None if address in ("", "local") else address


def shares_machine(spec: SweepSpec, machine: Node) -> bool:
    """Whether runs are to share this machine: GPUs for several, or the file says so."""
    gpus, parallel = spec.resources.gpus, spec.parallel
    if parallel is not None:
        return parallel > 1
    return (machine.gpus > 1 and gpus != 0) or (gpus is not None and 0 < gpus < 1)


def feasible_requirements(spec: SweepSpec, supply: Sequence[Node]) -> RunRequirements:
    """Return what one run takes. Raises RequestError when no node can ever give it."""
    need = requirements_of(spec.resources, supply, spec.parallel)
    problem = infeasible_reason(need, supply)
    if problem is not None:
        raise RequestError(problem)
    return need


def _ray(spec: SweepSpec, address: str | None, home: Path | None) -> Engine:
    if address is None:  # before Ray is started for nothing
        feasible_requirements(spec, [this_machine()])
    from sweeps.engines.ray_cluster import Cluster, check_nodes
    from sweeps.engines.ray_tune import RayEngine

    cluster = Cluster(address)
    try:
        if address is None:
            supply = [this_machine()]
        else:
            need = feasible_requirements(spec, cluster.nodes())
            able = {id_: node for id_, node in cluster.nodes_by_id().items() if node.fits(need)}
            if home is not None:
                able = check_nodes(able, home.absolute(), imports=spec.imports)
            supply = list(able.values())
        need = feasible_requirements(spec, supply)
    except BaseException:
        cluster.close()
        raise
    logger.debug("engine ray at %s: %s on %d nodes", address, need, len(supply))
    return RayEngine(cluster, need, supply=supply, parallel=spec.parallel, timeout=spec.timeout)

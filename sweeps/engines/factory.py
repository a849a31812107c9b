"""Which engine a sweep runs on, and whether what its runs need is there."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.engines.base import Engine
from carft_sweep.sweeps.engines.local import InProcessEngine, LocalEngine, SharedMemory
from carft_sweep.sweeps.engines.ray_tokens import require_ray
from carft_sweep.sweeps.engines.resources import (
    GPU_SHARE,
    Hardware,
    Node,
    RunRequirements,
    devices_of,
    feasible,
    hardware_here,
    hardware_of,
    max_concurrent_runs,
    memory_for_runs_mb,
    memory_on_gpu_mb,
    requirements_of,
    sharing,
    this_machine,
)
from carft_sweep.sweeps.spec.settings import check_gpus
from carft_sweep.tracking.ownership import TRUST_OPTION

if TYPE_CHECKING:
    from carft_sweep.sweeps.home import Home
    from carft_sweep.sweeps.spec.spec import SweepSpec


ADDRESS = "RAY_ADDRESS"
logger = logging.getLogger(__name__)


def make_engine(
    spec: SweepSpec,
    *,
    address: str | None = None,
    in_process: bool = False,
    home: Path | None = None,
) -> Engine:
    """Return the engine of a sweep, connected and able to run it; `in_process` runs it without
    worker processes. `home` is the folder that a cluster's nodes must share. Raises RequestError
    when a run needs resources that no machine has, ServiceUnreachable when no Ray answers."""
    if in_process:
        gpus = spec.resources.gpus
        return InProcessEngine(gpus=None if gpus == "auto" else gpus, cpus=spec.resources.cpus)
    if is_ray(spec, address=address):
        return _ray(spec, address_of(address), home)
    return _local(spec, this_machine())


def is_ray(spec: SweepSpec, *, address: str | None = None) -> bool:
    """Return whether the engine is Ray: named so, or `auto` with a cluster's address. Raises
    RequestError where `address` names a cluster and the sweep file's engine is local."""
    if spec.engine == "local" and address not in (None, "", "local"):
        raise RequestError(
            f"--address {address} names a Ray cluster, and the engine is local; leave out one of "
            "the two: --address, or --engine local (engine: local in the file)"
        )
    return spec.engine == "ray" or (spec.engine == "auto" and address_of(address) is not None)


def address_of(given: str | None) -> str | None:
    """Return the cluster's address, `given` else RAY_ADDRESS; None (or `local`) to start a Ray."""
    address = given or os.environ.get(ADDRESS)
    return None if address in ("", "local") else address


def vet_address(address: str | None, home: Home) -> str | None:
    """Return the cluster's address that a home recorded, if the user names the same address. Raises
    RequestError if only the home names the address, since its owner would get Ray's token."""
    is_here = address in (None, "auto", "local")
    if is_here or home.is_trusted or address == os.environ.get(ADDRESS):
        return address
    raise RequestError(
        f"the Ray cluster {address} is named by the home {home.path} alone, and would be sent your "
        f"token: if it is yours, --address {address} (or {ADDRESS}, or {TRUST_OPTION}); --address "
        "local starts a Ray here"
    )


def share_of_machine(spec: SweepSpec, machine: Node) -> tuple[RunRequirements, int, bool]:
    """Return the share of this machine that each run of a sweep gets, the most runs side by side,
    and whether memory limits these further, by what a run is computed or seen to take.

    Without GPUs one run of one thread is executed for each core, at most as many as the sweep has;
    the other cores are divided among the runs (one run with several threads is slower than several
    with one). Raises RequestError for resources that this machine does not have.
    """
    resources, most = spec.resources, spec.most_at_once
    if resources.custom:
        raise RequestError(
            f"resources.custom: {', '.join(resources.custom)}: engine local has no such thing, "
            "only the nodes of a Ray cluster have; give --address or RAY_ADDRESS"
        )
    if most is None:
        # About as many as there are: a baseline may have several settings, or no seeds.
        most = len(spec.seeds) * (spec.trial_count + len(spec.baselines))
        is_known = machine.gpus or resources.gpus == 0
        if not is_known and hardware_here(None, None).device != "cpu":
            most = 1  # a GPU of another maker than NVIDIA, which one run uses at a time
    most = min(most, int(machine.cpus))
    need = feasible(requirements_of(resources, [machine], most), [machine])
    at_once = max_concurrent_runs(need, [machine], most)
    if at_once == 1 and resources.cpus is None:  # torch takes them all
        need = replace(need, cpus=machine.cpus)
    is_open = resources.gpus == "auto" if need.gpus else spec.parallel == "auto"
    return need, at_once, is_open and at_once > 1


def feasible_requirements(spec: SweepSpec, supply: Sequence[Node]) -> RunRequirements:
    """Return the resources of one run on Ray. Raises RequestError when no node can ever offer them.

    With `gpus: auto` a run requests 1/n of a GPU, where n of the sweep's largest runs fit on the
    smallest GPU of the nodes: Ray shares out GPUs and not their memory.
    """
    resources = spec.resources
    if resources.gpus == "auto":
        has_gpus = any(node.gpus >= 1 for node in supply)
        resources = resources.model_copy(update={"gpus": float(has_gpus)})
        whole = requirements_of(resources, supply, spec.most_at_once)
        able = [node for node in supply if node.fits(whole)]
        taken = largest_on_gpu_mb(spec, hardware_of(whole, able))
        least = min(sharing(able, taken).values(), default=1)
        resources = resources.model_copy(update={"gpus": check_gpus(has_gpus / least)})
    return feasible(requirements_of(resources, supply, spec.most_at_once), supply)


def largest_on_gpu_mb(spec: SweepSpec, hardware: Hardware) -> float | None:
    """Return the computed MiB that the largest run of a sweep takes of its GPU; None where those of
    a run, or the GPU, are unknown. Of an adaptive search a run in the middle of the space counts.
    """
    if hardware.room is None or not hardware.gpus:
        return None
    configs = [item.config for item in spec.baseline_configs()] + (
        [spec.typical_config()] if spec.is_adaptive else [*map(spec.config_for, spec.points())]
    )
    resolved = (hardware.resolve(config.for_seed(spec.seeds[0])) for config in configs)
    taken = [memory_on_gpu_mb(config.as_dict()) for config in resolved if config.algorithm.trains]
    known = [size for size in taken if size is not None]
    return max(known, default=None) if len(known) == len(taken) else None


def _local(spec: SweepSpec, machine: Node) -> Engine:
    resources = spec.resources
    need, at_once, by_memory = share_of_machine(spec, machine)
    logger.debug("engine local: %s, %d at once", need, at_once)
    gpus = None if resources.gpus == "auto" else resources.gpus
    if need.gpus and not (at_once == 1 and gpus is None and machine.gpus <= 1):
        gpus = need.gpus  # a run is spread over all GPUs that it sees: it must see its own alone
    devices = devices_of(gpus, machine, at_once)
    memory = None
    if by_memory and need.gpus:
        room = [GPU_SHARE * size for size in machine.gpu_memory_mb]
        if len(room) != len(machine.devices):  # not all sizes are known
            room = [0.0] * len(machine.devices)
        memory = SharedMemory(dict(zip(machine.devices, room, strict=True)), memory_on_gpu_mb)
    elif by_memory:
        memory = SharedMemory(dict.fromkeys(devices, memory_for_runs_mb()))
    threads = resources.cpus if at_once == 1 else int(need.cpus)
    return LocalEngine(devices=devices, memory=memory, timeout=spec.timeout, threads=threads)


def _ray(spec: SweepSpec, address: str | None, home: Path | None) -> Engine:
    require_ray()
    if address is None:  # before Ray is started for nothing
        feasible_requirements(spec, [this_machine()])
    from carft_sweep.sweeps.engines.ray_cluster import Cluster, check_nodes
    from carft_sweep.sweeps.engines.ray_tune import RayEngine

    cluster, left_out = Cluster(address), set[str]()
    try:
        if address is None:
            supply = [this_machine()]
        else:
            nodes = cluster.nodes_by_id()
            need = feasible_requirements(spec, [*nodes.values()])
            able = {id_: node for id_, node in nodes.items() if node.fits(need)}
            if home is not None:
                seen = check_nodes(able, home.absolute(), imports=spec.imports)
                left_out, able = able.keys() - seen.keys(), seen
            supply = list(able.values())
        need = feasible_requirements(spec, supply)
    except BaseException:
        cluster.close()
        raise
    logger.debug("engine ray at %s: %s on %d nodes", address, need, len(supply))
    return RayEngine(
        cluster,
        need,
        supply=supply,
        parallel=spec.most_at_once,
        timeout=spec.timeout,
        left_out=left_out,
    )

"""`carft-sweep check FILE`: validate a sweep file, and plan: what runs, how long, on what."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from carft_core.errors import RequestError
from sweeps.cli.parser import overrides
from sweeps.engines.factory import address_of, choose, is_ray
from sweeps.engines.resources import (
    Hardware,
    Need,
    Node,
    hardware_here,
    hardware_of,
    need_of,
    peak_memory_mb,
    refusal,
    slots,
    this_machine,
    too_little_memory,
)
from sweeps.home import Home, find_home
from sweeps.ledger.runs import Runs
from sweeps.plan.estimate import Plan, estimate, experience, make_plan, measure, measured
from sweeps.scheduler.progress import duration
from sweeps.spec.spec import SweepSpec, load_spec
from sweeps.spec.user_code import resolve
from tracking.comparison.spec import LEAVE_ONE_OUT

Say = Callable[[str], None]
_MIB = 2**20


def check_command(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command. Raises RequestError when the sweep can never be run as asked."""
    modules = resolve(arguments.imports, Path.cwd())
    spec = load_spec(arguments.file, overrides(arguments), modules)
    home = find_home(arguments.home)
    home.check()
    supply = _supply(spec, arguments, home)
    need, nodes = supply.need, supply.nodes
    plan = make_plan(spec, home, supply.hardware)
    plan.warnings += supply.warnings
    plan.at_once = supply.at_once
    _check_memory(plan, supply, home)
    _estimate(plan, spec, home, measuring=arguments.measure)
    if arguments.json:
        told = {**plan.as_dict(), "need": str(need), "nodes": [str(_has(node)) for node in nodes]}
        say(json.dumps(told, indent=1))
    else:
        for line in (*_lines(plan, spec), *_resource_lines(plan, need, nodes)):
            say(line)
    return 0


@dataclass(frozen=True)
class _Supply:
    """What one run takes and gets, and the machines that could give it."""

    need: Need
    nodes: Sequence[Node]
    hardware: Hardware
    at_once: int = 1
    """Runs side by side."""
    warnings: tuple[str, ...] = ()


def _supply(spec: SweepSpec, arguments: argparse.Namespace, home: Home) -> _Supply:
    """Raises RequestError when no machine can ever give what one run takes, ServiceUnreachable when
    the cluster is silent.
    """
    if not is_ray(spec, address=arguments.address):
        with closing(choose(spec, address=arguments.address)) as engine:  # or it is refused
            machine, hardware = this_machine(), engine.hardware
        cpus = spec.resources.cpus or machine.cpus  # torch takes them all
        return _Supply(Need(cpus, spec.resources.gpus or 0), [machine], hardware)
    address = address_of(arguments.address)
    # Without one only this machine: nothing is started to look.
    nodes, warnings = ([this_machine()], ()) if address is None else _nodes(address, spec, home)
    need = need_of(spec.resources, nodes, spec.parallel)
    refused = refusal(need, nodes)
    if refused is not None:
        raise RequestError(refused)
    at_once = max(1, slots(need, nodes, spec.parallel))
    return _Supply(need, nodes, hardware_of(need, nodes), at_once, warnings)


def _check_memory(plan: Plan, supply: _Supply, home: Home) -> None:
    """Raise RequestError when a share of a GPU cannot hold a run."""
    if plan.work:
        peak = peak_memory_mb(home.runs, plan.work[-1].config)
        refused = too_little_memory(supply.need, supply.nodes, peak)
        if refused is not None:
            raise RequestError(refused)


def _nodes(address: str, spec: SweepSpec, home: Home) -> tuple[list[Node], tuple[str, ...]]:
    """Of a cluster, when those that could hold a run have told that they can serve; and warnings.

    They are not asked while there is no home that they could share.
    """
    warnings: tuple[str, ...] = ()
    from sweeps.engines.ray_cluster import Cluster, check_nodes

    cluster = Cluster(address)
    try:
        nodes = cluster.nodes_by_id()
        need = need_of(spec.resources, list(nodes.values()), spec.parallel)
        able = {id_: node for id_, node in nodes.items() if node.fits(need)}
        if not home.path.exists():
            warnings = (
                f"{home.path} does not exist yet, so the nodes were not asked whether they share "
                "it; `run` asks them",
            )
        elif able:
            nodes |= check_nodes(able, home.path.absolute(), imports=spec.imports)
        return list(nodes.values()), warnings
    finally:
        cluster.close()


def _estimate(plan: Plan, spec: SweepSpec, home: Home, *, measuring: bool) -> None:
    known = experience(Runs(home.runs))
    first = next((work for work in plan.work if work.trains), None)
    if measuring and first is not None:
        if first.config.device.startswith("cuda") and not hardware_here(None, None).gpus:
            raise RequestError(
                "--measure trains on this machine, which has no GPU, and the runs get one; measure "
                "on a machine like theirs"
            )
        sample = measure(first.config, spec.seeds[0], threads=spec.resources.cpus)
        known = measured(sample)
    estimate(plan, known)
    place = next(
        path for path in (home.path.absolute(), *home.path.absolute().parents) if path.exists()
    )
    plan.free_mb = round(shutil.disk_usage(place).free / _MIB, 1)
    if plan.disk_mb is not None and plan.disk_mb > plan.free_mb:
        plan.warnings += (
            f"the disk of {home.path} has {plan.free_mb:.0f} MB free, the sweep needs about "
            f"{plan.disk_mb:.0f} MB; `carft-sweep clean` tells what can go",
        )


def _lines(plan: Plan, spec: SweepSpec) -> Iterator[str]:
    for warning in plan.warnings:
        yield f"! {warning}"
    seeds = "1 seed" if len(spec.seeds) == 1 else f"{len(spec.seeds)} seeds"
    yield f"{plan.sweep}: {plan.method}, {plan.trials} trials, {seeds}, {plan.runs} runs"
    yield from _search_lines(plan, spec)
    width = max((len(row["label"]) for row in plan.rows), default=0)
    for row in plan.rows:
        states = [f"{row[name]} {word}" for name, word in _WORDS.items() if row[name]]
        yield f"  {row['label']:<{width}}  {', '.join(states)}"
    if plan.unknown:
        yield f"  and {plan.unknown} runs at points that {plan.method} has yet to choose"
    if plan.to_confirm:
        yield f"  and {plan.to_confirm} runs that confirm what will be chosen, on fresh seeds"
    if plan.to_combine:
        names = ", ".join(f"{item.algorithm['name']} of {item.of.algorithm}" for item in spec.after)
        yield f"  and {plan.to_combine} made of runs that will be done: {names}"
    reused = f" ({plan.reused} reused)" if plan.reused else ""
    to_train = plan.to_train + plan.unknown + plan.to_confirm
    epochs = f"{'at most ' if plan.at_most else ''}{plan.epochs} epochs"
    yield (
        f"{plan.done} done already{reused}, {plan.to_evaluate} to evaluate only, "
        f"{to_train} to train ({epochs})"
    )
    if plan.work:
        yield from _time_lines(plan, spec)


def _search_lines(plan: Plan, spec: SweepSpec) -> Iterator[str]:
    """What decides how the search goes, and when it ends, besides its method."""
    goals = [f"{goal.goal} {goal.name}" for goal in spec.goals]
    yield f"  goal: {', '.join(goals)}"
    if plan.tasks:
        each = ", ".join(f"{task} {count} runs" for task, count in plan.tasks.items())
        yield f"  tasks by {spec.tasks}: {each}; settings are chosen for each apart"
    if plan.tasks and spec.selection.rule == LEAVE_ONE_OUT:
        beside = len(spec.cells) // len(plan.tasks) - 1
        yield f"  of each setting on each task {beside} more runs a seed leave out another domain"
    if spec.metric.target is not None:
        yield f"  ends when {spec.metric.name} has reached {spec.metric.target:g}"
    if spec.run_cap is not None:
        yield f"  run_cap: {spec.run_cap} trials"
    if spec.time_budget is not None:
        yield f"  time budget: {duration(spec.time_budget)} over all executions"
    if spec.try_first:
        yield f"  tries {len(spec.try_first)} given points first"
    if spec.early_terminate is not None:
        yield f"  stops trials early: {spec.early_terminate.type} on {spec.early_terminate.metric}"
    if spec.race_seeds is not None:
        race = spec.race_seeds
        yield f"  stops seeds early: after {race.after}, when worse by more than {race.margin:g}"


def _time_lines(plan: Plan, spec: SweepSpec) -> Iterator[str]:
    if plan.seconds is None or plan.wall_seconds is None:
        yield (
            "No run of this home tells how long this takes; --measure trains a few steps and "
            "tells it."
        )
        return
    about = "At most about" if plan.at_most else "About"
    wall = (
        "" if plan.at_once == 1 else f"; {duration(plan.wall_seconds)} with {plan.at_once} at once"
    )
    yield f"{about} {duration(plan.seconds)} of work{wall}, and {plan.disk_mb:g} MB of disk."
    yield f"  by {plan.measured}"
    if spec.time_budget is not None and plan.wall_seconds > spec.time_budget:
        yield f"  more than the time budget: the sweep ends after {duration(spec.time_budget)}"


def _resource_lines(plan: Plan, need: Need, nodes: Sequence[Node]) -> Iterator[str]:
    side_by_side = "one run at a time" if plan.at_once == 1 else f"{plan.at_once} runs at once"
    yield f"One run takes {need}; {side_by_side} on:"
    for node in nodes:
        yield f"  {node.name}: {_has(node)}"


def _has(node: Node) -> Need:
    return Need(node.cpus, node.gpus, node.custom)


_WORDS = {"done": "done", "evaluate": "to evaluate", "train": "to train"}

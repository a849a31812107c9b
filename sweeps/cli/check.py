"""`carft-sweep check FILE`: validate a sweep file, and say what runs, how long, on what."""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

from carft_sweep.carft_core.files import format_size
from carft_sweep.carft_core.testing import check_own_methods
from carft_sweep.sweeps.cli import Emit
from carft_sweep.sweeps.cli.parser import overrides
from carft_sweep.sweeps.engines import factory
from carft_sweep.sweeps.engines.ray_tokens import require_ray
from carft_sweep.sweeps.engines.resources import (
    Hardware,
    Node,
    RunRequirements,
    hardware_of,
    max_concurrent_runs,
    requirements_of,
    sharing,
    this_machine,
)
from carft_sweep.sweeps.home import Home, find_home
from carft_sweep.sweeps.ledger.runs import RunStore
from carft_sweep.sweeps.ledger.status import best_points
from carft_sweep.sweeps.plan import gpu_cost
from carft_sweep.sweeps.plan.estimate import SweepEstimate, estimate_sweep, timed_runs
from carft_sweep.sweeps.scheduler.progress import duration
from carft_sweep.sweeps.space import RANDOM_TRIALS
from carft_sweep.sweeps.spec.spec import SweepSpec, load_spec
from carft_sweep.tracking.comparison.wise_ft_curve import WISE
from carft_sweep.tracking.errors import counted


def check_command(arguments: argparse.Namespace, emit: Emit) -> None:
    """Run the `check` command. Raises RequestError when the sweep can never be run as written, or
    an algorithm or merge of the user's own breaks a law."""
    home = find_home(arguments.home, trust=arguments.trust_home)
    best_of = partial(best_points, home)
    spec = load_spec(arguments.file, overrides(arguments), arguments.imports, best_of=best_of)
    home.check()
    warnings = check_own_methods(spec.typical_config().model.name)
    supply = _supply(spec, arguments.address, home, arguments.gpu)
    estimate = estimate_sweep(spec, home, supply.hardware)
    estimate.add_times(timed_runs(RunStore(home.runs)))
    estimate.at_once = supply.at_once
    estimate.warnings += (*warnings, *_obstacle_lines(estimate), *supply.warnings)
    estimate.warnings += tuple(_disk_warnings(estimate, home))
    gpu = [*_gpu_lines(estimate, supply.hardware, arguments.gpu), *_mixed_lines(supply, spec)]
    if arguments.json:
        nodes = [str(_resources(node)) for node in supply.nodes]
        plain = {**estimate.as_dict(), "need": str(supply.need), "nodes": nodes, "gpu": gpu}
        emit(json.dumps(plain, indent=1))
    else:
        emit("\n".join((*_estimate_lines(estimate, spec), *_resource_lines(supply, spec), *gpu)))


@dataclass(frozen=True)
class _Supply:
    """What one run takes and gets, and the machines that could give it."""

    need: RunRequirements
    nodes: Sequence[Node]
    hardware: Hardware
    at_once: int = 1
    """Runs side by side."""
    by_memory: bool = False
    """Whether memory may hold fewer than `at_once`."""
    warnings: tuple[str, ...] = ()


def _supply(spec: SweepSpec, given_address: str | None, home: Home, gpu: str | None) -> _Supply:
    """Return the resources that a run takes and that machines offer, where this machine counts as
    one with the GPU `gpu` if given. Raises RequestError when no machine can ever offer enough for
    one run, ServiceUnreachable when the cluster does not answer."""
    if gpu is not None:
        gpus = spec.resources.gpus
        count = max(1, math.ceil(gpus)) if isinstance(gpus, float) else 1
        machine = replace(this_machine(), name=f"this machine with {gpu}", gpus=count)
        need = requirements_of(spec.resources, [machine])
        # With `auto` runs share a GPU as far as it holds them, and any may have all of it.
        part = replace(need, gpus=1.0) if gpus == "auto" else need
        return _Supply(need, [machine], gpu_cost.hardware_with(gpu, part))
    if not factory.is_ray(spec, address=given_address):
        machine = this_machine()
        need, at_once, by_memory = factory.share_of_machine(spec, machine)
        with closing(factory.make_engine(spec, address=given_address)) as engine:
            hardware = engine.hardware
        return _Supply(need, [machine], hardware, at_once, by_memory)
    address = factory.address_of(given_address)
    # Without an address only this machine: nothing is started to look.
    nodes, warnings = ([this_machine()], ()) if address is None else _nodes(address, spec, home)
    need = factory.feasible_requirements(spec, nodes)
    at_once = max(1, max_concurrent_runs(need, nodes, spec.most_at_once))
    return _Supply(need, nodes, hardware_of(need, nodes), at_once, warnings=warnings)


def _nodes(address: str, spec: SweepSpec, home: Home) -> tuple[list[Node], tuple[str, ...]]:
    """Return the nodes of a cluster, and warnings. The nodes that are large enough for a run are
    asked whether they can serve, unless the home does not exist yet."""
    require_ray()
    from carft_sweep.sweeps.engines.ray_cluster import Cluster, check_nodes

    warnings: tuple[str, ...] = ()
    with closing(Cluster(address)) as cluster:
        nodes = cluster.nodes_by_id()
        need = requirements_of(spec.resources, list(nodes.values()), spec.most_at_once)
        able = {id_: node for id_, node in nodes.items() if node.fits(need)}
        if not home.path.exists():
            warnings = (
                f"{home.path} does not exist yet, so the nodes were not asked whether they share "
                "it; `run` asks them",
            )
        elif able:
            seen = check_nodes(able, home.path.absolute(), imports=spec.imports)
            refused = able.keys() - seen.keys()
            nodes = {id_: node for id_, node in (nodes | seen).items() if id_ not in refused}
        return list(nodes.values()), warnings


def _obstacle_lines(estimate: SweepEstimate) -> Iterator[str]:
    """Yield a description of each obstacle to a verdict, with the remedy and the remedy's time."""
    each = estimate.seconds_of_a_run
    for obstacle in estimate.obstacles:
        time = "" if each is None else duration(obstacle.runs * each / estimate.at_once)
        yield obstacle.describe(time)


def _estimate_lines(estimate: SweepEstimate, spec: SweepSpec) -> Iterator[str]:
    for warning in estimate.warnings:
        yield f"! {warning}"
    counts = {"trial": estimate.trials, "seed": len(spec.seeds), "run": estimate.runs}
    words = ", ".join(counted(count, word) for word, count in counts.items())
    yield f"{estimate.sweep}: {estimate.method}, {words}"
    yield from _search_lines(estimate, spec)
    width = max((len(row["label"]) for row in estimate.rows), default=0)
    for row in estimate.rows:
        states = [f"{row[name]} {word}" for name, word in _WORDS.items() if row[name]]
        yield f"  {row['label']:<{width}}  {', '.join(states)}"
    if estimate.unknown:
        also = "and " if estimate.rows else ""
        yield f"  {also}{estimate.unknown} runs at points that {estimate.method} has yet to choose"
    if estimate.to_confirm:
        yield f"  and {estimate.to_confirm} runs that confirm what will be chosen, on fresh seeds"
    if estimate.to_combine:
        names = ", ".join(f"{item.algorithm['name']} of {item.of.algorithm}" for item in spec.after)
        yield f"  and {estimate.to_combine} made of runs that will be done: {names}"
    reused = f" ({estimate.reused} reused)" if estimate.reused else ""
    to_train = estimate.to_train + estimate.unknown + estimate.to_confirm
    epochs = f"{'at most ' if estimate.at_most else ''}{estimate.epochs} epochs"
    evaluated = f"{estimate.to_evaluate} to evaluate only"
    yield f"{estimate.done} done already{reused}, {evaluated}, {to_train} to train ({epochs})"
    if estimate.work:
        yield from _time_lines(estimate, spec)
    if estimate.disk_bytes:
        yield f"The runs will keep at most about {format_size(estimate.disk_bytes)} on disk."
        yield "  by the size of the model's weights; trial.keep.weights=false keeps no models"
    if estimate.power:
        yield f"  {estimate.power}"
    yield from estimate.published_zero_shot


def _search_lines(estimate: SweepEstimate, spec: SweepSpec) -> Iterator[str]:
    """Yield lines on the search besides its method: space, goals, tasks, limits, early stops."""
    if estimate.points is not None:
        points = "1 point" if estimate.points == 1 else f"{estimate.points} different points"
        yield (
            f"  the space has {points}: the other trials repeat them and train nothing; "
            f"`--set method=grid` tries each once"
        )
    if spec.trial_count <= (first := RANDOM_TRIALS.get(spec.method, 0)):
        yield f"! the first {first} trials of {spec.method} are random: a higher run_cap searches"
    alphas = [getattr(m, "alphas", ()) for m in spec.typical_config().merges if m.name == WISE]
    if len(spec.trained_algorithms) > 1 and 0 < sum(map(len, alphas)) < 5:
        yield "! so few alphas of wise_ft say little of its curve: 0.1 to 0.9 train nothing more"
    yield f"  goal: {', '.join(f'{goal.goal} {goal.name}' for goal in spec.goals)}"
    if spec.tasks is not None:
        tasks = ", ".join(map(str, spec.task_values))
        yield f"  tasks by {spec.tasks}: {tasks}; settings are chosen for each apart"
    if spec.metric.target is not None:
        yield f"  ends when {spec.metric.name} has reached {spec.metric.target:g}"
    if spec.run_cap is not None:
        yield f"  run_cap: {spec.run_cap} trials"
    if spec.time_budget is not None:
        yield f"  time budget: {duration(spec.time_budget)} over all executions"
    if spec.try_first:
        source = f"points of {spec.try_first_from}" if spec.try_first_from else "given points"
        yield f"  tries {len(spec.try_first)} {source} first"
    if spec.early_terminate is not None:
        rule, epochs = spec.early_terminate, spec.typical_config().optim.epochs
        yield f"  stops trials early: {rule.type} on {rule.metric}"
        if epochs is not None and rule.min_epochs >= epochs:
            yield f"    none: {rule.type} first looks after epoch {rule.min_epochs} of {epochs}"
    if spec.race_seeds is not None:
        race = spec.race_seeds
        yield f"  stops seeds early: after {race.after}, when worse by more than {race.margin:g}"


def _time_lines(estimate: SweepEstimate, spec: SweepSpec) -> Iterator[str]:
    if estimate.seconds is None or estimate.wall_seconds is None:
        yield (
            "How long this takes is unknown: this home has no run with the same model, family, "
            "batch size and device."
        )
        return
    about = "At most about" if estimate.at_most else "About"
    wall = f"; {duration(estimate.wall_seconds)} with {estimate.at_once} at once"
    yield f"{about} {duration(estimate.seconds)} of work{wall if estimate.at_once > 1 else ''}."
    yield "  by earlier runs with the same model, family, batch size and device"
    if spec.time_budget is not None and estimate.wall_seconds > spec.time_budget:
        yield f"  more than the time budget: the sweep ends after {duration(spec.time_budget)}"


def _disk_warnings(estimate: SweepEstimate, home: Home) -> Iterator[str]:
    path = home.path.absolute()
    place = next(folder for folder in (path, *path.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if estimate.disk_bytes > free:
        needed, left = format_size(estimate.disk_bytes), format_size(free)
        yield f"the runs will keep about {needed} on disk, and {left} is free in {place}"


def _resource_lines(supply: _Supply, spec: SweepSpec) -> Iterator[str]:
    at_once = "one run at a time" if supply.at_once == 1 else f"{supply.at_once} runs at once"
    if supply.by_memory:
        at_once = f"up to {at_once}, as far as memory holds them,"
    yield f"One run takes {supply.need}; {at_once} on:"
    for node in supply.nodes:
        sizes = ", ".join(_gb(size) for size in sorted({*node.gpu_memory_mb}))
        yield f"  {node.name}: {_resources(node)}{sizes and f'; {sizes} a GPU'}"
    of_gpus = max_concurrent_runs(replace(supply.need, cpus=0), supply.nodes)
    fit = max_concurrent_runs(supply.need, supply.nodes)
    if spec.resources.cpus is not None and supply.need.gpus and supply.at_once == fit < of_gpus:
        yield f"! the GPUs hold {of_gpus} runs, and the cores {fit}: set a smaller resources.cpus"


def _mixed_lines(supply: _Supply, spec: SweepSpec) -> Iterator[str]:
    """Yield a warning if a run may land on GPUs of different sizes: how many runs each holds."""
    able = [node for node in supply.nodes if supply.need.gpus and node.fits(supply.need)]
    sizes = {node.name: min(node.gpu_memory_mb, default=0.0) for node in able}
    if len({*sizes.values()}) < 2:
        return
    held = sharing(able, factory.largest_on_gpu_mb(spec, supply.hardware))
    each = [f"{held[name]} on {_gb(size)} ({name})" for name, size in sizes.items()]
    types = [node.gpu_type for node in able if node.gpu_type]
    kind = min(types, default="accelerator_type:H100")
    yield (
        f"! the GPUs differ, and batches and shares are for the smallest: of the largest run one "
        f"holds {', '.join(each)}; --set resources.custom='{{{kind}: 0.001}}' keeps runs on a kind"
    )


def _gb(memory_mb: float) -> str:
    return format_size(int(memory_mb * 2**20)) if memory_mb else "an unknown size"


def _gpu_lines(estimate: SweepEstimate, hardware: Hardware, name: str | None) -> Iterator[str]:
    """Yield how much memory and time the runs take on the GPU that they get, or would get."""
    room = hardware.room
    lines = [] if room is None else [*gpu_cost.memory_lines(estimate.work, room, hardware.gpus)]
    if room is None or not lines:
        if name is not None:
            yield f"No run that is to be trained would take a {name} (device)."
        return
    each = "" if hardware.gpus == 1 else f"each of its {hardware.gpus} GPUs"
    gpu = " ".join(filter(None, [each, name])) or "its GPU"
    yield (
        f"Memory of a run on {gpu}, computed from the shapes of its tensors; "
        f"{format_size(room)} are there for them:"
    )
    for line in lines:
        yield f"  {line}"
    gpus = hardware.gpus
    time = None if name is None else gpu_cost.time_on(name, estimate.work, hardware.cpus, gpus)
    if time is None:
        return
    yield (
        f"About {duration(time.computing)} of {'one' if gpus == 1 else gpus} {name}, at "
        f"{gpu_cost.UTILISATION:.0%} of its peak: an estimate by operations"
    )
    if time.decoding:
        limit = "decoding" if time.decoding > time.computing else "the GPU"
        yield (
            f"  beside {duration(time.decoding)} to decode the images, {gpu_cost.DECODED} a second "
            f"and core: {limit} is the limit"
        )


def _resources(node: Node) -> RunRequirements:
    return RunRequirements(node.cpus, node.gpus, node.custom)


_WORDS = {"done": "done", "evaluate": "to evaluate", "train": "to train"}

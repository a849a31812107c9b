"""Points of a space: which parameters are active, grids, draws, and the trial configs of points."""

from __future__ import annotations

import copy
import graphlib
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from carft_sweep.carft_core.algorithms import ALGORITHMS
from carft_sweep.carft_core.config.trial import TrialConfig, trial_config
from carft_sweep.sweeps.space.distributions import Distribution, Params, canonical

MAX_POINTS = 10_000


def applies(name: str, algorithm: str) -> bool:
    """Return whether the field `name` has an effect with `algorithm`. An algorithm has its own
    `algorithm.*` fields alone, and `optim.*` only if it trains."""
    section, *fields = name.split(".")
    if section == "algorithm" and fields[0] != "name":
        return fields[0] in ALGORITHMS[algorithm].model_fields
    return section != "optim" or ALGORITHMS[algorithm].trains


def is_active(distribution: Distribution, point: Mapping[str, Any]) -> bool:
    """Return whether a parameter varies at `point`, which has the parameters that it depends on:
    its conditions must be met, and the algorithm, if varied, must have the field."""
    algorithm = point.get("algorithm.name")
    is_known = isinstance(algorithm, str) and algorithm in ALGORITHMS
    if is_known and not applies(distribution.name, str(algorithm)):
        return False
    return all(condition.is_met(point) for condition in distribution.when)


def topological_order(space: Sequence[Distribution]) -> list[Distribution]:
    """Return the distributions, `algorithm.name` first, and each after those that its conditions
    name. Raises graphlib.CycleError when conditions form a circle."""
    by_name = {item.name: item for item in space}
    declared = sorted(by_name, key=lambda name: name != "algorithm.name")
    sorter = graphlib.TopologicalSorter(dict.fromkeys(declared, ()))
    for item in space:
        sorter.add(item.name, *(on.name for on in item.when if on.name in by_name))
    return [by_name[name] for name in sorter.static_order()]


def sample_point(space: Sequence[Distribution], choose: Callable[[Distribution], Any]) -> Params:
    """Return a point, in declared order: of each active parameter the value `choose` returns."""
    point: Params = {}
    for distribution in topological_order(space):
        if is_active(distribution, point):
            point[distribution.name] = choose(distribution)
    return {item.name: point[item.name] for item in space if item.name in point}


def grid(space: Sequence[Distribution]) -> list[Params]:
    """Return every combination once with its active parameters, the first parameter slowest. Raises
    ValueError when a distribution has infinitely many values, or the grid has too many points."""
    axes = _axes(space)
    expanded = _expanded(topological_order(space), axes, {})
    points = [*itertools.islice(expanded, MAX_POINTS + 1)]
    if len(points) > MAX_POINTS:
        raise ValueError(f"make a grid of more than {MAX_POINTS} points; use random or tpe")
    places = {name: {canonical(v): i for i, v in enumerate(axis)} for name, axis in axes.items()}

    def rank(point: Params) -> list[int]:
        return [places[name][canonical(point[name])] if name in point else 0 for name in places]

    points.sort(key=rank)
    return [{name: point[name] for name in axes if name in point} for point in points]


def grid_size(space: Sequence[Distribution], most: int) -> int:
    """Return the number of points of a grid, at most `most`. Raises ValueError when a distribution
    has infinitely many values."""
    expanded = _expanded(topological_order(space), _axes(space), {})
    return sum(1 for _ in itertools.islice(expanded, most))


def _axes(space: Sequence[Distribution]) -> dict[str, Sequence[Any]]:
    axes = {item.name: item.grid_values() for item in space}
    if None in axes.values():
        raise ValueError("a grid takes parameters with listed values")
    return {name: axis for name, axis in axes.items() if axis is not None}


def _expanded(
    space: Sequence[Distribution], axes: Mapping[str, Sequence[Any]], point: Params
) -> Iterator[Params]:
    """Yield `point` extended by each combination of the values in `axes` (parameter -> its values)
    of the active parameters of `space`, which is in topological order."""
    if not space:
        yield point
        return
    first, rest = space[0], space[1:]
    if not is_active(first, point):
        yield from _expanded(rest, axes, point)
        return
    for value in axes[first.name]:
        yield from _expanded(rest, axes, {**point, first.name: value})


def fields_of(point: Mapping[str, Any], algorithm: str) -> Params:
    """Return the part of `point` whose fields have an effect with `algorithm`."""
    return {name: value for name, value in point.items() if applies(name, algorithm)}


SOBOL_BITS = 30


def draw_point(
    space: Sequence[Distribution], number: Callable[[str], float], fixed: Mapping[str, Any]
) -> Params:
    """Return a point: of each active parameter its value in `fixed`, else its quantile at
    `number(name)`, which is in [0, 1]."""
    return sample_point(
        space,
        lambda item: fixed[item.name] if item.name in fixed else item.quantile(number(item.name)),
    )


def hashed(seed: int, point: int, name: str) -> float:
    """Return a number in (0, 1) for the parameter `name` of a point, the same on every machine. It
    depends on no other parameter, so that adding a parameter does not change the others' values."""
    digest = hashlib.sha256(f"{seed}:{point}:{name}".encode()).digest()
    return ((int.from_bytes(digest[:8], "big") >> 12) + 0.5) / (1 << 52)


def sobol(seed: int, point: int, names: Sequence[str]) -> dict[str, float]:
    """Return element number `point` of a scrambled Sobol sequence: name -> a number in [0, 1)."""
    from scipy.stats.qmc import Sobol

    sequence = Sobol(len(names), scramble=True, bits=SOBOL_BITS, seed=seed)
    if point:  # scipy cannot go forward by nothing
        sequence.fast_forward(point)
    return dict(zip(names, map(float, sequence.random(1)[0]), strict=True))


def config_at(trial: Mapping[str, Any], params: Mapping[str, Any]) -> TrialConfig:
    """Return the config of the file's section `trial` at the point `params` (dotted). If the
    algorithm is a parameter, only the fields that it has are used. Raises InvalidConfig."""
    name = params.get("algorithm.name")
    if not isinstance(name, str) or name not in ALGORITHMS:
        return trial_config(_placed(trial, params))
    own = {**_algorithm(trial, name), "name": name}
    return trial_config(_placed({**trial, "algorithm": own}, fields_of(params, name)))


def baseline_at(
    trial: Mapping[str, Any], baseline: Mapping[str, Any], params: Mapping[str, Any]
) -> TrialConfig:
    """Return the config of a baseline at the point `params` (dotted). `baseline` holds `name`,
    fields of its algorithm, and dotted ones of `optim`; fields of the trial's algorithm that the
    baseline's has too are taken over. Raises InvalidConfig."""
    name = str(baseline["name"])
    start = {**trial, "algorithm": {**_algorithm(trial, name), "name": name}}
    own = baseline_fields(baseline) | baseline_params(baseline, params)
    return trial_config(_placed(start, own))


def baseline_fields(baseline: Mapping[str, Any]) -> Params:
    """Return the fields that a baseline fixes: dotted field -> value, without its name."""
    fields = ((name, value) for name, value in baseline.items() if name != "name")
    return {name if "." in name else f"algorithm.{name}": value for name, value in fields}


def baseline_params(baseline: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a point for fields that a baseline has and does not fix."""
    fixed = {"algorithm.name", *baseline_fields(baseline)}
    own = fields_of(params, str(baseline["name"]))
    return {name: own[name] for name in own if ".".join(name.split(".")[:2]) not in fixed}


def _algorithm(trial: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the fields that the trial fixes for its algorithm and the algorithm `name` has too."""
    given, known = trial.get("algorithm"), ALGORITHMS[name].model_fields
    fields = given if isinstance(given, Mapping) else {}
    return {field: fields[field] for field in fields if field in known}


def _placed(trial: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the nested `trial` with each dotted field of `params` in its section."""
    nested = copy.deepcopy(dict(trial))
    for name, value in params.items():
        *sections, field = name.split(".")
        place: Any = nested
        for section in sections:
            place = place.setdefault(section, {}) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[field] = value
    return nested

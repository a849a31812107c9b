"""Whether the parts of a sweep file go together."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from carft_core.algorithms import ALGORITHMS
from carft_core.config import field_names
from carft_core.errors import InvalidConfig, Route, unknown
from sweeps.space.distributions import (
    Choice,
    Dimension,
    IntRange,
    Law,
    Params,
    StepRange,
    applies,
    canonical,
    grid,
    grid_size,
    listed,
)
from sweeps.space.parameters import MAX_VALUES, dimension
from sweeps.space.points import baseline_at, config_at
from sweeps.space.sampling import ends, rounded
from sweeps.spec.after import check_after
from sweeps.spec.document import Draft, validated
from sweeps.spec.objectives import early_terminate, goals, race_seeds, ranked_by
from sweeps.spec.settings import (
    METHOD_ALIASES,
    METHODS,
    RUN_CAP,
    Metric,
    Report,
    Resources,
    Retries,
    Settings,
    expand_fresh_seeds,
)
from sweeps.spec.space_checks import TrialSpace
from sweeps.spec.tasks import cells_of_tasks, check_tasks, values

MOST_SHOWN = 20
_ROUTE: Route = ("try_first",)


def try_first(draft: Draft, dimensions: Sequence[Dimension], trials: int) -> tuple[Params, ...]:
    """The points by dotted field, with the space's own values; what is wrong is reported.

    `trials`: how many trials the sweep has.
    """
    given = draft.get(_ROUTE)
    if given in (None, []):
        return ()
    if not isinstance(given, list):
        message = f"must be a list of points such as [{{optim.lr: 1e-4}}], got {repr(given)[:80]}"
        draft.report(_ROUTE, message)
        return ()
    if draft.get(("method",)) in (None, "grid"):
        draft.report(_ROUTE, "does not go with grid, which tries every point; leave it out")
        return ()
    if len(given) > trials:
        draft.report(_ROUTE, f"has {len(given)} points, and run_cap allows {trials} trials in all")
    points = [_point(draft, dimensions, item, (*_ROUTE, i)) for i, item in enumerate(given)]
    seen: set[str] = set()
    for index, point in enumerate(points):
        key = json.dumps(point, sort_keys=True)
        if point and key in seen:
            draft.report((*_ROUTE, index), "stands in the list twice")
        seen.add(key)
    return tuple(points)


def _point(draft: Draft, dimensions: Sequence[Dimension], item: object, route: Route) -> Params:
    if not isinstance(item, Mapping) or not item:
        message = f"must be a mapping of parameters to values, got {repr(item)[:80]}"
        draft.report(route, message)
        return {}
    aliases = draft.mapping(("aliases",))
    known = {dimension.name: dimension for dimension in dimensions}
    given: Params = {}
    for key, value in item.items():
        name = str(aliases.get(key, key))
        if name not in known:
            # A parameter that is itself wrong is reported where it stands.
            if name not in draft.mapping(("parameters",)):
                draft.report((*route, key), _no_parameter(name, known))
        elif name in given:
            draft.report((*route, key), f"gives {name} a second time")
        else:
            given[name] = _own_value(draft, known[name], value, (*route, key))
    for name in given:
        other = _switched_off(known[name], given)
        if other is not None:
            message = f"{name} does not vary where {other} is {given[other]}"
            draft.report(route, message)
    return {name: given[name] for name in known if name in given}


def _switched_off(dimension: Dimension, point: Params) -> str | None:
    """The other field of a point with whose value this parameter does not vary."""
    algorithm = point.get("algorithm.name")
    if isinstance(algorithm, str) and not applies(dimension.name, algorithm):
        return "algorithm.name"
    unmet = [item.name for item in dimension.when if item.name in point and not item.is_met(point)]
    return unmet[0] if unmet else None


def _no_parameter(name: str, known: Mapping[str, Dimension]) -> str:
    if name in field_names():
        return f"does not vary; the parameters are {', '.join(known) or 'none'}"
    return unknown("parameter", name, known)


def _own_value(draft: Draft, dimension: Dimension, value: object, route: Route) -> Any:
    """The value as the space holds it; outside of it, it is reported."""
    if isinstance(dimension, Choice):
        for own in dimension.values:
            if canonical(own) == canonical(value):
                return own
        shown = ", ".join(map(canonical, dimension.values[:MOST_SHOWN]))
        draft.report(route, f"must be one of {shown}, got {repr(value)[:80]}")
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        draft.report(route, f"must be a number, got {repr(value)[:80]}")
        return None
    wrong = _outside(dimension, value)
    if wrong is not None:
        draft.report(route, f"{wrong}, got {value}")
        return None
    if isinstance(dimension, Law):
        return rounded(value, dimension.q)
    return int(value) if isinstance(dimension, IntRange) else float(value)


def _outside(dimension: Dimension, value: float) -> str | None:
    if isinstance(dimension, Choice):
        return None
    low, high = ends(dimension) if isinstance(dimension, Law) else (dimension.low, dimension.high)
    if not low <= value <= high:
        return f"must be from {low:g} to {high:g}"
    if isinstance(dimension, Law) and value != rounded(value, dimension.q):
        return f"must be a multiple of {dimension.q:g}"
    if isinstance(dimension, IntRange) and (value - dimension.low) % dimension.step:
        return f"must be {dimension.low} and a multiple of {dimension.step}"
    if isinstance(dimension, StepRange):
        index = round((value - dimension.low) / dimension.step)
        if value != dimension.at(index):
            return f"must be {dimension.low:g} and a multiple of {dimension.step:g}"
    return None


MAX_POINTS = 10_000
METHODS_OF_SEARCH = (*(name for name in METHODS if name != "grid"), *METHOD_ALIASES)
_SECTIONS: Mapping[str, type[BaseModel]] = {
    "report": Report,
    "resources": Resources,
    "retries": Retries,
}
_APART = ("metric", "metrics", "early_terminate", "race_seeds", "try_first")
"""Settings that are checked with what they depend on."""


@dataclass(frozen=True)
class Parts:
    """The validated parts of a sweep file."""

    settings: Settings
    """Those that depend on others are filled in."""
    goals: tuple[Metric, ...]
    dimensions: tuple[Dimension, ...]
    baselines: tuple[Mapping[str, Any], ...]
    trial: Mapping[str, Any]


def checked(draft: Draft) -> Parts:
    """Validate a normalised draft. Raises InvalidConfig with every mistake, by line."""
    settings = _settings(draft)
    _fixed_and_varied(draft)
    space = TrialSpace(draft, _dimensions(draft))
    space.check()
    found = goals(draft, space)
    baselines = _baselines(draft, space)
    if settings is not None:
        check_after(draft, settings, space, baselines)
    _method(draft, space)
    check_tasks(draft, space.dimensions, settings)
    late = _late(draft, settings, space, found[0] if found else None)
    draft.check()
    if settings is None:
        raise TypeError("settings are missing, and no mistake was reported")
    return Parts(settings.model_copy(update=late), found, space.dimensions, baselines, space.trial)


def _settings(draft: Draft) -> Settings | None:
    method = draft.get(("method",))
    if isinstance(method, str) and method in METHOD_ALIASES:
        plain = METHOD_ALIASES[method]
        draft.warnings.append(f"{draft.place(('method',)).text}: method {method} runs as {plain}")
    keys = [field.alias or name for name, field in Settings.model_fields.items()]
    given = {key: draft.data[key] for key in keys if key in draft.data and key not in _APART}
    for key, cls in _SECTIONS.items():
        if key == "retries" and not isinstance(given.get(key, {}), Mapping):
            continue  # the short form, which is wrong: normalising leaves no other
        given[key] = validated(draft, cls, draft.mapping((key,)), (key,))
        if given[key] is None:
            del given[key]
    if given.get("confirm_seeds") is None:
        given.pop("confirm_seeds", None)
    else:
        given["confirm_seeds"] = expand_fresh_seeds(given["confirm_seeds"], given.get("seeds", [0]))
    settings = validated(draft, Settings, given, ())
    if settings is None:
        return None
    _disjoint(draft, settings)
    if settings.engine == "local" and (settings.parallel or 1) > 1:
        message = (
            "the local engine has one run at a time; leave it out, say parallel: 1, or engine: ray"
        )
        draft.report(("parallel",), message)
    return settings


def _disjoint(draft: Draft, settings: Settings) -> None:
    """What confirms a choice has seeds that the choice has not seen."""
    for index, seed in enumerate(settings.confirm_seeds):
        if seed in settings.seeds:
            message = (
                f"{seed} is one of seeds, by which settings are chosen; "
                f"take seeds from {max(settings.seeds) + 1} on, or say how many"
            )
            draft.report(("confirm_seeds", index), message)


def _late(
    draft: Draft,
    settings: Settings | None,
    space: TrialSpace,
    goal: Metric | None,
) -> dict[str, Any]:
    """The settings that depend on others, by name."""
    # With wrong settings no number of seeds or trials is known; then nothing is reported of them.
    seeds = len(settings.seeds) if settings else 1 << 32
    trials = (settings.run_cap or RUN_CAP) if settings else 1 << 32
    name = settings.tasks if settings else None
    tasks = values(space.dimensions, name)
    # A point is tried on every task: that is none of its fields.
    free = [item for item in space.dimensions if not tasks or item.name != name]
    each = len(cells_of_tasks(name, tasks, settings.selection)) if settings else 1
    points: tuple[Params, ...] = try_first(draft, free, -(-trials // max(1, each)))
    return {
        **(
            {"report": ranked_by(draft, settings.report, space.dimensions, name)}
            if settings
            else {}
        ),
        "early_terminate": early_terminate(draft, goal),
        "race_seeds": race_seeds(draft, seeds),
        "try_first": points,
    }


def _dimensions(draft: Draft) -> tuple[Dimension, ...]:
    def report(name: str, route: Route, message: str) -> None:
        draft.report(("parameters", name, *route), message)

    found = [
        dimension(name, data, functools.partial(report, name))
        for name, data in draft.mapping(("parameters",)).items()
    ]
    return tuple(item for item in found if item is not None)


def _fixed_and_varied(draft: Draft) -> None:
    for name, data in draft.mapping(("parameters",)).items():
        route = ("trial", *name.split("."))
        if isinstance(data, Mapping) and "when" in data:
            continue  # what it is where it does not vary
        if draft.get(route) is not None:
            other = draft.place(("parameters", name)).text
            draft.report(route, f"is fixed here and varied at {other}; keep one of the two")


def _method(draft: Draft, space: TrialSpace) -> None:
    """A grid of listed values, or a search of something."""
    method = draft.get(("method",))
    if method in (None, "grid"):
        _grid(draft, space)
        return
    # Parameters that are wrong are told as such; those whose conditions never hold are none.
    none = not space.dimensions and not (draft.is_wrong and draft.mapping(("parameters",)))
    if method in METHODS_OF_SEARCH and none:
        draft.report(("method",), "searches parameters, and there are none; vary one, or use grid")


def _baselines(draft: Draft, space: TrialSpace) -> tuple[Mapping[str, Any], ...]:
    given = draft.get(("baselines",))
    if not isinstance(given, list):
        if given is not None:
            draft.report(("baselines",), f"must be a list of algorithms, got {repr(given)[:80]}")
        return ()
    right: dict[str, Mapping[str, Any]] = {}
    for index, item in enumerate(given):
        route: Route = ("baselines", index)
        baseline = _baseline(draft, space, item, route)
        if baseline is None:
            continue
        key = json.dumps(baseline, sort_keys=True)
        if key in right:
            draft.report(route, f"{baseline['name']} stands in the list twice")
        right[key] = baseline
    return tuple(right.values())


def _baseline(
    draft: Draft, space: TrialSpace, item: object, route: Route
) -> Mapping[str, Any] | None:
    fields = {"name": item} if isinstance(item, str) else item
    if not isinstance(fields, Mapping):
        draft.report(
            route, f"must be an algorithm's name or {{name: ..., ...}}, got {repr(item)[:80]}"
        )
        return None
    name = fields.get("name")
    if not isinstance(name, str) or name not in ALGORITHMS:
        inner = route if isinstance(item, str) else (*route, "name")
        draft.report(inner, unknown("algorithm", name, ALGORITHMS))
        return None
    if name in space.algorithms:
        draft.report(route, f"{name} is what the trials run; a baseline is another algorithm")
        return None
    try:
        baseline_at(space.trial, fields, {})
    except InvalidConfig as error:
        for mistake in error.problems:
            if mistake.path[0] == "merges" and mistake not in space.problems:
                draft.report(route, mistake.message)
        own = [mistake for mistake in error.problems if mistake.path[0] == "algorithm"]
        for mistake in own:
            draft.report((*route, *mistake.path[1:]), mistake.message)
    return fields


def _grid(draft: Draft, space: TrialSpace) -> None:
    """Listed values, not too many, and a valid config at every point."""
    for dimension_ in space.dimensions:
        route = ("parameters", dimension_.name)
        if isinstance(dimension_, IntRange) and dimension_.count > MAX_VALUES:
            message = f"has {dimension_.count} values, more than {MAX_VALUES} for a grid"
            draft.report(route, message)
            return
        if listed(dimension_) is None:
            if not isinstance(dimension_, Law):  # of which the space reports it
                message = "a grid wants values, or min, max and q; else use random or tpe"
                draft.report(route, message)
            return
    size = grid_size(space.dimensions, MAX_POINTS)
    if size > MAX_POINTS:
        message = f"make a grid of {size} points, more than {MAX_POINTS}; use random or tpe"
        draft.report(("parameters",), message)
    if draft.is_wrong:
        return
    for point in grid(space.dimensions):
        try:
            config_at(space.trial, point)
        except InvalidConfig as error:
            draft.report(("parameters",), f"at {point}: {error.problems[0]}")

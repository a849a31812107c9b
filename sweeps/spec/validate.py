"""Whether the keys of a sweep file go together, and with the trial that they vary."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from carft_core.algorithms import ALGORITHMS, Soup
from carft_core.config import TrialConfig, field_names
from carft_core.errors import InvalidConfig, Route, unknown
from sweeps.space.distributions import (
    Categorical,
    Distribution,
    IntUniform,
    Parametric,
    Params,
    SteppedUniform,
    canonical,
    rounded,
)
from sweeps.space.parameters import MAX_VALUES, parse_parameter
from sweeps.space.points import applies, baseline_at, config_at, grid, grid_size
from sweeps.spec.document import SpecDocument, validated_in_part
from sweeps.spec.normalize import KEYS
from sweeps.spec.objectives import check_goals, early_terminate, report_of
from sweeps.spec.settings import RUN_CAP, After, Settings
from sweeps.spec.space_checks import TrialSpace
from sweeps.spec.tasks import cells_of_tasks, check_tasks, task_values

MAX_POINTS = 10_000
MOST_SHOWN = 20
logger = logging.getLogger(__name__)


def validate(document: SpecDocument) -> dict[str, Any]:
    """Check a normalised file and return the fields of its SweepSpec.

    Raises InvalidConfig with every mistake, by line.
    """
    settings = _settings(document)
    _check_fixed_and_varied(document)
    space = TrialSpace(document, _parameters(document))
    space.check()
    check_goals(document, settings, space)
    baselines = _baselines(document, space)
    _check_after(document, settings, space, baselines)
    _check_method(document, settings, space)
    check_tasks(document, space.space, settings)
    fields = dict(settings) | {
        "metric": settings.goals[0],
        "report": report_of(document, settings, space.space),
        "early_terminate": early_terminate(document, settings),
        "try_first": _try_first(document, settings, space.space),
        "parameters": space.space,
        "baselines": baselines,
        "trial": space.trial,
    }
    document.raise_errors()
    logger.debug("%d parameters, algorithms %s", len(space.space), ", ".join(space.algorithms))
    return fields


def _settings(document: SpecDocument) -> Settings:
    """Validate the plain keys; a key that is wrong is reported and takes its default."""
    keys = [field.alias or name for name, field in Settings.model_fields.items()]
    given = {key: document.data[key] for key in keys if document.data.get(key) is not None}
    given.pop("early_terminate", None)  # which depends on the trial as well
    return validated_in_part(document, Settings, given)


def _parameters(document: SpecDocument) -> list[Distribution]:
    space = []
    for name, data in document.mapping(("parameters",)).items():
        try:
            space.append(parse_parameter(name, data))
        except InvalidConfig as error:
            for problem in error.problems:
                document.add_error(("parameters", name, *problem.path), problem.message)
    return space


def _check_fixed_and_varied(document: SpecDocument) -> None:
    for name, data in document.mapping(("parameters",)).items():
        route = ("trial", *name.split("."))
        if isinstance(data, Mapping) and "when" in data:
            continue  # what it is where it does not vary
        if document.get(route) is not None:
            other = document.place(("parameters", name)).text
            document.add_error(
                route, f"is set here and also listed under parameters ({other}); remove one of them"
            )


def _check_method(document: SpecDocument, settings: Settings, space: TrialSpace) -> None:
    """Report a grid without end, and a search of nothing."""
    if document.is_wrong(("method",)):
        return
    if settings.method == "grid":
        _check_grid(document, space)
    elif not space.space and not document.is_wrong(("parameters",)) and {*document.data} <= {*KEYS}:
        message = "searches parameters, and there are none; vary one, or use grid"
        document.add_error(("method",), message)


def _check_grid(document: SpecDocument, space: TrialSpace) -> None:
    """Report values without end, too many points, and points that make no valid config."""
    for item in space.space:
        route = ("parameters", item.name)
        if isinstance(item, IntUniform) and item.count > MAX_VALUES:
            message = f"has {item.count} values, more than {MAX_VALUES} for a grid"
            document.add_error(route, message)
            return
        if item.grid_values() is None:
            if not isinstance(item, Parametric):  # which is reported with the space
                message = "a grid takes values, or min, max and q; else use random or tpe"
                document.add_error(route, message)
            return
    size = grid_size(space.space, MAX_POINTS)
    if size > MAX_POINTS:
        message = f"make a grid of {size} points, more than {MAX_POINTS}; use random or tpe"
        document.add_error(("parameters",), message)
    if document.has_errors:
        return
    for point in grid(space.space):
        try:
            config_at(space.trial, point)
        except InvalidConfig as error:
            document.add_error(("parameters",), f"at {point}: {error.problems[0]}")


def _baselines(document: SpecDocument, space: TrialSpace) -> tuple[Mapping[str, Any], ...]:
    given = document.get(("baselines",))
    if not isinstance(given, list):
        if given is not None:
            message = f"must be a list of algorithms, got {repr(given)[:80]}"
            document.add_error(("baselines",), message)
        return ()
    right: dict[str, Mapping[str, Any]] = {}
    for index, item in enumerate(given):
        baseline = _baseline(document, space, item, ("baselines", index))
        if baseline is None:
            continue
        key = json.dumps(baseline, sort_keys=True)
        if key in right:
            document.add_error(("baselines", index), f"{baseline['name']} is in the list twice")
        right[key] = baseline
    return tuple(right.values())


def _baseline(
    document: SpecDocument, space: TrialSpace, item: object, route: Route
) -> Mapping[str, Any] | None:
    fields = {"name": item} if isinstance(item, str) else item
    if not isinstance(fields, Mapping):
        message = f"must be an algorithm's name or {{name: ..., ...}}, got {repr(item)[:80]}"
        document.add_error(route, message)
        return None
    name = fields.get("name")
    if not isinstance(name, str) or name not in ALGORITHMS:
        inner = route if isinstance(item, str) else (*route, "name")
        document.add_error(inner, unknown("algorithm", name, ALGORITHMS))
        return None
    if name in space.algorithms:
        message = f"{name} is what the trials run; a baseline is another algorithm"
        document.add_error(route, message)
        return None
    try:
        baseline_at(space.trial, fields, {})
    except InvalidConfig as error:
        for problem in error.problems:
            if problem.path[0] == "merges" and problem not in space.problems:
                document.add_error(route, problem.message)
            elif problem.path[0] == "algorithm":
                document.add_error((*route, *problem.path[1:]), problem.message)
    return fields


def _check_after(
    document: SpecDocument,
    settings: Settings,
    space: TrialSpace,
    baselines: Sequence[Mapping[str, Any]],
) -> None:
    """Report every soup that cannot be made, at the value that prevents it."""
    for index, item in enumerate(settings.after):
        route: Route = ("after", index)
        if item in settings.after[:index]:
            document.add_error(route, "is in the list twice")
            continue
        soup = _soup(document, space, item, route)
        members = _members(document, space, item, baselines, route)
        if soup is None or members is None:
            continue
        if not members.algorithm.keeps_shape:
            message = f"{item.of.algorithm} gives models of another shape than the zero-shot one"
            document.add_error((*route, "of", "algorithm"), message)
        if not members.keep.weights:
            message = f"{soup.name} (after) is made of the runs' weights, so they must be kept"
            document.add_error(("trial", "keep", "weights"), message)
        if members.follows_seed:
            message = (
                "data.split_seed: seed gives each seed a split of its own, so a soup would be "
                "validated on images that some of its runs were trained on"
            )
            document.add_error(route, message)
        if item.of.settings == "selected" and len(settings.seeds) < soup.least_members:
            message = (
                f"{soup.name} is made of {soup.least_members} runs or more, and a setting has as "
                f"many as there are seeds: {len(settings.seeds)}; give more seeds, or say "
                "of: {algorithm: " + item.of.algorithm + ", settings: all}"
            )
            document.add_error(route, message)


def _soup(
    document: SpecDocument, space: TrialSpace, item: After, route: Route
) -> type[Soup] | None:
    """Return the class of the soup, unless something is wrong with it."""
    soups = sorted(name for name, cls in ALGORITHMS.items() if issubclass(cls, Soup))
    name, place = item.algorithm.get("name"), (*route, "algorithm")
    cls = ALGORITHMS.get(name) if isinstance(name, str) else None
    if cls is None:
        document.add_error((*place, "name"), unknown("soup", name, soups))
    elif not issubclass(cls, Soup):
        message = f"{name} is not made of other runs; after takes {', '.join(soups)}"
        document.add_error((*place, "name"), message)
    elif "members" in item.algorithm:
        message = "are the runs that `of` names; leave it out, or name the soup in baselines"
        document.add_error((*place, "members"), message)
    else:
        try:
            baseline_at(space.trial, item.algorithm, {})
        except InvalidConfig as error:
            for problem in error.problems:
                if problem.path[0] == "algorithm":
                    document.add_error((*route, *problem.path), problem.message)
        return cls
    return None


def _members(
    document: SpecDocument,
    space: TrialSpace,
    item: After,
    baselines: Sequence[Mapping[str, Any]],
    route: Route,
) -> TrialConfig | None:
    """Return the config of the runs that it is made of, but for what varies; None without any."""
    name, place = item.of.algorithm, (*route, "of", "algorithm")
    played: dict[str, Mapping[str, Any]] = {one: {"name": one} for one in space.algorithms}
    played |= {str(baseline["name"]): baseline for baseline in baselines}
    if name not in played:
        document.add_error(place, unknown("algorithm of this sweep", name, played))
    elif not ALGORITHMS[name].trains:
        message = f"{name} trains nothing, so there is nothing to make a soup of"
        document.add_error(place, message)
    else:
        try:
            return baseline_at(space.trial, played[name], {})
        except InvalidConfig:  # reported at its own place
            return None
    return None


_TRY_FIRST: Route = ("try_first",)


def _try_first(
    document: SpecDocument, settings: Settings, space: Sequence[Distribution]
) -> tuple[Params, ...]:
    """Read the points by dotted field, with the space's own values; report what is wrong."""
    points = settings.try_first
    if not points:
        return ()
    if settings.method == "grid":
        document.add_error(_TRY_FIRST, "does not go with grid, which tries every point")
        return ()
    # A point is tried on every task: the task is none of its fields.
    free = [item for item in space if item.name != settings.tasks]
    cells = cells_of_tasks(settings.tasks, task_values(space, settings.tasks), settings.selection)
    trials = -(-(settings.run_cap or RUN_CAP) // max(1, len(cells)))
    if len(points) > trials and not document.is_wrong(("run_cap",)):
        message = f"has {len(points)} points, and run_cap allows {trials} trials in all"
        document.add_error(_TRY_FIRST, message)
    read = [_point(document, free, item, (*_TRY_FIRST, i)) for i, item in enumerate(points)]
    seen: set[str] = set()
    for index, point in enumerate(read):
        key = json.dumps(point, sort_keys=True)
        if point and key in seen:
            document.add_error((*_TRY_FIRST, index), "is in the list twice")
        seen.add(key)
    return tuple(read)


def _point(
    document: SpecDocument, space: Sequence[Distribution], item: Mapping[str, Any], route: Route
) -> Params:
    if not item:
        document.add_error(route, "must be a mapping of parameters to values, got {}")
    aliases = document.mapping(("aliases",))
    known = {distribution.name: distribution for distribution in space}
    point: Params = {}
    for key, value in item.items():
        name = str(aliases.get(key, key))
        if name in point:
            document.add_error((*route, key), f"gives {name} a second time")
        elif name in known:
            point[name] = _own_value(document, known[name], value, (*route, key))
        elif name in field_names():
            # A task, and a parameter that is itself wrong, are reported in their own places.
            if name != document.get(("tasks",)) and not document.is_wrong(("parameters", name)):
                message = f"does not vary; the parameters are {', '.join(known) or 'none'}"
                document.add_error((*route, key), message)
        else:
            document.add_error((*route, key), unknown("parameter", name, known))
    for name in point:
        other = _switched_off_by(known[name], point)
        if other is not None:
            document.add_error(route, f"{name} does not vary where {other} is {point[other]}")
    return {name: point[name] for name in known if name in point}


def _switched_off_by(distribution: Distribution, point: Params) -> str | None:
    """Return the other field of a point with whose value this parameter does not vary."""
    algorithm = point.get("algorithm.name")
    if isinstance(algorithm, str) and not applies(distribution.name, algorithm):
        return "algorithm.name"
    return next(
        (on.name for on in distribution.when if on.name in point and not on.is_met(point)), None
    )


def _own_value(
    document: SpecDocument, distribution: Distribution, value: object, route: Route
) -> Any:
    """Return the value as the space holds it; report one outside of the space."""
    if isinstance(distribution, Categorical):
        for own in distribution.values:
            if canonical(own) == canonical(value):
                return own
        shown = ", ".join(map(canonical, distribution.values[:MOST_SHOWN]))
        document.add_error(route, f"must be one of {shown}, got {repr(value)[:80]}")
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        document.add_error(route, f"must be a number, got {repr(value)[:80]}")
        return None
    wrong = _outside(distribution, value)
    if wrong is not None:
        document.add_error(route, f"{wrong}, got {value}")
        return None
    if isinstance(distribution, Parametric):
        return rounded(value, distribution.q)
    return int(value) if isinstance(distribution, IntUniform) else float(value)


def _outside(distribution: Distribution, value: float) -> str | None:
    if isinstance(distribution, Categorical):
        return None
    (_, low), (_, high) = distribution.boundary_values()
    if not low <= value <= high:
        return f"must be from {low:g} to {high:g}"
    if isinstance(distribution, Parametric) and value != rounded(value, distribution.q):
        return f"must be a multiple of {distribution.q:g}"
    if isinstance(distribution, IntUniform) and (value - low) % distribution.step:
        return f"must be {low} and a multiple of {distribution.step}"
    if isinstance(distribution, SteppedUniform):
        index = round((value - distribution.low) / distribution.step)
        if value != distribution.at(index):
            return f"must be {low:g} and a multiple of {distribution.step:g}"
    return None

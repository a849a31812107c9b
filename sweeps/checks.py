"""What must hold of a sweep file beyond its form: names, ranges, and honesty about selection."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from carft_core.algorithms import ALGORITHMS
from carft_core.config import explained
from carft_core.errors import InvalidConfig, unknown
from sweeps.dimensions import Dimension, IntRange, grid, listed
from sweeps.draft import Draft
from sweeps.metric_names import is_selectable, natural_goal, problem
from sweeps.parameters import MAX_VALUES, dimension
from sweeps.points import baseline_at, config_at
from sweeps.settings import METHOD_ALIASES, Metric, Report, Resources, Settings
from sweeps.trial_space import TrialSpace
from sweeps.yaml_lines import Route

M = TypeVar("M", bound=BaseModel)

MAX_POINTS = 10_000
METHODS_OF_SEARCH = ("random", "tpe", *METHOD_ALIASES)
LATER = (("metric", "target"), ("metric", "impute"), ("resources", "gpus"))


@dataclass(frozen=True)
class Parts:
    """The validated parts of a sweep file."""

    settings: Settings
    dimensions: tuple[Dimension, ...]
    baselines: tuple[Mapping[str, Any], ...]
    trial: Mapping[str, Any]


def checked(draft: Draft) -> Parts:
    """Validate a normalised draft. Raises InvalidConfig with every mistake, by line."""
    settings = _settings(draft)
    dimensions = _dimensions(draft)
    _fixed_and_varied(draft)
    space = TrialSpace(draft, dimensions)
    space.check()
    _metric(draft, space)
    baselines = _baselines(draft, space)
    if draft.get(("method",)) in (None, "grid"):
        _grid(draft, space)
    elif draft.get(("method",)) in METHODS_OF_SEARCH and not draft.mapping(("parameters",)):
        draft.report(("method",), "searches parameters, and there are none; vary one, or use grid")
    draft.check()
    if settings is None:
        raise TypeError("settings are missing, and no mistake was reported")
    return Parts(settings, dimensions, baselines, space.trial)


def _settings(draft: Draft) -> Settings | None:
    for route in LATER:
        if draft.get(route) is not None:
            draft.report(route, "is known, but not available in this version")
            draft.drop(route)
    method = draft.get(("method",))
    if isinstance(method, str) and method in METHOD_ALIASES:
        plain = METHOD_ALIASES[method]
        draft.warnings.append(f"{draft.place(('method',)).text}: method {method} runs as {plain}")
    given = {key: draft.data[key] for key in Settings.model_fields if key in draft.data}
    sections: tuple[tuple[str, type[BaseModel]], ...] = (
        ("metric", Metric),
        ("report", Report),
        ("resources", Resources),
    )
    for key, cls in sections:
        fields = dict(draft.mapping((key,)))
        if key == "metric" and isinstance(fields.get("name"), str):
            fields = {"goal": natural_goal(fields["name"]), **fields}
        given[key] = _model(draft, cls, fields, (key,))
        if given[key] is None:
            del given[key]
    return _model(draft, Settings, given, ())


def _model(draft: Draft, cls: type[M], fields: Mapping[str, Any], route: Route) -> M | None:
    try:
        return cls.model_validate(dict(fields))
    except ValidationError as error:
        for mistake in explained(error, cls, route):
            draft.report(mistake.path, mistake.message)
        return None


def _dimensions(draft: Draft) -> tuple[Dimension, ...]:
    def report(name: str, route: Route, message: str) -> None:
        draft.report(("parameters", name, *route), message)

    found = [
        dimension(name, data, functools.partial(report, name))
        for name, data in draft.mapping(("parameters",)).items()
    ]
    return tuple(item for item in found if item is not None)


def _fixed_and_varied(draft: Draft) -> None:
    for name in draft.mapping(("parameters",)):
        route = ("trial", *name.split("."))
        if draft.get(route) is not None:
            other = draft.place(("parameters", name)).text
            draft.report(route, f"is fixed here and varied at {other}; keep one of the two")


def _metric(draft: Draft, space: TrialSpace) -> None:
    """A known name, its own direction, no look at a test split, and an existing merge point."""
    name = draft.get(("metric", "name")) or Metric().name
    goal = draft.get(("metric", "goal"))
    if not isinstance(name, str):
        return
    wrong = problem(name)
    if wrong:
        draft.report(("metric", "name"), wrong)
        return
    if goal in ("maximize", "minimize") and goal != natural_goal(name):
        draft.report(("metric", "goal"), f"{name} is better the other way round; leave goal out")
    if not is_selectable(name) and draft.get(("selection",)) != "oracle":
        draft.report(
            ("metric", "name"),
            f"selecting on {name} looks at what is to be measured; select on id/val/top1, or say "
            "`selection: oracle`, and every table will carry the word",
        )
    merge = draft.get(("metric", "merge"))
    if isinstance(merge, str):
        space.check_merge(name, merge)


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
        own = [mistake for mistake in error.problems if mistake.path[0] == "algorithm"]
        for mistake in own:
            draft.report((*route, *mistake.path[1:]), mistake.message)
    return fields


def _grid(draft: Draft, space: TrialSpace) -> None:
    """Listed values, not too many, and a valid config at every point."""
    size = 1
    for dimension_ in space.dimensions:
        route = ("parameters", dimension_.name)
        if isinstance(dimension_, IntRange):
            count = (dimension_.high - dimension_.low) // dimension_.step + 1
            if count > MAX_VALUES:
                draft.report(route, f"has {count} values, more than {MAX_VALUES} for a grid")
                return
        values = listed(dimension_)
        if values is None:
            draft.report(route, "a grid wants values, or min, max and q; else use random or tpe")
            return
        size = math.prod((size, len(values)))
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

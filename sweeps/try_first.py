"""Points that a sweep tries before its method proposes any: `try_first`, checked and spelt out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from carft_core.config import field_names
from carft_core.errors import unknown
from sweeps.dimensions import (
    Choice,
    Dimension,
    IntRange,
    Law,
    Params,
    StepRange,
    applies,
    canonical,
)
from sweeps.draft import Draft
from sweeps.draws import ends, rounded
from sweeps.yaml_lines import Route

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

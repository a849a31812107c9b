"""The `when` of parameters: on what each depends, and that it can come true."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from carft_core.algorithms import ALGORITHMS
from carft_core.config import field_names
from carft_core.errors import unknown
from sweeps.dimensions import (
    Choice,
    Condition,
    Dimension,
    applies,
    canonical,
    is_among,
    listed,
    ordered,
)
from sweeps.draft import Draft
from sweeps.yaml_lines import Route

MAX_VALUES_SHOWN = 10


def resolved(draft: Draft, dimensions: Sequence[Dimension]) -> tuple[Dimension, ...]:
    """The dimensions with conditions on each other only; every mistake in them is reported.

    Aliases become names. A condition on a field that `trial` fixes is decided here and now: a
    parameter for which it does not hold never varies, and is left out with a warning.
    """
    known = {dimension.name: dimension for dimension in dimensions}
    sound = [_with_known_names(draft, dimension, known) for dimension in dimensions]
    _break_circles(draft, sound)
    left: dict[str, Dimension] = {}
    for dimension in ordered(sound):
        fixed = [item for item in dimension.when if item.name not in known]
        lost = [item for item in dimension.when if item.name in known and item.name not in left]
        unmet = [item for item in fixed if not is_among(_fixed(draft, item.name), item.values)]
        if unmet or lost:
            _warn(draft, dimension, (unmet or lost)[0])
        else:
            when = tuple(item for item in dimension.when if item.name in known)
            left[dimension.name] = dataclasses.replace(dimension, when=when)
    return tuple(left[dimension.name] for dimension in sound if dimension.name in left)


def needs(
    dimension: Dimension, dimensions: Sequence[Dimension], among: Mapping[str, Sequence[Any]]
) -> dict[str, Any] | None:
    """Values of other parameters with which a dimension is active; None when there are none.

    Of the parameters in `among` only the values there are taken.
    """
    known = {item.name: item for item in dimensions}
    allowed: dict[str, list[Any]] = {}
    waiting, seen = [dimension], {dimension.name}
    while waiting:
        for name, values in _wants(waiting.pop(), known):
            left = allowed.get(name, among.get(name, listed(known[name]) or ()))
            allowed[name] = [value for value in left if is_among(value, values)]
            if name not in seen:
                seen.add(name)
                waiting.append(known[name])
    return {name: values[0] for name, values in allowed.items()} if all(allowed.values()) else None


def _wants(
    dimension: Dimension, known: Mapping[str, Dimension]
) -> Iterator[tuple[str, Sequence[Any]]]:
    """What must hold for one dimension, its algorithm included."""
    yield from ((item.name, item.values) for item in dimension.when if item.name in known)
    varied = known.get("algorithm.name")
    if isinstance(varied, Choice) and dimension is not varied:
        names = [name for name in varied.values if isinstance(name, str) and name in ALGORITHMS]
        if not all(applies(dimension.name, name) for name in names):
            yield varied.name, [name for name in names if applies(dimension.name, name)]


def _with_known_names(
    draft: Draft, dimension: Dimension, known: Mapping[str, Dimension]
) -> Dimension:
    """The dimension with those of its conditions that are sound."""
    aliases = draft.mapping(("aliases",))
    when: dict[str, Condition] = {}
    for condition in dimension.when:
        route: Route = ("parameters", dimension.name, "when", condition.name)
        name = str(aliases.get(condition.name, condition.name))
        wrong = _wrong(draft, dimension, name, condition.values, known)
        if name in when:
            wrong = f"is given twice, also as {name}"
        if wrong is not None:
            draft.report(route, wrong)
        elif name in known or not _is_described(draft, name):
            when[name] = Condition(name, condition.values)
    return dataclasses.replace(dimension, when=tuple(when.values()))


def _wrong(
    draft: Draft,
    dimension: Dimension,
    name: str,
    values: Sequence[Any],
    known: Mapping[str, Dimension],
) -> str | None:
    """What is wrong with a condition, None when nothing is."""
    if name not in field_names():
        return unknown("field", name, (*known, *draft.mapping(("aliases",))))
    if name == dimension.name:
        return "a parameter cannot decide on itself"
    if dimension.name == "algorithm.name":
        return "algorithm.name decides which fields there are, and has no conditions"
    if name not in known:
        if _is_described(draft, name) or _is_fixed(draft, name):
            return None
        return f"{name} is neither a parameter nor fixed under trial"
    possible = listed(known[name])
    if possible is None:
        return f"{name} is a range without steps; a condition wants one with listed values"
    for value in values:
        if not is_among(value, possible):
            shown = ", ".join(map(canonical, possible[:MAX_VALUES_SHOWN]))
            more = ", ..." if len(possible) > MAX_VALUES_SHOWN else ""
            return f"{name} is never {canonical(value)[:80]}; its values are {shown}{more}"
    return None


def _break_circles(draft: Draft, dimensions: list[Dimension]) -> None:
    """Report conditions that go round in a circle, and go on without those of one member."""
    while circle := _circle(dimensions):
        first, second, *_ = *circle, circle[0]
        said = " -> ".join([*circle, first])
        draft.report(("parameters", first, "when", second), f"goes round in a circle: {said}")
        place = next(i for i, item in enumerate(dimensions) if item.name == first)
        dimensions[place] = dataclasses.replace(dimensions[place], when=())


def _circle(dimensions: Sequence[Dimension]) -> list[str]:
    """Parameters of which each depends on the next and the last on the first; empty if none do."""
    waiting = {item.name: [condition.name for condition in item.when] for item in dimensions}
    while ready := [name for name, on in waiting.items() if not any(n in waiting for n in on)]:
        for name in ready:
            del waiting[name]
    if not waiting:
        return []
    path = [next(iter(waiting))]
    while (following := next(n for n in waiting[path[-1]] if n in waiting)) not in path:
        path.append(following)
    return path[path.index(following) :]


def _is_described(draft: Draft, name: str) -> bool:
    """Whether a parameter is in the file, if only with mistakes that are told elsewhere."""
    return name in draft.mapping(("parameters",))


def _is_fixed(draft: Draft, name: str) -> bool:
    *section, field = name.split(".")
    return field in draft.mapping(("trial", *section))


def _fixed(draft: Draft, name: str) -> Any:
    return draft.get(("trial", *name.split(".")))


def _warn(draft: Draft, dimension: Dimension, unmet: Condition) -> None:
    place = draft.place(("parameters", dimension.name, "when")).text
    values = " or ".join(map(canonical, unmet.values))[:80]
    draft.warnings.append(
        f"{place}: {dimension.name} does not vary, since {unmet.name} is never {values}"
    )

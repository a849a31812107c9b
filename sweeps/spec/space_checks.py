"""Whether every point of a search space is a valid trial config."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from carft_core.algorithms import ALGORITHMS
from carft_core.config import PromptsConfig, TrialConfig, field_names
from carft_core.errors import InvalidConfig, Problem, RequestError, Route, dotted, unknown
from carft_core.prompts import template_set
from sweeps.space.distributions import (
    Choice,
    Condition,
    Dimension,
    Law,
    Params,
    applies,
    assigned,
    canonical,
    is_among,
    listed,
    ordered,
)
from sweeps.space.points import config_at
from sweeps.space.sampling import probes
from sweeps.spec.document import Draft

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


ENOUGH = 20
"""With so many mistakes in what all trials share, single values are not looked at any more."""
DRAWN_BY = ("random", "qmc")
"""The methods that draw by quantiles, and so from every distribution."""

INSTEAD: Mapping[str, str] = {
    "normal": "uniform",
    "q_normal": "q_uniform",
    "log_normal": "log_uniform_values",
    "beta": "uniform",
    "q_beta": "q_uniform",
}
"""What every method of search draws from and is nearest to a law; where there is none, `values`."""

Probed = tuple[Route, Any]
"""A value of a dimension, with its place in it."""


class TrialSpace:
    """A draft's trial with its dimensions; their conditions are on each other only."""

    def __init__(self, draft: Draft, dimensions: Sequence[Dimension]) -> None:
        self.draft = draft
        self.dimensions = resolved(draft, dimensions)
        self.trial: Mapping[str, Any] = draft.mapping(("trial",))
        self.varied: Dimension | None = next(
            (item for item in self.dimensions if item.name == "algorithm.name"), None
        )
        self.algorithms = self._algorithms()
        self.problems: list[Problem] = []
        """Those of the configs that were built."""
        self._base: list[TrialConfig] = []

    def check(self) -> None:
        """Report every mistake in the trial and in the values of its dimensions."""
        self._check_method()
        if self.draft.get(("trial",)) is not None and not self.trial:
            return
        suited = self._suited()
        dimensions = [item for item in self.dimensions if item.name in suited]
        for item in dimensions:
            if needs(item, dimensions, {}) is None:
                message = "never holds: its conditions exclude each other"
                self.draft.report(("parameters", item.name, "when"), message)
        done: set[str] = set()
        for end in [None] if self.varied is None else probes(self.varied):
            self._check_with({} if end is None else {"algorithm.name": end}, dimensions, done)

    def check_merge(self, metric: str, label: str, route: Route) -> None:
        """Report a metric's `merge`, which stands at `route`, when some trial has no such point."""
        played = {name: ALGORITHMS[name] for name in self.algorithms}
        untrained = [n for n, cls in played.items() if not cls.trains and cls.starts_at_zero_shot]
        if metric.startswith(("train/", "system/")):
            self.draft.report(route, f"a merged model has no {metric}")
        elif untrained:
            self.draft.report(route, f"{untrained[0]} trains nothing, so nothing is merged")
        else:
            for config in self._base:
                labels = [point.label for merge in config.merges for point in merge.points()]
                if label not in labels:
                    self.draft.report(route, unknown("merge point", label, labels))
                    return

    def _algorithms(self) -> tuple[str, ...]:
        """The algorithms in play, as far as they are known."""
        if isinstance(self.varied, Choice):
            given = self.varied.values
        else:
            given = (self.draft.get(("trial", "algorithm", "name")),)
        return tuple(name for name in given if isinstance(name, str) and name in ALGORITHMS)

    def _suited(self) -> set[str]:
        """The dimensions that are a field of an algorithm in play; report the others.

        Where the algorithm varies, its fixed fields are looked at too.
        """
        played = self.algorithms
        names = {item.name for item in self.dimensions}
        if not played:
            return names
        said = " or ".join(played)
        known = {name for algorithm in played for name in field_names(algorithm)}
        own = sorted(name for name in known if name.startswith("algorithm."))
        suited = {n for n in names if any(applies(n, algorithm) for algorithm in played)}
        for name in sorted(names - suited):
            message = unknown(f"field of {said}", name, own)
            if name in known:
                message = f"{said} trains nothing, so this changes nothing"
            self.draft.report(("parameters", name), message)
        for field in self.draft.mapping(("trial", "algorithm")) if self.varied else ():
            if f"algorithm.{field}" not in known:
                message = unknown(f"field of {said}", f"algorithm.{field}", own)
                self.draft.report(("trial", "algorithm", field), message)
        return suited

    def _check_method(self) -> None:
        """Report what only our own draws know, where the method does not use them."""
        method = self.draft.get(("method",)) or "grid"
        if not isinstance(method, str) or method in DRAWN_BY:
            return
        for item in self.dimensions:
            if isinstance(item, Law):
                key, kind, other = "distribution", item.kind, INSTEAD.get(item.kind, "values")
            elif isinstance(item, Choice) and item.probabilities is not None:
                key, kind, other = "probabilities", "a choice with probabilities", "values alone"
            else:
                continue
            other = "values" if method == "grid" else other
            message = (
                f"{kind} is drawn by the methods {' and '.join(DRAWN_BY)} only, "
                f"and this one is {method}; change it, or use {other}"
            )
            self.draft.report(("parameters", item.name, key), message)

    def _check_with(
        self, fixed: Mapping[str, Probed], dimensions: Sequence[Dimension], done: set[str]
    ) -> None:
        """Build the config at the first values, then with each other value that is to be looked at.

        With another algorithm only its own fields are looked at again; `done` are the others.
        """
        first = {**{item.name: probes(item)[0] for item in dimensions}, **fixed}
        known = self._probe(dimensions, first, None, [])
        if len(known) > ENOUGH:
            return
        among = {name: [value] for name, (_, value) in fixed.items()}
        for item in dimensions:
            wanted = needs(item, dimensions, among)
            if wanted is None or item.name in (*done, "algorithm.name"):
                continue
            if not item.name.startswith("algorithm."):
                done.add(item.name)
            others = {
                other.name: _placed(other, wanted[other.name])
                for other in dimensions
                if other.name in wanted
            }
            for probed in probes(item)[0 if item.when else 1 :]:
                values = first | others | {item.name: probed}
                self._probe(dimensions, values, item.name, known)

    def _probe(
        self,
        dimensions: Sequence[Dimension],
        values: Mapping[str, Probed],
        changed: str | None,
        known: Sequence[Problem],
    ) -> list[Problem]:
        """The problems of the config with these values; those not known before are told."""
        params = assigned(dimensions, lambda item: values[item.name][1])
        found = self._problems(params)
        self.problems += found
        for problem in found:
            if problem not in known:
                self._tell(problem, {name: values[name][0] for name in params}, changed)
        return found

    def _problems(self, params: Params) -> list[Problem]:
        found: list[Problem] = []
        try:
            self._base.append(config_at(self.trial, params))
        except InvalidConfig as error:
            found += error.problems
        for field in PromptsConfig.model_fields:
            given = self.draft.get(("trial", "prompts", field))
            name = params.get(f"prompts.{field}", given)
            if isinstance(name, str):
                try:
                    template_set(name)
                except RequestError as error:
                    found.append(Problem(("prompts", field), str(error)))
        return found

    def _tell(self, problem: Problem, routes: Mapping[str, Route], changed: str | None) -> None:
        """Report a config's problem where the value that causes it was given."""
        for name, route in routes.items():
            field = tuple(name.split("."))
            if problem.path[: len(field)] == field:
                inner = problem.path[len(field) :]
                self.draft.report(("parameters", name, *route, *inner), problem.message)
                return
        if changed is None:
            self.draft.report(("trial", *problem.path), problem.message)
        else:
            message = f"{dotted(problem.path)}: {problem.message}"
            self.draft.report(("parameters", changed, *routes[changed]), message)


def _placed(dimension: Dimension, value: Any) -> Probed:
    """A value of a dimension, with its place."""
    same = (route for route, other in probes(dimension) if canonical(other) == canonical(value))
    return next(same, ()), value

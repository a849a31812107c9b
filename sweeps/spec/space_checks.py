"""Whether every point of a search space is a valid trial config."""

from __future__ import annotations

import dataclasses
import graphlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from carft_core.algorithms import ALGORITHMS
from carft_core.config import PromptsConfig, TrialConfig, field_names
from carft_core.errors import InvalidConfig, Problem, RequestError, Route, dotted, unknown
from carft_core.prompts import template_set
from sweeps.space.distributions import (
    Categorical,
    Condition,
    Distribution,
    Parametric,
    Params,
    canonical,
    is_among,
)
from sweeps.space.points import applies, config_at, sample_point, topological_order
from sweeps.spec.document import SpecDocument

MAX_VALUES_SHOWN = 10


def resolve_conditions(
    document: SpecDocument, space: Sequence[Distribution]
) -> tuple[Distribution, ...]:
    """Reduce conditions to those on each other; report every mistake in them.

    Aliases become names. A condition on a field that `trial` fixes is decided here and now: a
    parameter for which it does not hold never varies, and is left out with a warning.
    """
    known = {item.name: item for item in space}
    sound = [_with_known_names(document, item, known) for item in space]
    _break_circles(document, sound)
    left: dict[str, Distribution] = {}
    for item in topological_order(sound):
        fixed = [on for on in item.when if on.name not in known]
        lost = [on for on in item.when if on.name in known and on.name not in left]
        unmet = [
            on
            for on in fixed
            if not is_among(document.get(("trial", *on.name.split("."))), on.values)
        ]
        if unmet or lost:
            first = (unmet or lost)[0]
            values = " or ".join(map(canonical, first.values))[:80]
            document.add_warning(
                ("parameters", item.name, "when"),
                f"{item.name} does not vary, since {first.name} is never {values}",
            )
        else:
            when = tuple(on for on in item.when if on.name in known)
            left[item.name] = dataclasses.replace(item, when=when)
    return tuple(left[item.name] for item in sound if item.name in left)


def activating_values(
    distribution: Distribution, space: Sequence[Distribution], among: Mapping[str, Sequence[Any]]
) -> dict[str, Any] | None:
    """Find values of other parameters with which this one is active; None if there are none.

    Of the parameters in `among` only the values there are taken.
    """
    known = {item.name: item for item in space}
    allowed: dict[str, list[Any]] = {}
    waiting, seen = [distribution], {distribution.name}
    while waiting:
        for name, values in _requirements(waiting.pop(), known):
            left = allowed.get(name, among.get(name, known[name].grid_values() or ()))
            allowed[name] = [value for value in left if is_among(value, values)]
            if name not in seen:
                seen.add(name)
                waiting.append(known[name])
    return {name: values[0] for name, values in allowed.items()} if all(allowed.values()) else None


def _requirements(
    distribution: Distribution, known: Mapping[str, Distribution]
) -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield what must hold for one parameter, its algorithm included."""
    yield from ((item.name, item.values) for item in distribution.when if item.name in known)
    varied = known.get("algorithm.name")
    if isinstance(varied, Categorical) and distribution is not varied:
        names = [name for name in varied.values if isinstance(name, str) and name in ALGORITHMS]
        if not all(applies(distribution.name, name) for name in names):
            yield varied.name, [name for name in names if applies(distribution.name, name)]


def _with_known_names(
    document: SpecDocument, distribution: Distribution, known: Mapping[str, Distribution]
) -> Distribution:
    """Return the distribution with those of its conditions that are sound."""
    aliases = document.mapping(("aliases",))
    when: dict[str, Condition] = {}
    for condition in distribution.when:
        route: Route = ("parameters", distribution.name, "when", condition.name)
        name = str(aliases.get(condition.name, condition.name))
        wrong = _wrong(document, distribution, name, condition.values, known)
        if name in when:
            wrong = f"is given twice, also as {name}"
        if wrong is not None:
            document.add_error(route, wrong)
        elif name in known or not _is_described(document, name):
            when[name] = Condition(name, condition.values)
    return dataclasses.replace(distribution, when=tuple(when.values()))


def _wrong(
    document: SpecDocument,
    distribution: Distribution,
    name: str,
    values: Sequence[Any],
    known: Mapping[str, Distribution],
) -> str | None:
    """Return what is wrong with a condition, None when nothing is."""
    if name not in field_names():
        return unknown("field", name, (*known, *document.mapping(("aliases",))))
    if name == distribution.name:
        return "a parameter cannot decide on itself"
    if distribution.name == "algorithm.name":
        return "algorithm.name decides which fields there are, and has no conditions"
    if name not in known:
        if _is_described(document, name) or _is_fixed(document, name):
            return None
        return f"{name} is neither a parameter nor fixed under trial"
    possible = known[name].grid_values()
    if possible is None:
        return f"{name} is a range without steps; a condition needs one with listed values"
    for value in values:
        if not is_among(value, possible):
            shown = ", ".join(map(canonical, possible[:MAX_VALUES_SHOWN]))
            more = ", ..." if len(possible) > MAX_VALUES_SHOWN else ""
            return f"{name} is never {canonical(value)[:80]}; its values are {shown}{more}"
    return None


def _break_circles(document: SpecDocument, space: list[Distribution]) -> None:
    """Report conditions that form a circle, and drop those of one member."""
    while True:
        graph = {item.name: [on.name for on in item.when] for item in space}
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            circle = error.args[1][::-1]  # each depends on the next
        else:
            return
        route: Route = ("parameters", circle[0], "when", circle[1])
        document.add_error(route, f"forms a circle: {' -> '.join(circle)}")
        place = next(i for i, item in enumerate(space) if item.name == circle[0])
        space[place] = dataclasses.replace(space[place], when=())


def _is_described(document: SpecDocument, name: str) -> bool:
    """Whether a parameter is in the file, if only with mistakes that are reported elsewhere."""
    return name in document.mapping(("parameters",))


def _is_fixed(document: SpecDocument, name: str) -> bool:
    *section, field = name.split(".")
    return field in document.mapping(("trial", *section))


ENOUGH = 20
"""With more mistakes in what all trials share, single values are not checked."""
DRAWN_BY = ("random", "qmc")
"""The methods that draw by quantiles, and so from every distribution."""

INSTEAD: Mapping[str, str] = {
    "normal": "uniform",
    "q_normal": "q_uniform",
    "log_normal": "log_uniform_values",
    "beta": "uniform",
    "q_beta": "q_uniform",
}
"""The nearest distribution that every method of search draws from; without one, `values`."""

Placed = tuple[Route, Any]
"""A value of a parameter, with its place below the name."""


class TrialSpace:
    """The trial of a sweep file with what varies in it."""

    def __init__(self, document: SpecDocument, space: Sequence[Distribution]) -> None:
        self.document = document
        self.space = resolve_conditions(document, space)
        self.trial: Mapping[str, Any] = document.mapping(("trial",))
        self.varied: Distribution | None = next(
            (item for item in self.space if item.name == "algorithm.name"), None
        )
        self.algorithms = self._algorithms()
        self.problems: list[Problem] = []
        """Those of the configs that were built."""
        self._base: list[TrialConfig] = []

    def check(self) -> None:
        """Report every mistake in the trial and in the values of its parameters."""
        self._check_method()
        if self.document.get(("trial",)) is not None and not self.trial:
            return
        suited = self._suited()
        space = [item for item in self.space if item.name in suited]
        for item in space:
            if activating_values(item, space, {}) is None:
                message = "never holds: its conditions exclude each other"
                self.document.add_error(("parameters", item.name, "when"), message)
        done: set[str] = set()
        for end in [None] if self.varied is None else self.varied.boundary_values():
            self._check_with({} if end is None else {"algorithm.name": end}, space, done)

    def check_merge(self, metric: str, label: str, route: Route) -> None:
        """Report the `merge` of a metric, at `route`, when some trial has no such point."""
        played = {name: ALGORITHMS[name] for name in self.algorithms}
        untrained = [n for n, cls in played.items() if not cls.trains and cls.starts_at_zero_shot]
        if metric.startswith(("train/", "system/")):
            self.document.add_error(route, f"a merged model has no {metric}")
        elif untrained:
            self.document.add_error(route, f"{untrained[0]} trains nothing, so nothing is merged")
        else:
            for config in self._base:
                labels = [point.label for merge in config.merges for point in merge.points()]
                if label not in labels:
                    self.document.add_error(route, unknown("merge point", label, labels))
                    return

    def _algorithms(self) -> tuple[str, ...]:
        """Return the algorithms in play, as far as they are known."""
        if isinstance(self.varied, Categorical):
            given = self.varied.values
        else:
            given = (self.document.get(("trial", "algorithm", "name")),)
        return tuple(name for name in given if isinstance(name, str) and name in ALGORITHMS)

    def _suited(self) -> set[str]:
        """Return the parameters that an algorithm in play has; report the others.

        Where the algorithm varies, its fixed fields are checked too.
        """
        played = self.algorithms
        names = {item.name for item in self.space}
        if not played:
            return names
        names_played = " or ".join(played)
        known = {name for algorithm in played for name in field_names(algorithm)}
        own = sorted(name for name in known if name.startswith("algorithm."))
        suited = {n for n in names if any(applies(n, algorithm) for algorithm in played)}
        for name in sorted(names - suited):
            message = unknown(f"field of {names_played}", name, own)
            if name in known:
                message = f"{names_played} trains nothing, so this changes nothing"
            self.document.add_error(("parameters", name), message)
        for field in self.document.mapping(("trial", "algorithm")) if self.varied else ():
            if f"algorithm.{field}" not in known:
                message = unknown(f"field of {names_played}", f"algorithm.{field}", own)
                self.document.add_error(("trial", "algorithm", field), message)
        return suited

    def _check_method(self) -> None:
        """Report distributions that the method cannot draw from."""
        method = self.document.get(("method",)) or "grid"
        if not isinstance(method, str) or method in DRAWN_BY:
            return
        for item in self.space:
            if isinstance(item, Parametric):
                key, kind, other = "distribution", item.kind, INSTEAD.get(item.kind, "values")
            elif isinstance(item, Categorical) and item.probabilities is not None:
                key, kind, other = "probabilities", "a choice with probabilities", "values alone"
            else:
                continue
            other = "values" if method == "grid" else other
            message = (
                f"{kind} is drawn by the methods {' and '.join(DRAWN_BY)} only, "
                f"and this one is {method}; change it, or use {other}"
            )
            self.document.add_error(("parameters", item.name, key), message)

    def _check_with(
        self, fixed: Mapping[str, Placed], space: Sequence[Distribution], done: set[str]
    ) -> None:
        """Build the config at the first values, then with each other value that decides.

        With another algorithm only its own fields are checked again; `done` are the others.
        """
        first = {**{item.name: item.boundary_values()[0] for item in space}, **fixed}
        known = self._probe(space, first, None, [])
        if len(known) > ENOUGH:
            return
        among = {name: [value] for name, (_, value) in fixed.items()}
        for item in space:
            wanted = activating_values(item, space, among)
            if wanted is None or item.name in (*done, "algorithm.name"):
                continue
            if not item.name.startswith("algorithm."):
                done.add(item.name)
            others = {
                other.name: _placed(other, wanted[other.name])
                for other in space
                if other.name in wanted
            }
            for probed in item.boundary_values()[0 if item.when else 1 :]:
                values = first | others | {item.name: probed}
                self._probe(space, values, item.name, known)

    def _probe(
        self,
        space: Sequence[Distribution],
        values: Mapping[str, Placed],
        changed: str | None,
        known: Sequence[Problem],
    ) -> list[Problem]:
        """Return the problems of the config with these values; report those not known before."""
        params = sample_point(space, lambda item: values[item.name][1])
        problems = self._problems(params)
        self.problems += problems
        for problem in problems:
            if problem not in known:
                self._report(problem, {name: values[name][0] for name in params}, changed)
        return problems

    def _problems(self, params: Params) -> list[Problem]:
        problems: list[Problem] = []
        try:
            self._base.append(config_at(self.trial, params))
        except InvalidConfig as error:
            problems += error.problems
        for field in PromptsConfig.model_fields:
            given = self.document.get(("trial", "prompts", field))
            name = params.get(f"prompts.{field}", given)
            if isinstance(name, str):
                try:
                    template_set(name)
                except RequestError as error:
                    problems.append(Problem(("prompts", field), str(error)))
        return problems

    def _report(self, problem: Problem, routes: Mapping[str, Route], changed: str | None) -> None:
        """Report a config's problem where the value that causes it was given."""
        for name, route in routes.items():
            field = tuple(name.split("."))
            if problem.path[: len(field)] == field:
                inner = problem.path[len(field) :]
                self.document.add_error(("parameters", name, *route, *inner), problem.message)
                return
        if changed is None:
            self.document.add_error(("trial", *problem.path), problem.message)
        else:
            message = f"{dotted(problem.path)}: {problem.message}"
            self.document.add_error(("parameters", changed, *routes[changed]), message)


def _placed(distribution: Distribution, value: Any) -> Placed:
    """A value of a distribution, with its place."""
    same = (
        route
        for route, other in distribution.boundary_values()
        if canonical(other) == canonical(value)
    )
    return next(same, ()), value

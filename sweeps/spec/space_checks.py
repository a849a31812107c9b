"""Whether every run of a sweep has a valid trial config: trials, baselines and soups."""

from __future__ import annotations

import dataclasses
import graphlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from carft_sweep.carft_core.algorithms import ALGORITHMS, Soup
from carft_sweep.carft_core.config import PromptsConfig, TrialConfig, field_names
from carft_sweep.carft_core.errors import (
    InvalidConfig,
    Problem,
    RequestError,
    Route,
    dotted,
    misspelt,
    unknown,
)
from carft_sweep.carft_core.prompts import template_set
from carft_sweep.sweeps.space.distributions import (
    Categorical,
    Condition,
    Distribution,
    IntUniform,
    Parametric,
    Params,
    canonical,
    is_among,
)
from carft_sweep.sweeps.space.parameters import MAX_VALUES, parse_parameter
from carft_sweep.sweeps.space.points import (
    applies,
    baseline_at,
    config_at,
    grid,
    sample_point,
    topological_order,
)
from carft_sweep.sweeps.spec.document import SpecDocument
from carft_sweep.sweeps.spec.normalize import KEYS, names_unknown_algorithm
from carft_sweep.sweeps.spec.settings import After, Settings

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
    left: dict[str, Distribution] = {}
    for item in _ordered(document, sound):
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
        *section, field = name.split(".")
        if _is_described(document, name) or field in document.mapping(("trial", *section)):
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


def _ordered(document: SpecDocument, space: list[Distribution]) -> list[Distribution]:
    """Sort topologically; report conditions that form a circle, and drop those of one member."""
    while True:
        try:
            return topological_order(space)
        except graphlib.CycleError as error:
            circle = error.args[1][::-1]  # each depends on the next
        route: Route = ("parameters", circle[0], "when", circle[1])
        document.add_error(route, f"forms a circle: {' -> '.join(circle)}")
        place = next(i for i, item in enumerate(space) if item.name == circle[0])
        space[place] = dataclasses.replace(space[place], when=())


def _is_described(document: SpecDocument, name: str) -> bool:
    """Whether a parameter is in the file, if only with mistakes that are reported elsewhere."""
    return name in document.mapping(("parameters",))


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
    """What the runs of a sweep file are: its trial, what varies, its baselines and its soups.

    Every config is made, and every mistake in one is reported.
    """

    def __init__(self, document: SpecDocument, settings: Settings) -> None:
        self.document, self.settings = document, settings
        self.space = resolve_conditions(document, list(self._parameters()))
        self.trial: Mapping[str, Any] = document.mapping(("trial",))
        self.varied: Distribution | None = next(
            (item for item in self.space if item.name == "algorithm.name"), None
        )
        self.algorithms = tuple(
            name
            for name in document.field_values("algorithm.name")
            if isinstance(name, str) and name in ALGORITHMS
        )
        """Those in play, as far as they are known."""
        self.problems: list[Problem] = []
        """Those of the configs that were built."""
        self._base: list[TrialConfig] = []
        self._check_method()
        self._check_values()
        self.baselines = self._baselines()
        for index, item in enumerate(settings.after):
            self._check_after(item, ("after", index))
        if settings.method == "grid" and not document.is_wrong(("method",)):
            self._check_grid()

    def _parameters(self) -> Iterator[Distribution]:
        """Yield what varies; report what is wrong with it, or is fixed as well."""
        for name, data in self.document.mapping(("parameters",)).items():
            try:
                item = parse_parameter(name, data)
                self._warn_of_exponents(name, data)
                yield item
            except InvalidConfig as error:
                for problem in error.problems:
                    route = ("parameters", name, *problem.path)
                    self.document.add_error(route, problem.message)
            fixed = ("trial", *name.split("."))
            # With a condition that is what it is where it does not vary.
            is_conditional = isinstance(data, Mapping) and "when" in data
            if not is_conditional and self.document.get(fixed) is not None:
                other = self.document.place(("parameters", name)).text
                message = f"is set here and also listed under parameters ({other})"
                self.document.add_error(fixed, f"{message}; remove one of them")

    def _warn_of_exponents(self, name: str, data: object) -> None:
        """Say what the exponents of W&B's `log_uniform` make where they look like values."""
        if not isinstance(data, Mapping):
            return
        kind = data.get("distribution")
        if kind in ("log_uniform", "q_log_uniform") and data["min"] > 0:
            low, high = (f"{math.exp(data[end]):.4g}" for end in ("min", "max"))
            self.document.add_warning(
                ("parameters", name),
                f"{name} varies from {low} to {high}, since {kind} takes exponents of e, as in "
                f"W&B; {kind}_values takes the values themselves",
            )

    def _check_values(self) -> None:
        """Report every mistake in the trial and in the values of its parameters."""
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

    def _suited(self) -> set[str]:
        """Return the parameters that an algorithm in play has; report the others.

        Where the algorithm varies, its fixed fields are checked too.
        """
        played = self.algorithms
        names = {item.name for item in self.space}
        if not played:
            return names
        names_played = " or ".join(played)
        is_judged = not names_unknown_algorithm(self.document)
        known = {name for algorithm in played for name in field_names(algorithm)}
        own = sorted(name for name in known - {"algorithm.name"} if name.startswith("algorithm."))
        suited = {n for n in names if any(applies(n, algorithm) for algorithm in played)}
        for name in sorted(names - suited):
            message = unknown(f"field of {names_played}", name, own)
            if name.startswith("algorithm.") and not is_judged:
                continue
            if name in known:
                message = f"{names_played} trains nothing, so this changes nothing"
            self.document.add_error(("parameters", name), message)
        own_fields = self.document.mapping(("trial", "algorithm"))
        for field in own_fields if self.varied and is_judged else ():
            if f"algorithm.{field}" not in known:
                message = unknown(f"field of {names_played}", f"algorithm.{field}", own)
                self.document.add_error(("trial", "algorithm", field), message)
        return suited

    def _check_method(self) -> None:
        """Report a search of nothing, and distributions that the method cannot draw from."""
        method = self.settings.method
        if self.document.is_wrong(("method",)):
            return
        # Where a key is unknown it may be that of the parameters.
        is_open = self.document.is_wrong(("parameters",)) or {*self.document.data} - {*KEYS}
        if method != "grid" and not self.space and not is_open:
            message = "searches parameters, and there are none; vary one, or use grid"
            self.document.add_error(("method",), message)
        for item in () if method in DRAWN_BY else self.space:
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

    def _check_grid(self) -> None:
        """Report values without end, too many points, and points that make no valid config."""
        for item in self.space:
            route = ("parameters", item.name)
            if isinstance(item, IntUniform) and item.count > MAX_VALUES:
                message = f"has {item.count} values, more than {MAX_VALUES} for a grid"
                self.document.add_error(route, message)
                return
            if item.grid_values() is None:
                if not isinstance(item, Parametric):  # which is reported with the method
                    message = "a grid takes values, or min, max and q; else use random or tpe"
                    self.document.add_error(route, message)
                return
        try:
            points = grid(self.space)
        except ValueError as error:
            self.document.add_error(("parameters",), str(error))
        if self.document.has_errors:
            return
        for point in points:
            try:
                config_at(self.trial, point)
            except InvalidConfig as error:
                self.document.add_error(("parameters",), f"at {point}: {error.problems[0]}")

    def _baselines(self) -> tuple[Mapping[str, Any], ...]:
        baselines = self.document.get(("baselines",))
        if not isinstance(baselines, list):
            if baselines is not None:
                message = f"must be a list of algorithms, got {repr(baselines)[:80]}"
                self.document.add_error(("baselines",), message)
            return ()
        right: dict[str, Mapping[str, Any]] = {}
        for index, item in enumerate(baselines):
            route = ("baselines", index)
            baseline = self._baseline(item, route)
            if baseline is None:
                continue
            key = json.dumps(baseline, sort_keys=True)
            if key in right:
                self.document.add_error(route, f"{baseline['name']} is in the list twice")
            right[key] = baseline
        return tuple(right.values())

    def _baseline(self, item: object, route: Route) -> Mapping[str, Any] | None:
        fields = {"name": item} if isinstance(item, str) else item
        if not isinstance(fields, Mapping):
            message = f"must be an algorithm's name or {{name: ..., ...}}, got {repr(item)[:80]}"
            self.document.add_error(route, message)
            return None
        name = fields.get("name")
        if self._is_misspelt(fields, "name", route):
            return None
        if not isinstance(name, str) or name not in ALGORITHMS:
            inner = route if isinstance(item, str) else (*route, "name")
            self.document.add_error(inner, ALGORITHMS.unknown(name))
            return None
        if name in self.algorithms:
            message = f"{name} is what the trials run; a baseline is another algorithm"
            self.document.add_error(route, message)
            return None
        self._check_algorithm(fields, route)
        return fields

    def _check_algorithm(self, fields: Mapping[str, Any], route: Route) -> None:
        """Report what is wrong with another algorithm's fields, and merges that it lacks."""
        try:
            baseline_at(self.trial, fields, {})
        except InvalidConfig as error:
            for problem in error.problems:
                if problem.path[0] == "merges" and problem not in self.problems:
                    self.document.add_error(route, problem.message)
                elif problem.path[0] == "algorithm":
                    self.document.add_error((*route, *problem.path[1:]), problem.message)

    def _check_after(self, item: After, route: Route) -> None:
        """Report a soup that cannot be made, at the value that prevents it."""
        if item in self.settings.after[: int(route[1])]:
            self.document.add_error(route, "is in the list twice")
            return
        soup, members = self._soup(item, route), self._members(item, route)
        if soup is None or members is None:
            return
        if not members.algorithm.keeps_shape:
            message = f"{item.of.algorithm} gives models of another shape than the zero-shot one"
            self.document.add_error((*route, "of", "algorithm"), message)
        if not members.keep.weights:
            message = f"{soup.name} (after) is made of the runs' weights, so they must be kept"
            self.document.add_error(("trial", "keep", "weights"), message)
        if members.follows_seed:
            message = (
                "data.split_seed: seed gives each seed a split of its own, so a soup would be "
                "validated on images that some of its runs were trained on"
            )
            self.document.add_error(route, message)
        seeds = len(self.settings.seeds)
        if item.of.settings == "selected" and seeds < soup.least_members:
            message = (
                f"{soup.name} is made of {soup.least_members} runs or more, and a setting has as "
                f"many as there are seeds: {seeds}; give more seeds, or say "
                "of: {algorithm: " + item.of.algorithm + ", settings: all}"
            )
            self.document.add_error(route, message)

    def _is_misspelt(self, fields: Mapping[str, Any], name: str, route: Route) -> bool:
        """Whether a name is missing and another key is meant to be it, after reporting that."""
        key = None if name in fields else misspelt(name, fields)
        if key is not None:
            self.document.add_error((*route, key), unknown("field", key, [name]))
        return key is not None

    def _soup(self, item: After, route: Route) -> type[Soup] | None:
        """Return the class of the soup, unless something is wrong with it."""
        soups = sorted(name for name, cls in ALGORITHMS.items() if issubclass(cls, Soup))
        name, place = item.algorithm.get("name"), (*route, "algorithm")
        cls = ALGORITHMS.get(name) if isinstance(name, str) else None
        if self._is_misspelt(item.algorithm, "name", place):
            return None
        if cls is None:
            self.document.add_error((*place, "name"), unknown("soup", name, soups))
        elif not issubclass(cls, Soup):
            message = f"{name} is not made of other runs; after takes {', '.join(soups)}"
            self.document.add_error((*place, "name"), message)
        elif "members" in item.algorithm:
            message = "are the runs that `of` names; leave it out, or name the soup in baselines"
            self.document.add_error((*place, "members"), message)
        else:
            self._check_algorithm(item.algorithm, place)
            return cls
        return None

    def _members(self, item: After, route: Route) -> TrialConfig | None:
        """Return the config of the runs that a soup is made of, but for what varies, if any."""
        name, place = item.of.algorithm, (*route, "of", "algorithm")
        played: dict[str, Mapping[str, Any]] = {one: {"name": one} for one in self.algorithms}
        played |= {str(baseline["name"]): baseline for baseline in self.baselines}
        if name not in played:
            self.document.add_error(place, unknown("algorithm of this sweep", name, played))
        elif not ALGORITHMS[name].trains:
            message = f"{name} trains nothing, so there is nothing to make a soup of"
            self.document.add_error(place, message)
        else:
            try:
                return baseline_at(self.trial, played[name], {})
            except InvalidConfig:  # reported at its own place
                return None
        return None


def _placed(distribution: Distribution, value: Any) -> Placed:
    """A value of a distribution, with its place."""
    same = (
        route
        for route, other in distribution.boundary_values()
        if canonical(other) == canonical(value)
    )
    return next(same, ()), value

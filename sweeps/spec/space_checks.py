"""Whether every run of a sweep has a valid trial config: trials, baselines and soups."""

from __future__ import annotations

import dataclasses
import graphlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from carft_sweep.carft_core.algorithms import ALGORITHMS, Soup
from carft_sweep.carft_core.config.trial import PromptsConfig, TrialConfig, field_names
from carft_sweep.carft_core.errors import (
    InvalidConfig,
    Problem,
    RequestError,
    Route,
    dotted,
    misspelt,
    unknown,
)
from carft_sweep.carft_core.models.prompts import template_set
from carft_sweep.carft_core.training.optim import OptimConfig
from carft_sweep.sweeps.space.distributions import (
    Condition,
    Distribution,
    Params,
    Uniform,
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
from carft_sweep.sweeps.spec.normalize import KEYS, names_unknown_algorithm, no_field_of
from carft_sweep.sweeps.spec.settings import After, Settings

MAX_VALUES_SHOWN = 10
OF_TRAINING = ("train/", "system/")
"""Prefixes of the metrics that no merged model has."""


def check_conditions(
    document: SpecDocument, space: Sequence[Distribution]
) -> tuple[Distribution, ...]:
    """Report every wrong condition between parameters; return the space without these conditions,
    and without any if they form a circle."""
    known = {item.name: item for item in space}
    sound = []
    for item in space:
        when = []
        for condition in item.when:
            wrong = _wrong(item, condition, known)
            if wrong is None:
                when.append(condition)
            elif condition.name not in document.mapping(("parameters",)) or condition.name in known:
                # Else the other parameter has a mistake itself, which is reported there.
                route = ("parameters", item.name, "when", condition.name)
                document.add_error(route, wrong)
        sound.append(dataclasses.replace(item, when=tuple(when)))
    try:
        topological_order(sound)
    except graphlib.CycleError as error:
        circle = error.args[1][::-1]  # each depends on the next
        route = ("parameters", circle[0], "when", circle[1])
        document.add_error(route, f"forms a circle: {' -> '.join(circle)}")
        return tuple(dataclasses.replace(item, when=()) for item in sound)
    return tuple(sound)


def _wrong(
    distribution: Distribution, condition: Condition, known: Mapping[str, Distribution]
) -> str | None:
    """Return what is wrong with a condition of `distribution`; None for a valid one. `known` are
    the parameters by name."""
    name = condition.name
    if distribution.name == "algorithm.name":
        return "algorithm.name decides which fields there are, and has no conditions"
    if name not in known:
        return unknown("parameter", name, known)
    possible = known[name].grid_values()
    if possible is None:
        return f"{name} is a range without steps; a condition needs one with listed values"
    for value in condition.values:
        if not is_among(value, possible):
            shown = ", ".join(map(canonical, possible[:MAX_VALUES_SHOWN]))
            more = ", ..." if len(possible) > MAX_VALUES_SHOWN else ""
            return f"{name} is never {canonical(value)[:80]}; its values are {shown}{more}"
    return None


ENOUGH = 20
"""With more mistakes in what all trials share, single values are not checked."""
Placed = tuple[Route, Any]
"""A value of a parameter, with its route below the parameter's name."""


class TrialSpace:
    """The trial, the parameters, the baselines and the soups of a sweep file, checked together.
    Configs are built at all values that decide on validity, and their mistakes reported."""

    def __init__(self, document: SpecDocument, settings: Settings) -> None:
        self.document, self.settings = document, settings
        self.space = check_conditions(document, list(self._parameters()))
        self.trial: Mapping[str, Any] = document.mapping(("trial",))
        self.varied: Distribution | None = next(
            (item for item in self.space if item.name == "algorithm.name"), None
        )
        names = (name for name in document.field_values("algorithm.name") if isinstance(name, str))
        self.algorithms = tuple(name for name in names if name in ALGORITHMS)
        """The registered ones among the algorithms of the trials."""
        self.problems: list[Problem] = []
        """The problems of all configs that were built."""
        self._base: list[TrialConfig] = []
        # One of them may be a misspelt `parameters`, or `trial`.
        self._unknown_keys = {*document.data} - {*KEYS}
        is_open = document.is_wrong(("parameters",)) or self._unknown_keys
        if settings.method != "grid" and not (self.space or is_open):
            message = "searches parameters, and there are none; vary one, or use grid"
            document.add_error(("method",), message)
        self._check_values()
        self.baselines = self._baselines()
        for index, item in enumerate(settings.after):
            self._check_after(item, ("after", index))
        if settings.method == "grid" and not document.is_wrong(("method",)):
            self._check_grid()

    def _parameters(self) -> Iterator[Distribution]:
        """Yield the varied fields; report fields that are wrong, or fixed as well."""
        for name, data in self.document.mapping(("parameters",)).items():
            try:
                yield parse_parameter(name, data)
            except InvalidConfig as error:
                for problem in error.problems:
                    route = ("parameters", name, *problem.path)
                    self.document.add_error(route, problem.message)
            fixed = ("trial", *name.split("."))
            # With a condition, the fixed value is the field's where it does not vary.
            is_conditional = isinstance(data, Mapping) and "when" in data
            if not is_conditional and self.document.get(fixed) is not None:
                other = self.document.place(("parameters", name)).text
                message = f"is set here and also listed under parameters ({other})"
                self.document.add_error(fixed, f"{message}; remove one of them")

    def _check_values(self) -> None:
        """Report every mistake in the trial and in the values of its parameters."""
        if not self.trial and (self._unknown_keys or self.document.is_wrong(("trial",))):
            return
        suited = self._suited()
        space = [item for item in self.space if item.name in suited]
        done: set[str] = set()
        for end in [None] if self.varied is None else self.varied.boundary_values():
            self._check_with({} if end is None else {"algorithm.name": end}, space, done)

    def check_merge(self, metric: str, label: str, route: Route) -> None:
        """Report `label`, the `merge` of `metric` at `route`, if a trial has no such model."""
        played = {name: ALGORITHMS[name] for name in self.algorithms}
        untrained = [n for n, cls in played.items() if not cls.trains and cls.starts_at_zero_shot]
        if metric.startswith(OF_TRAINING):
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
        """Return the parameters that one of the sweep's algorithms has; report the others. Where
        the algorithm varies, its fixed fields are checked too."""
        played = self.algorithms
        names = {item.name for item in self.space}
        if not played:
            return names
        is_judged = not names_unknown_algorithm(self.document)
        known = {name for algorithm in played for name in field_names(algorithm)}
        suited = {n for n in names if any(applies(n, algorithm) for algorithm in played)}
        for name in sorted(names - suited):
            message = no_field_of(played, name)
            if name.startswith("algorithm.") and not is_judged:
                continue
            if name in known:
                message = f"{' or '.join(played)} trains nothing, so this changes nothing"
            self.document.add_error(("parameters", name), message)
        own_fields = self.document.mapping(("trial", "algorithm"))
        for field in own_fields if self.varied and is_judged else ():
            if f"algorithm.{field}" not in known:
                message = no_field_of(played, f"algorithm.{field}")
                self.document.add_error(("trial", "algorithm", field), message)
        return suited

    def _check_with(
        self, fixed: Mapping[str, Placed], space: Sequence[Distribution], done: set[str]
    ) -> None:
        """Check the config at the first values of `space`, then with each other boundary value, all
        with the algorithm in `fixed`. `done` are the fields outside `algorithm` that were checked
        with an earlier algorithm; further ones are added."""
        first = {**{item.name: item.boundary_values()[0] for item in space}, **fixed}
        known = self._probe(space, first, None, [])
        if len(known) > ENOUGH:
            return
        for item in space:
            others = {**self._activating(item), **fixed}
            is_active = item.name in _sampled(space, first | others)
            if not is_active or item.name in (*done, "algorithm.name"):
                continue
            if not item.name.startswith("algorithm."):
                done.add(item.name)
            for probed in item.boundary_values()[0 if item.when else 1 :]:
                self._probe(space, first | others | {item.name: probed}, item.name, known)

    def _activating(self, item: Distribution) -> dict[str, Placed]:
        """Return other parameters' values that make `item` active, each with its route."""
        by_name = {other.name: other for other in self.space}
        values: dict[str, Placed] = {}
        waiting = [item]
        while waiting:
            for on in waiting.pop().when:
                if on.name not in values:
                    values[on.name] = _placed(by_name[on.name], on.values[0])
                    waiting.append(by_name[on.name])
        return values

    def _probe(
        self,
        space: Sequence[Distribution],
        values: Mapping[str, Placed],
        changed: str | None,
        known: Sequence[Problem],
    ) -> list[Problem]:
        """Return all problems of the config at `values`; report those that are not in `known`.
        `changed` is the parameter that differs from the config of `known`."""
        params = _sampled(space, values)
        problems = [*self._problems(params)]
        self.problems += problems
        for problem in problems:
            if problem not in known:
                self._report(problem, {name: values[name][0] for name in params}, changed)
        return problems

    def _problems(self, params: Params) -> Iterator[Problem]:
        try:
            self._base.append(config_at(self.trial, params))
        except InvalidConfig as error:
            yield from error.problems
        for field in PromptsConfig.model_fields:
            given = self.document.get(("trial", "prompts", field))
            name = params.get(f"prompts.{field}", given)
            if isinstance(name, str):
                try:
                    template_set(name)
                except RequestError as error:
                    yield Problem(("prompts", field), str(error))

    def _report(self, problem: Problem, routes: Mapping[str, Route], changed: str | None) -> None:
        """Report a config's problem at the parameter's value (in `routes`) that it is about, else
        at the value of `changed`, else in the trial."""
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
        """Report infinitely many values, too many points, and points that make no valid config."""
        for item in self.space:
            route = ("parameters", item.name)
            if isinstance(item, Uniform) and item.count > MAX_VALUES:
                message = f"has {item.count} values, more than {MAX_VALUES} for a grid"
                self.document.add_error(route, message)
                return
            if item.grid_values() is None:
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
            fields = self._baseline(item, route)
            for baseline in () if fields is None else self._settings(fields, route):
                key = json.dumps(baseline, sort_keys=True)
                if key in right:
                    self.document.add_error(route, f"{baseline['name']} is in the list twice")
                right[key] = baseline
                self._check_algorithm(baseline, route)
        return tuple(right.values())

    def _settings(self, fields: Mapping[str, Any], route: Route) -> Iterator[Mapping[str, Any]]:
        """Yield a baseline at every combination of the values that its own fields list."""
        name, axes = str(fields["name"]), {}
        own = [*ALGORITHMS[name].model_fields, *(f"optim.{k}" for k in OptimConfig.model_fields)]
        for field, value in fields.items():
            axes[field] = [value]
            if field not in own and "." in field:
                message = unknown(f"field of {name} or optim", field, own)
                self.document.add_error((*route, field), message)
            elif not applies(field, name):
                message = f"{name} trains nothing, so this changes nothing"
                self.document.add_error((*route, field), message)
            elif isinstance(value, Mapping) and "when" in value:
                message = "is for parameters; a baseline runs at all its values"
                self.document.add_error((*route, field, "when"), message)
            elif isinstance(value, Mapping) and "values" in value:
                try:
                    axes[field] = [*(parse_parameter(field, value).grid_values() or ())]
                except InvalidConfig as error:
                    for problem in error.problems:
                        self.document.add_error((*route, field, *problem.path), problem.message)
        if not self.document.is_wrong(route):
            for values in itertools.product(*axes.values()):
                yield dict(zip(axes, values, strict=True))

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
        return fields

    def _check_algorithm(self, fields: Mapping[str, Any], route: Route) -> None:
        """Report wrong fields of a baseline or soup at `route`, and merges it does not support."""
        try:
            baseline_at(self.trial, fields, {})
        except InvalidConfig as error:
            for problem in error.problems:
                if problem.path[0] == "merges" and problem not in self.problems:
                    self.document.add_error(route, problem.message)
                elif problem.path[0] == "algorithm":
                    self.document.add_error((*route, *problem.path[1:]), problem.message)
                elif dotted(problem.path) in fields:
                    self.document.add_error((*route, dotted(problem.path)), problem.message)

    def _check_after(self, item: After, route: Route) -> None:
        """Report the soup at `route` if it cannot be made, at the value that prevents it."""
        if item in self.settings.after[: int(route[1])]:
            self.document.add_error(route, "is in the list twice")
            return
        soups = {name: cls for name, cls in ALGORITHMS.items() if issubclass(cls, Soup)}
        name, of = item.algorithm.get("name"), item.of.algorithm
        place, of_place = (*route, "algorithm"), (*route, "of", "algorithm")
        members = self._members(of, of_place)
        if self._is_misspelt(item.algorithm, "name", place):
            return
        if not isinstance(name, str) or name not in soups:
            self.document.add_error((*place, "name"), unknown("soup", name, soups))
            return
        self._check_algorithm(item.algorithm, place)
        if members is None:
            return
        if not members.algorithm.keeps_shape:
            message = f"{of} gives models of another shape than the zero-shot one"
            self.document.add_error(of_place, message)
        if not members.keep.weights:
            message = f"{name} (after) is made of the runs' weights, so they must be kept"
            self.document.add_error(("trial", "keep", "weights"), message)
        if members.follows_seed:
            message = (
                "data.split_seed: seed gives each seed a split of its own, so a soup would be "
                "validated on images that some of its runs were trained on"
            )
            self.document.add_error(route, message)
        seeds, least = len(self.settings.seeds), soups[name].least_members
        if item.of.settings == "selected" and seeds < least:
            self.document.add_error(
                route,
                f"{name} is made of {least} runs or more, and a setting has as many as there are "
                f"seeds: {seeds}; give more seeds, or say of: {{algorithm: {of}, settings: all}}",
            )

    def _members(self, name: str, place: Route) -> TrialConfig | None:
        """Return the config of a soup's members, runs of the algorithm `name`, without varied
        fields; None after reporting at `place` an unknown name, or for an invalid config."""
        played: dict[str, Mapping[str, Any]] = {name: {"name": name} for name in self.algorithms}
        played |= {str(baseline["name"]): baseline for baseline in self.baselines}
        trained = {name: fields for name, fields in played.items() if ALGORITHMS[name].trains}
        if name not in trained:
            kind = "algorithm of this sweep that trains"
            self.document.add_error(place, unknown(kind, name, trained))
            return None
        try:
            return baseline_at(self.trial, trained[name], {})
        except InvalidConfig:  # reported at its own place
            return None

    def _is_misspelt(self, fields: Mapping[str, Any], name: str, route: Route) -> bool:
        """Return whether a key of `fields` misspells the missing key `name`, and report it."""
        key = None if name in fields else misspelt(name, fields)
        if key is not None:
            self.document.add_error((*route, key), unknown("field", key, [name]))
        return key is not None


def _sampled(space: Sequence[Distribution], values: Mapping[str, Placed]) -> Params:
    """Return the point of the values of those parameters that are active at `values`."""
    return sample_point(space, lambda item: values[item.name][1])


def _placed(distribution: Distribution, value: Any) -> Placed:
    """Return a value with its route below the parameter, `()` if the file does not list it."""
    values, own = distribution.boundary_values(), canonical(value)
    return next((route for route, other in values if canonical(other) == own), ()), value

"""The trial and what varies in it, validated together by building configs at the ends of ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from carft_core.algorithms import ALGORITHMS
from carft_core.config import PromptsConfig, TrialConfig, field_names
from carft_core.errors import InvalidConfig, Problem, RequestError, dotted, unknown
from carft_core.prompts import template_set
from sweeps.conditions import needs, resolved
from sweeps.dimensions import Choice, Dimension, Law, Params, applies, assigned, canonical
from sweeps.draft import Draft
from sweeps.draws import probes
from sweeps.points import config_at
from sweeps.yaml_lines import Route

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

"""The trial and what varies in it, validated together by building configs at the ends of ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from carft_core.algorithms import ALGORITHMS
from carft_core.config import PromptsConfig, TrialConfig, field_names
from carft_core.errors import InvalidConfig, Problem, RequestError, dotted, unknown
from carft_core.prompts import template_set
from sweeps.dimensions import Choice, Dimension, Params, applies, probes
from sweeps.draft import Draft
from sweeps.points import config_at
from sweeps.yaml_lines import Route

ENOUGH = 20
"""With so many mistakes in what all trials share, single values are not looked at any more."""


class TrialSpace:
    """A draft's trial with its dimensions."""

    def __init__(self, draft: Draft, dimensions: Sequence[Dimension]) -> None:
        self.draft = draft
        self.dimensions = tuple(dimensions)
        self.trial: Mapping[str, Any] = draft.mapping(("trial",))
        self.varied: Dimension | None = next(
            (item for item in self.dimensions if item.name == "algorithm.name"), None
        )
        self.algorithms = self._algorithms()
        self._base: list[TrialConfig] = []

    def check(self) -> None:
        """Report every mistake in the trial and in the values of its dimensions."""
        if self.draft.get(("trial",)) is not None and not self.trial:
            return
        suited = self._suited()
        ends = {item.name: probes(item) for item in self.dimensions if item.name in suited}
        first = {name: values[0] for name, values in ends.items()}
        if self.varied is None:
            self._probe(first, ends)
            return
        for end in ends.pop("algorithm.name"):
            self._probe({**first, "algorithm.name": end}, ends)
            ends = {name: ends for name, ends in ends.items() if name.startswith("algorithm.")}

    def check_merge(self, metric: str, label: str) -> None:
        """Report a `metric.merge` that is no merge point of some trial."""
        route = ("metric", "merge")
        untrained = [name for name in self.algorithms if not ALGORITHMS[name].trains]
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

    def _probe(
        self,
        first: Mapping[str, tuple[Route, Any]],
        ends: Mapping[str, Sequence[tuple[Route, Any]]],
    ) -> None:
        """Build the config at `first`, then with each end of each dimension in its turn."""
        params = {name: value for name, (_, value) in first.items()}
        routes = {name: route for name, (route, _) in first.items()}
        known = self._problems(params)
        for problem in known:
            self._tell(problem, routes, None)
        if len(known) > ENOUGH:
            return
        for name, values in ends.items():
            for route, value in values[1:]:
                for problem in self._problems({**params, name: value}):
                    if problem not in known:
                        self._tell(problem, {**routes, name: route}, name)

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

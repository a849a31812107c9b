"""How much of what a metric varies is due to each parameter: Optuna's fANOVA over the trials.

fANOVA and not PED-ANOVA, which asks what leads to the best tenth: of ten trials that is one. Each
parameter is given to it on an even axis of its own, logarithms and places in a list: Optuna would
weigh rates by their size, and the values of a list by how it writes them in zeros and ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sweeps.parameters import dimension
from tracking.compare import Comparison

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from sweeps.mirror import Kept

FEWEST = 10
"""Complete trials below which there is no importance."""
_TREES = 64
_DEPTH = 6
"""Of a tree: more tells nothing new of a main effect, and takes minutes with 2,000 trials."""

Shares = Mapping[str, Mapping[str, float]]
"""By metric: parameter to its share, 0 to 1, together 1."""


def importance(sweep: Kept, comparison: Comparison) -> Shares | None:
    """The shares for the metric of selection, and for ID test and OOD mean as they are judged.

    Over the complete trials of the comparison that have all three, as far as any has them. A
    parameter that not every one of them has (a conditional one) is left out, as Optuna does, and
    so is a metric that is the same everywhere. None with fewer than ten trials, or with fewer than
    two such parameters. Hutter, Hoos, Leyton-Brown, ICML 2014.
    """
    params, measured = _complete(sweep, comparison)
    if len(params) < FEWEST:
        return None
    from sweeps.space import distributions, encode

    plain = sweep.spec["parameters"].items()
    read = (dimension(name, data, _known_as_right) for name, data in plain)
    dimensions = [item for item in read if item is not None]
    points = [encode(dimensions, point) for point in params]
    shared = set.intersection(*(set(point) for point in points))
    varied = [name for name in sorted(shared) if len({str(point[name]) for point in points}) > 1]
    if len(varied) < 2:
        return None
    known = distributions(dimensions)
    axes = {name: _axis(known[name]) for name in varied}
    ends = {name: (low, high) for name, (low, high, _) in axes.items()}
    places = [{name: place(point[name]) for name, (*_, place) in axes.items()} for point in points]
    differing = {name: values for name, values in measured.items() if len({*values}) > 1}
    return _shares(places, ends, differing) or None


def _complete(
    sweep: Kept, comparison: Comparison
) -> tuple[list[Mapping[str, Any]], dict[str, list[float]]]:
    """The parameters of each complete trial, and by metric the means of the rule's model."""
    params = {trial.number: trial.params for trial in sweep.trials() if trial.state == "complete"}
    rows = [
        row
        for row in comparison.rows
        if row.arm.trial in params and row.arm.merge == comparison.rule.merge
    ]
    terms = comparison.terms
    metrics = [
        name
        for name in dict.fromkeys((comparison.rule.metric, terms.test, terms.ood))
        if any(row.metric(name).mean is not None for row in rows)
    ]
    found: list[Mapping[str, Any]] = []
    measured: dict[str, list[float]] = {name: [] for name in metrics}
    for row in rows:
        means = {name: row.metric(name).mean for name in metrics}
        whole = {name: mean for name, mean in means.items() if mean is not None}
        if row.arm.trial is not None and len(whole) == len(metrics):
            found.append(params[row.arm.trial])
            for name, mean in whole.items():
                measured[name].append(mean)
    return found, measured


def _axis(distribution: BaseDistribution) -> tuple[float, float, Callable[[Any], float]]:
    """Both ends of an axis on which the distribution is even, and the place of a value on it."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    match distribution:
        case CategoricalDistribution(choices=choices):
            return -0.5, len(choices) - 0.5, lambda value: float(choices.index(value))
        case FloatDistribution(low=low, high=high, log=True):
            return math.log(low), math.log(high), math.log
        case IntDistribution(low=low, high=high, step=step):
            return low - step / 2, high + step / 2, float
        case FloatDistribution(low=low, high=high, step=step):
            around = (step or 0.0) / 2
            return low - around, high + around, float
        case other:
            raise TypeError(f"no axis for {other}")


def _shares(
    places: Sequence[Mapping[str, float]],
    ends: Mapping[str, tuple[float, float]],
    measured: Mapping[str, Sequence[float]],
) -> dict[str, Mapping[str, float]]:
    import optuna
    from optuna.distributions import FloatDistribution

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    known = {name: FloatDistribution(low, high) for name, (low, high) in ends.items()}
    study = optuna.create_study()
    study.add_trials(
        [
            optuna.trial.create_trial(params=dict(point), distributions=dict(known), value=0.0)
            for point in places
        ]
    )
    found: dict[str, Mapping[str, float]] = {}
    for metric, values in measured.items():
        by_number = dict(enumerate(values))
        shares = optuna.importance.get_param_importances(
            study,
            evaluator=optuna.importance.FanovaImportanceEvaluator(
                n_trees=_TREES, max_depth=_DEPTH, seed=0
            ),
            target=lambda trial, known=by_number: known[trial.number],  # type: ignore[misc]
        )
        found[metric] = {name: float(share) for name, share in shares.items()}
    return found


def _known_as_right(route: object, message: str) -> None:
    """Parameters that were run were checked."""
    raise ValueError(f"{route}: {message}")

"""When a trial ends early, as a sweep file says it: early termination, and the race over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from carft_core.errors import unknown
from sweeps.draft import Draft
from sweeps.goals import honest
from sweeps.metric_names import is_reported, problem
from sweeps.models import validated
from sweeps.settings import RULES, EarlyTerminate, Metric, RaceSeeds
from sweeps.wandb_keys import HYPERBAND, of_early_terminate
from sweeps.yaml_lines import Route

_ROUTE: Route = ("early_terminate",)
_EVERY_EPOCH: Route = ("trial", "eval", "every_epoch")
_ALL = ("type", "metric", "allow_grid")
"""The fields that go with every type."""


def early_terminate(draft: Draft, goal: Metric | None) -> EarlyTerminate | None:
    """The rule with its metric filled in; None when there is none, or after reporting mistakes."""
    of_early_terminate(draft)
    given = draft.get(_ROUTE)
    if given is None:
        return None
    if not isinstance(given, Mapping):
        types = ", ".join(RULES)
        message = f"must be a mapping such as {{type: median}} ({types}), got {repr(given)[:80]}"
        draft.report(_ROUTE, message)
        return None
    if draft.get(("method",)) in (None, "grid") and given.get("allow_grid") is not True:
        draft.report(
            _ROUTE,
            "would stop points of a grid, which then enter no mean, test or curve; use another "
            "method, or say allow_grid: true in it",
        )
    name = _metric(draft, given, goal)
    rule = validated(draft, EarlyTerminate, _of_its_type(draft, given), _ROUTE)
    if rule is None or name is None:
        return None
    if rule.type == "threshold":
        _bounds(draft, rule)
    return rule.model_copy(update={"metric": name})


def _of_its_type(draft: Draft, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that belong to the type; the others are reported."""
    kind = given.get("type")
    own = RULES.get(kind) if isinstance(kind, str) else None
    right = {}
    for key, value in given.items():
        if key in _ALL or (key in EarlyTerminate.model_fields and (own is None or key in own)):
            right[key] = value
        elif own is None:
            draft.report((*_ROUTE, key), unknown("field", key, EarlyTerminate.model_fields))
        elif key in EarlyTerminate.model_fields:
            message = f"does not go with {kind}, which has {', '.join(own)}"
            draft.report((*_ROUTE, key), message)
        elif key in HYPERBAND:
            draft.report((*_ROUTE, key), f"{key} goes with W&B's type: hyperband; here {own[0]}")
        else:
            draft.report((*_ROUTE, key), unknown(f"field of {kind}", key, (*own, *_ALL)))
    return right


def _metric(draft: Draft, given: Mapping[str, Any], goal: Metric | None) -> str | None:
    """The metric of the epoch reports that decides: the one that is named, or the sweep's own."""
    name, route = given.get("metric"), (*_ROUTE, "metric")
    more = every_epoch(draft)
    if name is None:
        if goal is None:
            return None  # the sweep's own is wrong, which is reported
        if goal.merge is None and is_reported(goal.name, every_epoch=more):
            return goal.name
        said = f"{goal.name} of {goal.merge}" if goal.merge else goal.name
        message = f"wants a metric of every epoch, such as metric: id/val/top1; {said} comes later"
        draft.report(_ROUTE, message)
        return None
    if not isinstance(name, str):
        return None  # reported with its type
    wrong = problem(name)
    if wrong is None and not is_reported(name, every_epoch=more):
        also = "" if more else "; with trial.eval.every_epoch also id/test/... and ood/SHIFT/..."
        wrong = f"{name} is not measured at every epoch; id/val/... and train/... are{also}"
    if wrong is not None:
        draft.report(route, wrong)
        return None
    honest(draft, name, route)
    return name


def every_epoch(draft: Draft) -> bool:
    """Whether every run measures test and shifts after every epoch."""
    varied = draft.get(("parameters", "eval.every_epoch"))
    if isinstance(varied, Mapping):
        return varied.get("value", varied.get("values")) in (True, [True])
    return draft.get(_EVERY_EPOCH) is True


def _bounds(draft: Draft, rule: EarlyTerminate) -> None:
    if rule.lower is None and rule.upper is None:
        draft.report(_ROUTE, "threshold wants lower, upper or both")
    elif rule.lower is not None and rule.upper is not None and rule.lower >= rule.upper:
        message = f"must be greater than lower, {rule.lower:g}, got {rule.upper:g}"
        draft.report((*_ROUTE, "upper"), message)


def race_seeds(draft: Draft, seeds: int) -> RaceSeeds | None:
    """The race; None when there is none, or after reporting mistakes. `seeds`: their number."""
    route: Route = ("race_seeds",)
    given = draft.get(route)
    if given is None:
        return None
    if not isinstance(given, Mapping):
        message = f"must be a mapping such as {{margin: 0.02, after: 1}}, got {repr(given)[:80]}"
        draft.report(route, message)
        return None
    race = validated(draft, RaceSeeds, given, route)
    if race is not None and race.after >= seeds:
        had = "1 seed" if seeds == 1 else f"{seeds} seeds"
        where: Route = (*route, "after") if seeds > 1 else route
        draft.report(where, f"must leave seeds to save: after {race.after} of {had} there is none")
    return race

"""What a sweep optimises, reports by, and stops early by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from carft_core.data import FAMILIES, Family
from carft_core.errors import Route, unknown
from sweeps.space.distributions import Dimension
from sweeps.spec.document import Draft, validated
from sweeps.spec.metrics import is_reported, is_selectable, natural_goal, problem
from sweeps.spec.normalize import HYPERBAND, of_early_terminate, of_metric
from sweeps.spec.settings import (
    EARLY_TERMINATION_FIELDS,
    MOST_GOALS,
    EarlyTerminate,
    Metric,
    RaceSeeds,
    Report,
)
from sweeps.spec.space_checks import TrialSpace
from sweeps.spec.tasks import values
from tracking.comparison.metrics import TOP1


def goals(draft: Draft, space: TrialSpace) -> tuple[Metric, ...]:
    """The goal of `metric`, or those of `metrics`, as far as they are right; the rest is reported.

    Both may be given when `metric` only repeats the first of `metrics`, as plain data of a sweep
    does.
    """
    several = draft.get(("metrics",))
    if several is None:
        found = (_goal(draft, space, ("metric",)),)
        return tuple(goal for goal in found if goal is not None)
    if not isinstance(several, list) or not 2 <= len(several) <= MOST_GOALS:
        shown = f"{len(several)} of them" if isinstance(several, list) else repr(several)[:80]
        message = f"must be a list of 2 to {MOST_GOALS} goals {{name: ..., goal: ...}}, got {shown}"
        draft.report(("metrics",), message)
        return ()
    routes: list[Route] = [("metrics", index) for index in range(len(several))]
    found_ = [_goal(draft, space, route) for route in routes]
    _no_other_metric(draft, found_[0])
    right = [(route, goal) for route, goal in zip(routes, found_, strict=True) if goal is not None]
    seen: set[tuple[str, str | None]] = set()
    for route, goal in right:
        if (goal.name, goal.merge) in seen:
            draft.report(route, f"{goal.name} stands in the list twice")
        if goal.target is not None:
            draft.report((*route, "target"), "goes with one metric; several goals have no target")
        seen.add((goal.name, goal.merge))
    return tuple(goal for _, goal in right)


def _no_other_metric(draft: Draft, first: Metric | None) -> None:
    given = draft.mapping(("metric",))
    if given and (first is None or _with_goal(given) != _with_goal(first.plain())):
        other = draft.place(("metric",)).text
        draft.report(("metrics",), f"is given beside metric at {other}; keep one of the two")


def _with_goal(fields: Mapping[str, Any]) -> dict[str, Any]:
    """With the metric's own direction where none is said, and without what is empty."""
    name = fields.get("name", Metric().name)
    own = {"name": name, "goal": natural_goal(name) if isinstance(name, str) else None}
    return {**own, **{key: value for key, value in fields.items() if value is not None}}


def _goal(draft: Draft, space: TrialSpace, route: Route) -> Metric | None:
    of_metric(draft, route)
    given = draft.mapping(route)
    goal = validated(draft, Metric, _with_goal(given), route)
    name = given.get("name", Metric().name)
    if not isinstance(name, str):
        return None
    wrong = problem(name)
    if wrong:
        draft.report((*route, "name"), wrong)
        return None
    if given.get("goal") in ("maximize", "minimize") and given["goal"] != natural_goal(name):
        message = f"{name} is better the other way round; leave goal out"
        draft.report((*route, "goal"), message)
    honest(draft, name, (*route, "name"))
    merge = given.get("merge")
    if isinstance(merge, str):
        space.check_merge(name, merge, (*route, "merge"))
    return goal


def honest(draft: Draft, name: str, route: Route) -> None:
    """Report a metric that looks at a test split or a shift, unless the file says `oracle`."""
    if not is_selectable(name) and draft.get(("selection",)) != "oracle":
        draft.report(
            route,
            f"selecting on {name} looks at what is to be measured; select on id/val/top1, or say "
            "`selection: oracle`, and every table will carry the word",
        )


FAMILY = "data.family"
_REPORT_BY = ("report", "by")
_BY_FAMILY = ("report", "by_family")


def ranked_by(
    draft: Draft, report: Report, dimensions: Sequence[Dimension], tasks: str | None
) -> Report:
    """The report's settings with the accuracy filled in where it is not top-1.

    Families that are ranked by different ones have each its own where they are the tasks, else
    top-1, with a warning. An accuracy by which a family is not measured is reported.
    """
    families = _families(draft, dimensions)
    if report.by is not None and report.by_family:
        draft.report(_BY_FAMILY, f"is given beside by at {draft.place(_REPORT_BY).text}; keep one")
        return report
    if report.by is not None:
        for family in families:
            _check(draft, family, report.by, _REPORT_BY)
        return report
    if report.by_family:
        _check_each(draft, report, families, tasks)
        return report
    own = {family.name: family.ranked_by for family in families}
    kinds = {*own.values()}
    if kinds <= {TOP1}:
        return report
    if len(kinds) == 1:
        return _filled(report, by=kinds.pop())
    if tasks == FAMILY:
        return _filled(report, by_family=own)
    each = ", ".join(f"{name} by {kind}" for name, kind in own.items())
    draft.warnings.append(
        f"{draft.place(('parameters', FAMILY)).text}: these families are ranked differently "
        f"({each}); the verdict is by top1, unless report.by names another or tasks: {FAMILY}"
    )
    return report


def _filled(report: Report, **found: object) -> Report:
    return Report.model_validate({**report.plain(), **found})


def _families(draft: Draft, dimensions: Sequence[Dimension]) -> list[Family]:
    """Those in play, as far as they are known."""
    names = values(dimensions, FAMILY) or (draft.get(("trial", "data", "family")),)
    return [FAMILIES[name] for name in names if isinstance(name, str) and name in FAMILIES]


def _check(draft: Draft, family: Family, kind: str, route: tuple[str, ...]) -> None:
    known = [TOP1, *family.metrics]
    if kind not in known:
        message = unknown(f"accuracy of {family.name}", kind, known)
        draft.report(route, f"{message} It is measured by these alone.")


def _check_each(
    draft: Draft, report: Report, families: Sequence[Family], tasks: str | None
) -> None:
    if tasks != FAMILY:
        draft.report(_BY_FAMILY, f"goes with tasks: {FAMILY}; say by, which is of all runs")
        return
    known = {family.name: family for family in families}
    for name, kind in report.by_family.items():
        if name in known:
            _check(draft, known[name], kind, (*_BY_FAMILY, name))
        else:
            draft.report((*_BY_FAMILY, name), unknown("task", name, known))


_EARLY_TERMINATE: Route = ("early_terminate",)
_EVERY_EPOCH: Route = ("trial", "eval", "every_epoch")
_ALL = ("type", "metric", "allow_grid")
"""The fields that go with every type."""


def early_terminate(draft: Draft, goal: Metric | None) -> EarlyTerminate | None:
    """The rule with its metric filled in; None when there is none, or after reporting mistakes."""
    of_early_terminate(draft)
    given = draft.get(_EARLY_TERMINATE)
    if given is None:
        return None
    if not isinstance(given, Mapping):
        types = ", ".join(EARLY_TERMINATION_FIELDS)
        message = f"must be a mapping such as {{type: median}} ({types}), got {repr(given)[:80]}"
        draft.report(_EARLY_TERMINATE, message)
        return None
    if draft.get(("method",)) in (None, "grid") and given.get("allow_grid") is not True:
        draft.report(
            _EARLY_TERMINATE,
            "would stop points of a grid, which then enter no mean, test or curve; use another "
            "method, or say allow_grid: true in it",
        )
    name = _metric(draft, given, goal)
    rule = validated(draft, EarlyTerminate, _of_its_type(draft, given), _EARLY_TERMINATE)
    if rule is None or name is None:
        return None
    if rule.type == "threshold":
        _bounds(draft, rule)
    return rule.model_copy(update={"metric": name})


def _of_its_type(draft: Draft, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that belong to the type; the others are reported."""
    kind = given.get("type")
    own = EARLY_TERMINATION_FIELDS.get(kind) if isinstance(kind, str) else None
    right = {}
    for key, value in given.items():
        if key in _ALL or (key in EarlyTerminate.model_fields and (own is None or key in own)):
            right[key] = value
        elif own is None:
            draft.report(
                (*_EARLY_TERMINATE, key), unknown("field", key, EarlyTerminate.model_fields)
            )
        elif key in EarlyTerminate.model_fields:
            message = f"does not go with {kind}, which has {', '.join(own)}"
            draft.report((*_EARLY_TERMINATE, key), message)
        elif key in HYPERBAND:
            draft.report(
                (*_EARLY_TERMINATE, key), f"{key} goes with W&B's type: hyperband; here {own[0]}"
            )
        else:
            draft.report((*_EARLY_TERMINATE, key), unknown(f"field of {kind}", key, (*own, *_ALL)))
    return right


def _metric(draft: Draft, given: Mapping[str, Any], goal: Metric | None) -> str | None:
    """The metric of the epoch reports that decides: the one that is named, or the sweep's own."""
    name, route = given.get("metric"), (*_EARLY_TERMINATE, "metric")
    more = every_epoch(draft)
    if name is None:
        if goal is None:
            return None  # the sweep's own is wrong, which is reported
        if goal.merge is None and is_reported(goal.name, every_epoch=more):
            return goal.name
        said = f"{goal.name} of {goal.merge}" if goal.merge else goal.name
        message = f"wants a metric of every epoch, such as metric: id/val/top1; {said} comes later"
        draft.report(_EARLY_TERMINATE, message)
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
        draft.report(_EARLY_TERMINATE, "threshold wants lower, upper or both")
    elif rule.lower is not None and rule.upper is not None and rule.lower >= rule.upper:
        message = f"must be greater than lower, {rule.lower:g}, got {rule.upper:g}"
        draft.report((*_EARLY_TERMINATE, "upper"), message)


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

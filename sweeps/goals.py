"""What trials are valued by: known metrics in their own direction, and honesty about selection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sweeps.draft import Draft
from sweeps.metric_names import is_selectable, natural_goal, problem
from sweeps.models import validated
from sweeps.settings import MOST_GOALS, Metric
from sweeps.trial_space import TrialSpace
from sweeps.wandb_keys import of_metric
from sweeps.yaml_lines import Route


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

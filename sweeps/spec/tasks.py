"""The parameter whose values are tasks: what may stand there, and what does not go with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from carft_core.errors import unknown
from sweeps.space.distributions import Choice, Dimension, Params
from sweeps.spec.document import Draft
from sweeps.spec.settings import RUN_CAP, Selection, Settings
from tracking.comparison.spec import LEAVE_ONE_OUT, TASK, TEST_DOMAIN, VAL_DOMAIN

METHODS = ("grid", "random")
"""Those whose points are known without results: then every setting can run on every task."""
APART = {
    "confirm_seeds": "confirms one choice, and here each task has its own",
    "after": "makes a soup of one choice, and here each task has its own",
    "early_terminate": "compares trials with each other, and those of several tasks are not alike",
    "race_seeds": "compares trials with each other, and those of several tasks are not alike",
    "metrics": "is for fronts over all trials, and those of several tasks are not alike",
}
"""Settings that do not go with tasks, and why."""
_ROUTE = ("tasks",)


def values(dimensions: Sequence[Dimension], name: str | None) -> tuple[Any, ...]:
    """The tasks of a sweep that varies them; none without `name`."""
    found = next((item for item in dimensions if item.name == name), None)
    return found.values if isinstance(found, Choice) else ()


def cells_of_tasks(
    name: str | None, tasks: Sequence[Any], selection: Selection
) -> tuple[Params, ...]:
    """What of a point every setting runs with: one for each task, or one that is empty.

    With leave-one-domain-out also each task with every other domain left out: those runs are what
    the task's settings are chosen by.
    """
    if name is None:
        return ({},)
    if selection.rule != LEAVE_ONE_OUT:
        return tuple({name: task} for task in tasks)
    return tuple(
        {name: task} if other == task else {name: task, VAL_DOMAIN: other}
        for task in tasks
        for other in (task, *(one for one in tasks if one != task))
    )


def check_tasks(draft: Draft, dimensions: Sequence[Dimension], settings: Settings | None) -> None:
    """Report what is wrong with `tasks`, and warn of settings that miss some of them."""
    name = draft.get(_ROUTE)
    if name is None:
        _check_without(draft)
    if not isinstance(name, str):
        return  # or it is reported where the settings are checked
    found = _dimension(draft, dimensions, name)
    if found is None:
        return
    route = ("parameters", name)
    if len(found.values) < 2:
        draft.report(route, "is the tasks of this sweep, and there is one; name at least two")
    if not all(isinstance(value, (str, int, float)) for value in found.values):
        draft.report(route, "is the tasks of this sweep: they have names, not lists or mappings")
    if found.when or found.probabilities is not None:
        message = "is the tasks of this sweep, on which every setting runs; list its values alone"
        draft.report(route, message)
    for other in dimensions:
        if any(condition.name == name for condition in other.when):
            message = f"a setting is the same on every task; leave the condition on {name} out"
            draft.report(("parameters", other.name, "when"), message)
    _check_points(draft, name)
    _check_beside(draft)
    if draft.get(("selection",)) == LEAVE_ONE_OUT:
        _check_left_out(draft, found)
    if settings is not None:
        every = cells_of_tasks(name, found.values, settings.selection)
        _warn_of_run_cap(draft, len(found.values), len(every), settings)


def _dimension(draft: Draft, dimensions: Sequence[Dimension], name: str) -> Choice | None:
    """The parameter that `tasks` names; None where that is wrong, which is reported."""
    if name not in draft.mapping(("parameters",)):
        known = [item.name for item in dimensions if item.name.startswith("data.")]
        draft.report(_ROUTE, f"{unknown('parameter', name, known)} Its values are the tasks.")
        return None
    if not name.startswith("data.") or name == "data.root":
        draft.report(_ROUTE, f"a task is a field of data such as data.test_domain, not {name}")
        return None
    found = next((item for item in dimensions if item.name == name), None)
    if found is not None and not isinstance(found, Choice):
        draft.report(("parameters", name), "is the tasks of this sweep; list them as values")
    return found if isinstance(found, Choice) else None


def _check_points(draft: Draft, name: str) -> None:
    """Points that are tried first are tried on every task."""
    aliases, points = draft.mapping(("aliases",)), draft.get(("try_first",))
    for index, point in enumerate(points if isinstance(points, list) else ()):
        for key in point if isinstance(point, dict) else ():
            if aliases.get(key, key) == name:
                message = "is a task, and a point is tried on every one; leave it out"
                draft.report(("try_first", index, key), message)


def _check_beside(draft: Draft) -> None:
    method = draft.get(("method",)) or "grid"
    if method not in METHODS:
        message = f"go with the methods {' and '.join(METHODS)}: every setting runs on every task"
        draft.report(_ROUTE, f"{message}, whatever came of others; this one is {method}")
    for key, why in APART.items():
        if draft.get((key,)) is not None:
            draft.report((key,), f"does not go with tasks: it {why}")
    if draft.mapping(("metric",)).get("target") is not None:
        message = "does not go with tasks: a value reached on one says nothing of the others"
        draft.report(("metric", "target"), message)


def _check_without(draft: Draft) -> None:
    """What only tasks give a meaning."""
    if draft.get(("selection",)) == LEAVE_ONE_OUT:
        draft.report(("selection",), f"{LEAVE_ONE_OUT} needs tasks: {TEST_DOMAIN}")
    if TASK in str(draft.mapping(("metric",)).get("name")):
        message = f"{TASK} stands for the name of a task, and there are no tasks"
        draft.report(("metric", "name"), message)


def _check_left_out(draft: Draft, found: Choice) -> None:
    if found.name != TEST_DOMAIN:
        draft.report(("selection",), f"{LEAVE_ONE_OUT} needs tasks: {TEST_DOMAIN}")
    elif len(found.values) < 3:
        message = f"are {len(found.values)} domains; {LEAVE_ONE_OUT} leaves out two, so list all"
        draft.report(("parameters", TEST_DOMAIN), message)
    for route in (("parameters", VAL_DOMAIN), ("trial", *VAL_DOMAIN.split("."))):
        if draft.get(route) is not None:
            draft.report(route, f"is what {LEAVE_ONE_OUT} varies by itself; leave it out")


def _warn_of_run_cap(draft: Draft, tasks: int, count: int, settings: Settings) -> None:
    cap = settings.run_cap
    if cap is None and settings.method == "random":
        cap = RUN_CAP
    if cap is not None and cap % count:
        left = count - cap % count
        of = f"the {tasks} tasks"
        of += f", each with {count // tasks - 1} domains left out" if count > tasks else ""
        draft.warnings.append(
            f"{draft.place(('run_cap',)).text}: {cap} trials are no multiple of {of}, "
            f"so the last setting lacks {left} of them; say run_cap: {cap + left}"
        )

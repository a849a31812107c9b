"""The parameter whose values are tasks: what it may be, and what does not go with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from carft_core.errors import unknown
from sweeps.space.distributions import Categorical, Distribution, Params
from sweeps.spec.document import SpecDocument
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


def task_values(space: Sequence[Distribution], name: str | None) -> tuple[Any, ...]:
    """Return the values of the parameter `name`, as far as they are listed."""
    varied = next((item for item in space if item.name == name), None)
    return varied.values if isinstance(varied, Categorical) else ()


def cells_of_tasks(
    name: str | None, tasks: Sequence[Any], selection: Selection
) -> tuple[Params, ...]:
    """Return the part of a point that every setting runs with: one for each task, or an empty one.

    With leave-one-domain-out also each task with every other domain left out: by those runs the
    task's settings are chosen.
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


def check_tasks(document: SpecDocument, space: Sequence[Distribution], settings: Settings) -> None:
    """Report what is wrong with `tasks`, and warn of settings that miss some of them."""
    name = document.get(_ROUTE)
    if name is None:
        _check_without(document)
    if not isinstance(name, str):
        return  # or it is reported with the settings
    varied = _task_parameter(document, space, name)
    if varied is None:
        return
    route = ("parameters", name)
    if len(varied.values) < 2:
        document.add_error(route, "is the tasks of this sweep, and there is one; name at least two")
    if not all(isinstance(value, (str, int, float)) for value in varied.values):
        document.add_error(
            route, "is the tasks of this sweep: they have names, not lists or mappings"
        )
    if varied.when or varied.probabilities is not None:
        message = "is the tasks of this sweep, on which every setting runs; list its values alone"
        document.add_error(route, message)
    for other in space:
        if any(condition.name == name for condition in other.when):
            message = f"a setting is the same on every task; leave the condition on {name} out"
            document.add_error(("parameters", other.name, "when"), message)
    _check_points(document, name)
    _check_beside(document)
    if document.get(("selection",)) == LEAVE_ONE_OUT:
        _check_left_out(document, varied)
    every = cells_of_tasks(name, varied.values, settings.selection)
    _warn_of_run_cap(document, len(varied.values), len(every), settings)


def _task_parameter(
    document: SpecDocument, space: Sequence[Distribution], name: str
) -> Categorical | None:
    """Return the parameter that `tasks` names; None after reporting what is wrong."""
    if name not in document.mapping(("parameters",)):
        known = [item.name for item in space if item.name.startswith("data.")]
        document.add_error(_ROUTE, f"{unknown('parameter', name, known)} Its values are the tasks.")
        return None
    if not name.startswith("data.") or name == "data.root":
        document.add_error(
            _ROUTE, f"a task is a field of data such as data.test_domain, not {name}"
        )
        return None
    varied = next((item for item in space if item.name == name), None)
    if varied is not None and not isinstance(varied, Categorical):
        document.add_error(("parameters", name), "is the tasks of this sweep; list them as values")
    return varied if isinstance(varied, Categorical) else None


def _check_points(document: SpecDocument, name: str) -> None:
    """Report a task in a point that is tried first: it is tried on every task."""
    aliases, points = document.mapping(("aliases",)), document.get(("try_first",))
    for index, point in enumerate(points if isinstance(points, list) else ()):
        for key in point if isinstance(point, dict) else ():
            if aliases.get(key, key) == name:
                message = "is a task, and a point is tried on every one; leave it out"
                document.add_error(("try_first", index, key), message)


def _check_beside(document: SpecDocument) -> None:
    method = document.get(("method",)) or "grid"
    if method not in METHODS:
        message = f"go with the methods {' and '.join(METHODS)}: every setting runs on every task"
        document.add_error(
            _ROUTE, f"{message}, whatever the results of others; this one is {method}"
        )
    for key, why in APART.items():
        if document.get((key,)) is not None:
            document.add_error((key,), f"does not go with tasks: it {why}")
    if document.mapping(("metric",)).get("target") is not None:
        message = "does not go with tasks: a value reached on one says nothing of the others"
        document.add_error(("metric", "target"), message)


def _check_without(document: SpecDocument) -> None:
    """Report what only tasks give a meaning."""
    if document.get(("selection",)) == LEAVE_ONE_OUT:
        document.add_error(("selection",), f"{LEAVE_ONE_OUT} needs tasks: {TEST_DOMAIN}")
    if TASK in str(document.mapping(("metric",)).get("name")):
        message = f"{TASK} stands for the name of a task, and there are no tasks"
        document.add_error(("metric", "name"), message)


def _check_left_out(document: SpecDocument, varied: Categorical) -> None:
    if varied.name != TEST_DOMAIN:
        document.add_error(("selection",), f"{LEAVE_ONE_OUT} needs tasks: {TEST_DOMAIN}")
    elif len(varied.values) < 3:
        message = f"are {len(varied.values)} domains; {LEAVE_ONE_OUT} leaves out two, so list all"
        document.add_error(("parameters", TEST_DOMAIN), message)
    for route in (("parameters", VAL_DOMAIN), ("trial", *VAL_DOMAIN.split("."))):
        if document.get(route) is not None:
            document.add_error(route, f"is what {LEAVE_ONE_OUT} varies by itself; leave it out")


def _warn_of_run_cap(document: SpecDocument, tasks: int, count: int, settings: Settings) -> None:
    cap = settings.run_cap
    if cap is None and settings.method == "random":
        cap = RUN_CAP
    if cap is not None and cap % count:
        left = count - cap % count
        of = f"the {tasks} tasks"
        of += f", each with {count // tasks - 1} domains left out" if count > tasks else ""
        document.add_warning(
            ("run_cap",),
            f"{cap} trials are no multiple of {of}, so the last setting lacks {left} of them; say "
            f"run_cap: {cap + left}",
        )

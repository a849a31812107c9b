"""Whether the keys of a sweep file go together, and with the trial that they vary."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from carft_sweep.carft_core.clip import brings_weights, find_model
from carft_sweep.carft_core.config import field_names
from carft_sweep.carft_core.data import FAMILIES, Family
from carft_sweep.carft_core.errors import RequestError, Route, unknown
from carft_sweep.sweeps.space.distributions import (
    Categorical,
    Distribution,
    IntUniform,
    Parametric,
    Params,
    SteppedUniform,
    canonical,
    rounded,
)
from carft_sweep.sweeps.space.points import applies
from carft_sweep.sweeps.spec.document import SpecDocument, validated_in_part
from carft_sweep.sweeps.spec.metrics import is_reported, is_selectable
from carft_sweep.sweeps.spec.settings import RUN_CAP, EarlyTerminate, Report, Settings
from carft_sweep.sweeps.spec.space_checks import TrialSpace
from carft_sweep.tracking.comparison.metrics import TOP1
from carft_sweep.tracking.comparison.spec import TASK

MOST_SHOWN = 20
logger = logging.getLogger(__name__)


def validate(document: SpecDocument) -> dict[str, Any]:
    """Check a normalised file and return the fields of its SweepSpec.

    Raises InvalidConfig with every mistake, by line.
    """
    keys = [field.alias or name for name, field in Settings.model_fields.items()]
    values = {key: document.data[key] for key in keys if document.data.get(key) is not None}
    settings = validated_in_part(document, Settings, values)
    trials = TrialSpace(document, settings)
    _check_weights(document)
    _check_goals(document, settings, trials)
    _check_tasks(document, trials.space, settings)
    fields = dict(settings) | {
        "metric": settings.goals[0],
        "report": _report(document, settings),
        "early_terminate": _early_terminate(document, settings),
        "try_first": _try_first(document, settings, trials.space),
        "parameters": trials.space,
        "baselines": trials.baselines,
        "trial": trials.trial,
    }
    document.raise_errors()
    logger.debug("%d parameters, algorithms %s", len(trials.space), ", ".join(trials.algorithms))
    return fields


def _check_weights(document: SpecDocument) -> None:
    """Report the name of an architecture where no pretrained weights are named beside it."""
    if any(document.field_values("model.pretrained")):
        return
    varied = document.get(("parameters", "model.name")) is not None
    for index, name in enumerate(document.field_values("model.name")):
        route: Route = ("parameters", "model.name", "values", index)
        route = route if varied else ("trial", "model", "name")
        if not isinstance(name, str) or document.is_wrong(route) or brings_weights(name):
            continue
        try:
            find_model(name)
        except RequestError as error:
            document.add_error(route, re.sub(r"^model\.\w+: ", "", str(error)))


def _check_goals(document: SpecDocument, settings: Settings, space: TrialSpace) -> None:
    """Report goals that are dishonest, given twice, or of a model that no trial has."""
    several = bool(settings.metrics)
    if several and document.get(("metric",)) is not None:
        other = document.place(("metric",)).text
        document.add_error(("metrics",), f"is given beside metric at {other}; remove one of them")
    seen: set[tuple[str, str | None]] = set()
    for index, goal in enumerate(settings.goals):
        route: Route = ("metrics", index) if several else ("metric",)
        if document.is_wrong(route):
            continue
        _check_honest(document, goal.name, (*route, "name"))
        if goal.merge is not None:
            space.check_merge(goal.name, goal.merge, (*route, "merge"))
        if (goal.name, goal.merge) in seen:
            document.add_error(route, f"{goal.name} is in the list twice")
        if several and goal.target is not None:
            message = "goes with one metric; several goals have no target"
            document.add_error((*route, "target"), message)
        seen.add((goal.name, goal.merge))


def _check_honest(document: SpecDocument, name: str, route: Route) -> None:
    """Report a metric that looks at a test split or a shift, unless the file says `oracle`."""
    if not is_selectable(name) and document.get(("selection",)) != "oracle":
        document.add_error(
            route,
            f"selecting on {name} looks at what is to be measured; select on id/val/top1, or say "
            "`selection: oracle`, and every table will carry the word",
        )


FAMILY = "data.family"
_REPORT_BY = ("report", "by")
_BY_FAMILY = ("report", "by_family")


def _report(document: SpecDocument, settings: Settings) -> Report:
    """Fill in the accuracy of the report where it is not top-1.

    Families that are ranked by different ones have each its own where they are the tasks, else
    top-1, with a warning. An accuracy by which a family is not measured is reported.
    """
    report = settings.report
    names = document.field_values(FAMILY)
    families = [FAMILIES[name] for name in names if isinstance(name, str) and name in FAMILIES]
    if report.by is not None and report.by_family:
        other = document.place(_REPORT_BY).text
        document.add_error(_BY_FAMILY, f"is given beside by at {other}; remove one of them")
    elif report.by is not None:
        for family in families:
            _check_measured_by(document, family, report.by, _REPORT_BY)
    elif report.by_family and settings.tasks != FAMILY:
        message = f"goes with tasks: {FAMILY}; say by, which is of all runs"
        document.add_error(_BY_FAMILY, message)
    elif report.by_family:
        by_name = {family.name: family for family in families}
        for name, kind in report.by_family.items():
            if name in by_name:
                _check_measured_by(document, by_name[name], kind, (*_BY_FAMILY, name))
            else:
                document.add_error((*_BY_FAMILY, name), unknown("task", name, by_name))
    else:
        own = {family.name: family.ranked_by for family in families}
        kinds = {*own.values()}
        if kinds <= {TOP1}:
            return report
        if len(kinds) == 1:
            return report.model_copy(update={"by": kinds.pop()})
        if settings.tasks == FAMILY:
            return report.model_copy(update={"by_family": own})
        each = ", ".join(f"{name} by {kind}" for name, kind in own.items())
        document.add_warning(
            ("parameters", FAMILY),
            f"these families are ranked differently ({each}); the verdict is by top1, unless "
            f"report.by names another or tasks: {FAMILY}",
        )
    return report


def _check_measured_by(
    document: SpecDocument, family: Family, kind: str, route: tuple[str, ...]
) -> None:
    kinds = [TOP1, *family.metrics]
    if kind not in kinds:
        message = unknown(f"accuracy of {family.name}", kind, kinds)
        document.add_error(route, f"{message} It is measured by these alone.")


_METHOD: Route = ("method",)
_RULE: Route = ("early_terminate",)


def _early_terminate(document: SpecDocument, settings: Settings) -> EarlyTerminate | None:
    """Fill in the metric of the rule; report one that is dishonest or not of every epoch."""
    rule = settings.early_terminate
    if rule is None:
        return None
    is_grid = settings.method == "grid" and not document.is_wrong(_METHOD)
    if is_grid and not rule.allow_grid:
        document.add_error(
            _RULE,
            "prunes grid points, which are then missing from means, tests and curves; use another "
            "method or set `allow_grid: true`",
        )
    every = document.field_values("eval.every_epoch") == [True]
    if rule.metric is not None:
        also = "" if every else "; with trial.eval.every_epoch also id/test/... and ood/SHIFT/..."
        if not is_reported(rule.metric, every_epoch=every):
            message = f"{rule.metric} is not measured at every epoch; id/val/... and train/... are"
            document.add_error((*_RULE, "metric"), f"{message}{also}")
        _check_honest(document, rule.metric, (*_RULE, "metric"))
        return rule
    goal = settings.goals[0]
    if goal.merge is None and is_reported(goal.name, every_epoch=every):
        return rule.model_copy(update={"metric": goal.name})
    if not document.is_wrong(("metric",), ("metrics",)):
        name = f"{goal.name} of {goal.merge}" if goal.merge else goal.name
        document.add_error(
            _RULE, f"needs a metric of every epoch, such as metric: id/val/top1; {name} comes later"
        )
    return rule


METHODS_OF_TASKS = ("grid", "random")
"""Those whose points are known without results: then every setting can run on every task."""
APART = {
    "confirm_seeds": "confirms one choice, and here each task has its own",
    "after": "makes a soup of one choice, and here each task has its own",
    "early_terminate": "compares trials with each other, and those of several tasks are not alike",
    "race_seeds": "compares trials with each other, and those of several tasks are not alike",
    "metrics": "is for fronts over all trials, and those of several tasks are not alike",
}
"""Settings that do not go with tasks, and why."""
_TASKS: Route = ("tasks",)


def _check_tasks(document: SpecDocument, space: Sequence[Distribution], settings: Settings) -> None:
    """Report what is wrong with `tasks`, and warn of settings that miss some of them."""
    name = document.get(_TASKS)
    if name is None:
        _check_without_tasks(document)
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
    _check_beside_tasks(document)
    _warn_of_run_cap(document, settings, len(varied.values))


def _task_parameter(
    document: SpecDocument, space: Sequence[Distribution], name: str
) -> Categorical | None:
    """Return the parameter that `tasks` names; None after reporting what is wrong."""
    if document.is_wrong(("parameters", name)):
        return None
    if name not in document.mapping(("parameters",)):
        names = [item.name for item in space if item.name.startswith("data.")]
        document.add_error(_TASKS, f"{unknown('parameter', name, names)} Its values are the tasks.")
        return None
    if not name.startswith("data.") or name == "data.root":
        document.add_error(
            _TASKS, f"a task is a field of data such as data.test_domain, not {name}"
        )
        return None
    varied = next((item for item in space if item.name == name), None)
    if varied is not None and not isinstance(varied, Categorical):
        document.add_error(("parameters", name), "is the tasks of this sweep; list them as values")
    return varied if isinstance(varied, Categorical) else None


def _check_beside_tasks(document: SpecDocument) -> None:
    method = document.get(("method",)) or "grid"
    if method not in METHODS_OF_TASKS and not document.is_wrong(_METHOD):
        message = (
            f"go with the methods {' and '.join(METHODS_OF_TASKS)}: every setting runs on every "
            f"task, whatever the results of others; this one is {method}"
        )
        document.add_error(_TASKS, message)
    for key, why in APART.items():
        if document.get((key,)) is not None:
            document.add_error((key,), f"does not go with tasks: it {why}")
    if document.mapping(("metric",)).get("target") is not None:
        message = "does not go with tasks: a value reached on one says nothing of the others"
        document.add_error(("metric", "target"), message)


def _check_without_tasks(document: SpecDocument) -> None:
    """Report what only tasks give a meaning."""
    if TASK in str(document.mapping(("metric",)).get("name")):
        message = f"{TASK} stands for the name of a task, and there are no tasks"
        document.add_error(("metric", "name"), message)


def _warn_of_run_cap(document: SpecDocument, settings: Settings, tasks: int) -> None:
    """Warn where the last setting would miss some tasks."""
    cap = settings.run_cap
    if cap is None and settings.method == "random":
        cap = RUN_CAP
    if cap is not None and cap % tasks:
        left = tasks - cap % tasks
        document.add_warning(
            ("run_cap",),
            f"{cap} trials are no multiple of the {tasks} tasks, so the last setting lacks {left} "
            f"of them; say run_cap: {cap + left}",
        )


_TRY_FIRST: Route = ("try_first",)


def _try_first(
    document: SpecDocument, settings: Settings, space: Sequence[Distribution]
) -> tuple[Params, ...]:
    """Read the points by dotted field, with the space's own values; report what is wrong."""
    points = settings.try_first
    if not points:
        return ()
    if settings.method == "grid":
        if not document.is_wrong(_METHOD):
            document.add_error(_TRY_FIRST, "does not go with grid, which tries every point")
        return ()
    # A point is tried on every task: the task is none of its fields.
    free = [item for item in space if item.name != settings.tasks]
    trials = -(-(settings.run_cap or RUN_CAP) // max(1, len(settings.cells_of(space))))
    if len(points) > trials and not document.is_wrong(("run_cap",)):
        message = f"has {len(points)} points, and run_cap allows {trials} trials in all"
        document.add_error(_TRY_FIRST, message)
    read = [
        _point(document, free, item, (*_TRY_FIRST, index), settings.tasks)
        for index, item in enumerate(points)
    ]
    seen: set[str] = set()
    for index, point in enumerate(read):
        key = json.dumps(point, sort_keys=True)
        if point and key in seen:
            document.add_error((*_TRY_FIRST, index), "is in the list twice")
        seen.add(key)
    return tuple(read)


def _point(
    document: SpecDocument,
    space: Sequence[Distribution],
    item: Mapping[str, Any],
    route: Route,
    tasks: str | None,
) -> Params:
    if not item:
        document.add_error(route, "must be a mapping of parameters to values, got {}")
    aliases = document.mapping(("aliases",))
    known = {distribution.name: distribution for distribution in space}
    point: Params = {}
    for key, value in item.items():
        name = str(aliases.get(key, key))
        if name in point:
            document.add_error((*route, key), f"gives {name} a second time")
        elif name in known:
            point[name] = _own_value(document, known[name], value, (*route, key))
        elif name == tasks:
            if not document.is_wrong(_TASKS, ("parameters", name)):
                message = "is a task, and a point is tried on every one; leave it out"
                document.add_error((*route, key), message)
        elif name in field_names():
            # A parameter that is itself wrong is reported in its own place.
            if not document.is_wrong(("parameters", name)):
                message = f"does not vary; the parameters are {', '.join(known) or 'none'}"
                document.add_error((*route, key), message)
        else:
            document.add_error((*route, key), unknown("parameter", name, known))
    for name in point:
        other = _switched_off_by(known[name], point)
        if other is not None:
            document.add_error(route, f"{name} does not vary where {other} is {point[other]}")
    return {name: point[name] for name in known if name in point}


def _switched_off_by(distribution: Distribution, point: Params) -> str | None:
    """Return the other field of a point with whose value this parameter does not vary."""
    algorithm = point.get("algorithm.name")
    if isinstance(algorithm, str) and not applies(distribution.name, algorithm):
        return "algorithm.name"
    return next(
        (on.name for on in distribution.when if on.name in point and not on.is_met(point)), None
    )


def _own_value(
    document: SpecDocument, distribution: Distribution, value: object, route: Route
) -> Any:
    """Return the value as the space holds it; report one outside of the space."""
    wrong: str | None = "must be a number"
    if isinstance(distribution, Categorical):
        own = {canonical(one): one for one in distribution.values}
        if canonical(value) in own:
            return own[canonical(value)]
        wrong = f"must be one of {', '.join([*own][:MOST_SHOWN])}"
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        wrong = _outside(distribution, value)
    if wrong is not None or not isinstance(value, (int, float)):
        document.add_error(route, f"{wrong}, got {repr(value)[:80]}")
        return None
    if isinstance(distribution, Parametric):
        return rounded(value, distribution.q)
    return int(value) if isinstance(distribution, IntUniform) else float(value)


def _outside(distribution: Distribution, value: float) -> str | None:
    (_, low), (_, high) = distribution.boundary_values()
    if not low <= value <= high:
        return f"must be from {low:g} to {high:g}"
    if isinstance(distribution, Parametric) and value != rounded(value, distribution.q):
        return f"must be a multiple of {distribution.q:g}"
    if isinstance(distribution, IntUniform) and (value - low) % distribution.step:
        return f"must be {low} and a multiple of {distribution.step}"
    if isinstance(distribution, SteppedUniform):
        index = round((value - distribution.low) / distribution.step)
        if value != distribution.at(index):
            return f"must be {low:g} and a multiple of {distribution.step:g}"
    return None

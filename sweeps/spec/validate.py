"""Whether the keys of a sweep file agree with each other and with its trial."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from carft_sweep.carft_core.data import FAMILIES
from carft_sweep.carft_core.errors import RequestError, Route, unknown
from carft_sweep.carft_core.models.source import brings_weights, find_model
from carft_sweep.sweeps.space.distributions import Categorical, Distribution, Params, canonical
from carft_sweep.sweeps.spec.document import SpecDocument, validated_in_part
from carft_sweep.sweeps.spec.metrics import is_reported
from carft_sweep.sweeps.spec.settings import RUN_CAP, EarlyTerminate, Report, Settings
from carft_sweep.sweeps.spec.space_checks import OF_TRAINING, TrialSpace
from carft_sweep.tracking.comparison.metrics import TOP1
from carft_sweep.tracking.comparison.spec import TASK, looks_at_tests

MOST_SHOWN = 20
logger = logging.getLogger(__name__)


def validate(document: SpecDocument) -> dict[str, Any]:
    """Return the fields of a SweepSpec, from a normalised file after all checks. Raises
    InvalidConfig with every mistake, by line."""
    keys = [field.alias or name for name, field in Settings.model_fields.items()]
    values = {key: document.data[key] for key in keys if document.data.get(key) is not None}
    settings = validated_in_part(document, Settings, values)
    trials = TrialSpace(document, settings)
    _check_weights(document)
    _check_goals(document, settings, trials)
    _check_constraint(document, settings, trials)
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
    """Report a model's name that needs pretrained weights where none are named."""
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
    """Report goals that use test data, are given twice, or name a merge that a trial lacks."""
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


def _check_constraint(document: SpecDocument, settings: Settings, space: TrialSpace) -> None:
    """Report a constraint on a metric of test data, or relative to what is no baseline."""
    if settings.constraint is None or document.is_wrong(("constraint",)):
        return
    name, route = settings.constraint.name, ("constraint", "name")
    _check_honest(document, name, route)
    if settings.goals[0].merge is not None and name.startswith(OF_TRAINING):
        document.add_error(route, f"a merged model has no {name}")
    names = [baseline["name"] for baseline in space.baselines]
    if settings.constraint.of not in names:
        message = unknown("baseline", settings.constraint.of, names)
        document.add_error(("constraint", "of"), f"{message} Its value is the measure.")


def _check_honest(document: SpecDocument, name: str, route: Route) -> None:
    """Report the metric `name` if it is of a test split or shift, unless the file says `oracle`."""
    if looks_at_tests(name) and document.get(("selection",)) != "oracle":
        document.add_error(
            route,
            f"selecting on {name} looks at what is to be measured; select on id/val/top1, or say "
            "`selection: oracle`, and every table will carry the word",
        )


FAMILY = "data.family"


def _report(document: SpecDocument, settings: Settings) -> Report:
    """Return the report's settings, with the accuracy filled in where it is not top-1. Where tasks
    are families ranked by different accuracies, each task has its own; other sweeps over such
    families use top-1, with a warning. An accuracy that a family does not measure is reported."""
    report = settings.report
    names = (name for name in document.field_values(FAMILY) if isinstance(name, str))
    families = {name: FAMILIES[name] for name in names if name in FAMILIES}
    route: Route = ("report", "by_family" if report.by_family else "by")
    if report.by_family and (report.by is not None or settings.tasks != FAMILY):
        document.add_error(route, f"goes with tasks: {FAMILY}, and not beside by")
    by_family = report.by_family
    if report.by is not None and not by_family:
        by_family = dict.fromkeys(families, report.by)
    for name, kind in by_family.items():
        kinds = [TOP1, *families[name].metrics] if name in families else []
        if not kinds:
            document.add_error(route, unknown("task", name, families))
        elif kind not in kinds:
            message = unknown(f"accuracy of {name}", kind, kinds)
            document.add_error(route, f"{message} It is measured by these alone.")
    own = {name: family.ranked_by for name, family in families.items()}
    kinds = [*dict.fromkeys(own.values())]
    if by_family or kinds in ([], [TOP1]):
        return report
    if len(kinds) == 1:
        return report.model_copy(update={"by": kinds[0]})
    if settings.tasks == FAMILY:
        return report.model_copy(update={"by_family": own})
    each = ", ".join(f"{name} by {kind}" for name, kind in own.items())
    document.add_warning(
        ("parameters", FAMILY),
        f"these families are ranked differently ({each}); the verdict is by top1, unless "
        f"report.by names another or tasks: {FAMILY}",
    )
    return report


_METHOD: Route = ("method",)
_RULE: Route = ("early_terminate",)


def _early_terminate(document: SpecDocument, settings: Settings) -> EarlyTerminate | None:
    """Return the settings of early termination with the metric filled in. Report one of test data,
    one that is not measured at every epoch, and pruning of a grid without `allow_grid`."""
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
"""Methods whose points are known without results, so that every setting runs on every task."""
APART: tuple[Route, ...] = (
    *(("confirm_seeds",), ("after",), ("early_terminate",), ("race_seeds",), ("metrics",)),
    *(("constraint",), ("metric", "target")),
)
"""Keys that do not go with tasks: they compare trials, or concern the one selected setting."""
_TASKS: Route = ("tasks",)


def _check_tasks(document: SpecDocument, space: Sequence[Distribution], settings: Settings) -> None:
    """Report mistakes in `tasks`; warn where `run_cap` leaves the last setting without some tasks.
    `space` is what varies."""
    name = document.get(_TASKS)
    if name is None and TASK in str(document.mapping(("metric",)).get("name")):
        message = f"{TASK} stands for the name of a task, and there are no tasks"
        document.add_error(("metric", "name"), message)
    if not isinstance(name, str) or document.is_wrong(("parameters", name)):
        return  # which is reported with the settings
    varied = next((item for item in space if item.name == name), None)
    fields = [item.name for item in space if item.name.startswith("data.")]
    if name not in fields or name == "data.root":
        message = f"{unknown('parameter', name, fields)} Its values, fields of data, are the tasks."
        document.add_error(_TASKS, message)
        return
    if (
        not isinstance(varied, Categorical)
        or varied.when
        or len(varied.values) < 2
        or not all(isinstance(task, (str, int, float)) for task in varied.values)
    ):
        message = "is the tasks of this sweep: list two values or more, texts or numbers, alone"
        document.add_error(("parameters", name), message)
        return
    for other in space:
        if any(condition.name == name for condition in other.when):
            message = f"a setting is the same on every task; leave the condition on {name} out"
            document.add_error(("parameters", other.name, "when"), message)
    _check_beside_tasks(document)
    tasks, cap = len(varied.values), settings.run_cap
    if cap is None and settings.method == "random":
        cap = RUN_CAP
    if cap is not None and cap % tasks:
        rest = tasks - cap % tasks
        document.add_warning(
            ("run_cap",),
            f"{cap} trials are no multiple of the {tasks} tasks, so the last setting lacks {rest} "
            f"of them; say run_cap: {cap + rest}",
        )


def _check_beside_tasks(document: SpecDocument) -> None:
    method = document.get(("method",)) or "grid"
    if method not in METHODS_OF_TASKS and not document.is_wrong(_METHOD):
        message = (
            f"go with the methods {' and '.join(METHODS_OF_TASKS)}: every setting runs on every "
            f"task, whatever the results of others; this one is {method}"
        )
        document.add_error(_TASKS, message)
    for route in APART:
        if document.get(route) is not None:
            message = "does not go with tasks, which are apart: each has settings of its own"
            document.add_error(route, message)


_TRY_FIRST: Route = ("try_first",)


def _try_first(
    document: SpecDocument, settings: Settings, space: Sequence[Distribution]
) -> tuple[Params, ...]:
    """Return the points of `try_first`, dotted field -> value of `space`; report mistakes."""
    points, source = settings.try_first, settings.try_first_from
    if not points:
        return ()
    if settings.method == "grid":
        if not document.is_wrong(_METHOD):
            document.add_error(_TRY_FIRST, "does not go with grid, which tries every point")
        return ()
    # A point is tried on every task: the task is none of its fields.
    free = {item.name: item for item in space if item.name != settings.tasks}
    own = [
        _point(document, free, item, (*_TRY_FIRST, index), skips=bool(source))
        for index, item in enumerate(points)
    ]
    if source:  # fields outside this space are left out, after which two points may be equal
        own = [point for index, point in enumerate(own) if point and point not in own[:index]]
        if not own:
            why = "its points have no value of this space"
            document.add_warning(_TRY_FIRST, f"nothing of {source} is tried first: {why}")
    return tuple(own)


def _point(
    document: SpecDocument,
    space: Mapping[str, Distribution],
    item: Mapping[str, Any],
    route: Route,
    *,
    skips: bool,
) -> Params:
    """Return the point `item`, given at `route`, in values of `space`. A value outside of the space
    is left out, and reported unless `skips`."""
    point: Params = {}
    for name, value in item.items():
        if name in space:
            own, allowed = _own_value(space[name], value)
            if allowed is None:
                point[name] = own
            elif not skips:
                document.add_error((*route, name), f"{allowed}, got {repr(value)[:80]}")
        elif not document.is_wrong(_TASKS, ("parameters", name)):
            document.add_error((*route, name), unknown("parameter", name, space))
    return {name: point[name] for name in space if name in point}


def _own_value(distribution: Distribution, value: object) -> tuple[Any, str | None]:
    """Return (the distribution's value that equals `value`, None), or without one (None, a text of
    what is allowed)."""
    if isinstance(distribution, Categorical):
        own = {canonical(value): value for value in distribution.values}
        if canonical(value) in own:
            return own[canonical(value)], None
        allowed = f"must be one of {', '.join([*own][:MOST_SHOWN])}"
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        allowed = "must be a number"
    else:
        (_, low), (_, high) = distribution.boundary_values()
        allowed = f"must be from {low:g} to {high:g}"
        if low <= value <= high:
            if (nearest := distribution.nearest(value)) == value:
                return nearest, None
            allowed = f"must be a step of {distribution.step}, of which the nearest is {nearest}"
    return None, allowed

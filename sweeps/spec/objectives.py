"""What a sweep optimises, reports by, and stops early by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from carft_core.data import FAMILIES, Family
from carft_core.errors import Route, unknown
from sweeps.space.distributions import Distribution
from sweeps.spec.document import SpecDocument, validated
from sweeps.spec.metrics import is_reported, is_selectable
from sweeps.spec.settings import (
    EARLY_TERMINATION,
    Asha,
    Median,
    Patience,
    Report,
    Settings,
    Threshold,
)
from sweeps.spec.space_checks import TrialSpace
from sweeps.spec.tasks import task_values
from tracking.comparison.metrics import TOP1


def check_goals(document: SpecDocument, settings: Settings, space: TrialSpace) -> None:
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


def report_of(document: SpecDocument, settings: Settings, space: Sequence[Distribution]) -> Report:
    """Fill in the accuracy of the report where it is not top-1.

    Families that are ranked by different ones have each its own where they are the tasks, else
    top-1, with a warning. An accuracy by which a family is not measured is reported.
    """
    report = settings.report
    names = task_values(space, FAMILY) or (document.get(("trial", "data", "family")),)
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
        known = {family.name: family for family in families}
        for name, kind in report.by_family.items():
            if name in known:
                _check_measured_by(document, known[name], kind, (*_BY_FAMILY, name))
            else:
                document.add_error((*_BY_FAMILY, name), unknown("task", name, known))
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
    known = [TOP1, *family.metrics]
    if kind not in known:
        message = unknown(f"accuracy of {family.name}", kind, known)
        document.add_error(route, f"{message} It is measured by these alone.")


_RULE: Route = ("early_terminate",)


def early_terminate(
    document: SpecDocument, settings: Settings
) -> Median | Asha | Patience | Threshold | None:
    """Read the rule and fill in its metric; None without one, or after reporting mistakes."""
    given = document.get(_RULE)
    if given is None:
        return None
    if not isinstance(given, Mapping):
        types = ", ".join(EARLY_TERMINATION)
        message = f"must be a mapping such as {{type: median}} ({types}), got {repr(given)[:80]}"
        document.add_error(_RULE, message)
        return None
    if settings.method == "grid" and given.get("allow_grid") is not True:
        document.add_error(
            _RULE,
            "prunes grid points, which are then missing from means, tests and curves; use another "
            "method or set `allow_grid: true`",
        )
    rule = validated(document, _model_of(document, given), given, _RULE)
    if rule is None or "type" not in given:
        return None
    every = every_epoch(document)
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


def _model_of(
    document: SpecDocument, given: Mapping[str, Any]
) -> type[Median | Asha | Patience | Threshold]:
    """Return the model of the rule's type; where that is wrong, report it and take any."""
    kind = given.get("type")
    if isinstance(kind, str) and kind in EARLY_TERMINATION:
        return EARLY_TERMINATION[kind]
    *some, last = map(repr, EARLY_TERMINATION)
    message = f"must be {', '.join(some)} or {last}, got {repr(kind)[:80]}"
    document.add_error((*_RULE, "type"), message if "type" in given else "is required")
    return Median


def every_epoch(document: SpecDocument) -> bool:
    """Whether every run measures test and shifts after every epoch."""
    varied = document.get(("parameters", "eval.every_epoch"))
    if isinstance(varied, Mapping):
        return varied.get("value", varied.get("values")) in (True, [True])
    return document.get(("trial", "eval", "every_epoch")) is True

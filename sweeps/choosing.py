"""How `compare` chooses when it is told so: `--metric`, `--selection`, `--id-margin`, `--by`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from carft_core.errors import RequestError, unknown
from sweeps.metric_names import PATTERN, natural_goal, problem
from sweeps.shorthands import RULES
from tracking.compare import REFERENCE
from tracking.joint import Part
from tracking.judging import Judging
from tracking.rule_names import LEAVE_ONE_OUT, NAMED, TASK
from tracking.selection import Rule

_OPTIONS = ("metric", "selection", "id_margin", "by")


def judged(parts: Sequence[Part], arguments: argparse.Namespace) -> list[Part]:
    """Sweeps, judged as the options of a command say. Raises RequestError for what is wrong."""
    options = {name: getattr(arguments, name) for name in _OPTIONS}
    found = [replace(part, judging=chosen_by(part.judging, **options)) for part in parts]
    if arguments.metric:
        labels = {label for part in found for run in part.records for label in run.merges}
        check_merge(found[0].judging.rule.merge, labels)
    return found


def said(arguments: argparse.Namespace) -> list[str]:
    """These options once more, as far as they were given."""
    given = {name: getattr(arguments, name) for name in _OPTIONS}
    if arguments.reference != REFERENCE:
        given["reference"] = arguments.reference
    found = {name: value for name, value in given.items() if value is not None}
    return [f"--{name.replace('_', '-')}={value}" for name, value in found.items()]


def chosen_by(
    told: Judging,
    *,
    metric: str | None,
    selection: str | None,
    id_margin: float | None,
    by: str | None = None,
) -> Judging:
    """The judging of a sweep with what was said instead. Raises RequestError for what is wrong."""
    rule, terms = told.rule, told.terms
    changes = [_selection(selection)] if selection else []
    changes += [_metric(metric)] if metric else []
    if not changes and id_margin is None and by is None:
        return told
    if by is not None:
        terms = replace(terms, by=by, by_task={})
    if id_margin is not None:
        terms = replace(terms, id_margin=id_margin)
    fields = dict(vars(rule))
    for change in changes:
        fields |= change
    if told.tasks is None and (TASK in fields["metric"] or fields["named"] == LEAVE_ONE_OUT):
        raise RequestError(f"--selection {LEAVE_ONE_OUT} and {TASK} in --metric go with tasks")
    try:
        return replace(told, rule=Rule(**fields), terms=terms)
    except ValueError as error:
        raise RequestError(f"{error} (--selection oracle)") from None


def check_merge(merge: str | None, labels: Iterable[str]) -> None:
    """Raise RequestError where no run has the merged model that counts."""
    known = set(labels)
    if merge is not None and merge not in known:
        raise RequestError(f"--metric: {unknown('merged model', merge, known)}")


def _metric(text: str) -> dict[str, object]:
    """`id/val/nll`, `wise_ft@0.5/id/val/top1`, either with `:minimize` behind it."""
    name, _, goal = text.partition(":")
    merge = None
    if not re.fullmatch(PATTERN, name):
        head, _, rest = name.partition("/")
        if "@" in head and re.fullmatch(PATTERN, rest):
            merge, name = head, rest
    wrong = problem(name)
    if wrong:
        raise RequestError(f"--metric: {wrong}")
    natural = natural_goal(name)
    if goal and goal not in ("minimize", "maximize"):
        allowed = unknown("direction", goal, ("minimize", "maximize"))
        raise RequestError(f"--metric {text}: {allowed}")
    if goal and goal != natural:
        raise RequestError(f"--metric {text}: {name} is better the other way round; say {natural}")
    return {"metric": name, "goal": natural, "merge": merge}


def _selection(text: str) -> dict[str, object]:
    """A rule's name, or `within=0.005`."""
    if text in RULES:
        named = text if text in NAMED else None
        return {"within": None, "oracle": text == "oracle", "named": named}
    name, _, margin = text.partition("=")
    try:
        within = float(margin)
    except ValueError:
        within = -1.0
    if name != "within" or not 0 < within < 1:
        raise RequestError(
            f"--selection {text}: say {', '.join(RULES)}, "
            "or within=0.005 (a margin between 0 and 1)"
        )
    return {"within": within, "oracle": False, "named": None}

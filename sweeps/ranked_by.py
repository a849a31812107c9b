"""The accuracy that a sweep is judged by: as its file says, else as its families are ranked."""

from __future__ import annotations

from collections.abc import Sequence

from carft_core.data import FAMILIES, Family
from carft_core.errors import unknown
from sweeps.dimensions import Dimension
from sweeps.draft import Draft
from sweeps.settings import Report
from sweeps.tasks import values
from tracking.accuracy import TOP1

FAMILY = "data.family"
_ROUTE = ("report", "by")
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
        draft.report(_BY_FAMILY, f"is given beside by at {draft.place(_ROUTE).text}; keep one")
        return report
    if report.by is not None:
        for family in families:
            _check(draft, family, report.by, _ROUTE)
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

"""Leave-one-domain-out: a setting's value on a task is that of runs that left out one domain more.

Source: DomainBed (Gulrajani and Lopez-Paz 2021), `LeaveOneOutSelectionMethod`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from statistics import fmean

from tracking.records import RunRecord, params_key
from tracking.rule_names import VAL_DOMAIN
from tracking.selection import Rule


def seen_as(metric: str) -> str:
    """`id/val/left_out/top1` of `id/val/top1`: what runs with a further domain left out have."""
    split, _, kind = metric.rpartition("/")
    return f"{split}/left_out/{kind}"


def alone(records: Iterable[RunRecord]) -> list[RunRecord]:
    """The runs that are rows: those that leave out a further domain serve a choice, where others
    leave out none."""
    every = list(records)
    main = [run for run in every if run.params.get(VAL_DOMAIN) is None]
    return [_without_further(run) for run in main] if len(main) < len(every) and main else every


def with_left_out(
    records: Iterable[RunRecord], field: str, rule: Rule
) -> tuple[list[RunRecord], Rule]:
    """The runs that leave out their task's domain alone, each with what the rule is to see.

    That is the mean over the runs of the same setting, task and seed that leave out one domain
    more, and is there only if all other tasks are left out once. Those runs are no rows.
    """
    every = list(records)
    tasks = {str(run.params.get(field)) for run in every}
    beside: dict[tuple[str, str, int | None], dict[str, RunRecord]] = {}
    for run in every:
        domain = run.params.get(VAL_DOMAIN)
        if domain is not None and run.state == "done":
            beside.setdefault(_setting(run), {})[str(domain)] = run
    found = []
    for run in alone(every):
        runs = beside.get(_setting(run), {})
        others = tasks - {str(run.params.get(field))}
        own = {task: runs[task] for task in sorted(others) if task in runs}
        found.append(_with_values(run, own, rule.metric) if len(own) == len(others) else run)
    return found, replace(rule, metric=seen_as(rule.metric))


def _without_further(run: RunRecord) -> RunRecord:
    params = {name: value for name, value in run.params.items() if name != VAL_DOMAIN}
    return replace(run, params=params)


def _setting(run: RunRecord) -> tuple[str, str, int | None]:
    """With its task and seed."""
    return run.algorithm, params_key(_without_further(run).params), run.seed


def _with_values(run: RunRecord, beside: Mapping[str, RunRecord], metric: str) -> RunRecord:
    def mean(label: str | None) -> dict[str, float]:
        values = [other.value(metric, label) for other in beside.values()]
        known = [value for value in values if value is not None]
        return {seen_as(metric): fmean(known)} if known and len(known) == len(values) else {}

    merges = {label: {**values, **mean(label)} for label, values in run.merges.items()}
    return replace(run, metrics={**run.metrics, **mean(None)}, merges=merges)

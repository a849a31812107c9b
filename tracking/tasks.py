"""One comparison of several tasks: settings chosen for each apart, and a verdict on their mean."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tracking.base import TrackingError
from tracking.budgets import Budget
from tracking.compare import Comparison, compare
from tracking.left_out import alone, with_left_out
from tracking.picked import mean_record, picked
from tracking.protocol import Protocol
from tracking.protocol_table import protocol
from tracking.records import RunRecord
from tracking.rule_names import LEAVE_ONE_OUT, TASK
from tracking.selection import Rule
from tracking.terms import Terms


@dataclass(frozen=True)
class ByTask:
    """The runs of a sweep over tasks: the records of each without the task among their params."""

    field: str
    records: Mapping[str, tuple[RunRecord, ...]]

    @classmethod
    def of(cls, records: Iterable[RunRecord], field: str) -> ByTask:
        """Raises TrackingError for a run that has no task."""
        found: dict[str, list[RunRecord]] = {}
        for record in records:
            if field not in record.params:
                raise TrackingError(
                    f"run {record.digest[:12]} of {record.algorithm} has no {field}, so it is of "
                    "no task; look at each sweep by itself"
                )
            params = {name: value for name, value in record.params.items() if name != field}
            task = str(record.params[field])
            found.setdefault(task, []).append(replace(record, params=params))
        return cls(field, {task: tuple(runs) for task, runs in found.items()})


def compare_tasks(
    records: Iterable[RunRecord],
    *,
    field: str,
    rule: Rule | None = None,
    seeds: Sequence[int] | None = None,
    with_images: bool = False,
    untuned: Collection[str] | None = None,
    terms: Terms | None = None,
    **options: Any,
) -> Comparison:
    """The comparison of every task, and one of their means; arguments as of `compare`.

    `field` is the parameter whose values are tasks. Settings are chosen by the rule for each task
    and seed, as DomainBed does, so that the spread over seeds holds that of the choice; of equal
    values the later trial is taken. A mean has the metrics that every task has, and where tasks
    are ranked by different accuracies (`terms.by_task`) that of each one's own. Nothing is
    selected as a whole. Raises TrackingError for a run without a task.
    """
    rule, terms = rule or Rule(), terms or Terms()
    if rule.named == LEAVE_ONE_OUT:
        records, rule = with_left_out(records, field, rule)
    else:
        records = alone(records)
    by_task = ByTask.of(records, field)
    wanted = tuple(seeds) if seeds is not None else _seeds(by_task)
    parts = {
        task: compare(
            runs,
            rule=rule.on(task),
            seeds=wanted,
            with_images=with_images,
            untuned=untuned,
            terms=terms.on(task),
            **{**options, "sweep": f"{options['sweep']}, {task}"},
        )
        for task, runs in by_task.records.items()
    }
    chosen = picked(by_task.records, rule, wanted)
    terms = terms.over(by_task.records)
    whole = compare(
        [mean_record(pick, by_task.records, rule, terms) for pick in chosen],
        rule=rule,
        terms=terms,
        seeds=wanted,
        untuned={row.arm.algorithm for row in _rows(parts) if "untuned" in row.marks},
        **options,
    )
    table = protocol(field, whole, parts, chosen)
    return replace(
        whole,
        rows=tuple(replace(row, selected=False) for row in whole.rows),
        selected=None,
        sentences=(*whole.sentences, *_sentences(table)),
        warnings=(*_warnings({task: part.warnings for task, part in parts.items()}, whole),),
        budgets=_budgets(parts),
        tasks=parts,
        protocol=table,
    )


def compared_by(tasks: str | None) -> Callable[..., Comparison]:
    """`compare`, or for a parameter whose values are tasks `compare_tasks` by it."""
    return compare if tasks is None else functools.partial(compare_tasks, field=tasks)


def check_equal(field: str, tasks: Mapping[str, Iterable[RunRecord]]) -> None:
    """Raise TrackingError where sweeps, by name, have other tasks than the first."""
    (first, ours), *others = (
        (name, {str(run.params.get(field)): None for run in runs}) for name, runs in tasks.items()
    )
    for name, theirs in others:
        if {*theirs} != {*ours}:
            raise TrackingError(
                f"{first} and {name} cannot be compared as one: the tasks ({field}) of one are "
                f"{', '.join(ours)}, of the other {', '.join(theirs)}; look at each by itself"
            )


def _seeds(by_task: ByTask) -> tuple[int, ...]:
    every = (run.seed for runs in by_task.records.values() for run in runs)
    return tuple(sorted({seed for seed in every if seed is not None}))


def _rows(parts: Mapping[str, Comparison]) -> Iterable[Any]:
    return (row for part in parts.values() for row in part.rows)


def _sentences(table: Protocol) -> Iterable[str]:
    yield (
        f"Each number is the mean over {len(table.endpoints)} tasks "
        f"({', '.join(table.endpoints)}), with settings chosen for each task and seed."
    )
    if table.settings:
        each = "; ".join(f"{task}: {label}" for task, label in table.settings.items())
        yield f"Over all seeds the best setting of each task is {each}."


def _warnings(by_task: Mapping[str, Sequence[str]], whole: Comparison) -> Iterable[str]:
    """Those of the means, then those of the tasks, each with the tasks that it is true of."""
    yield from whole.warnings
    where: dict[str, list[str]] = {}
    for task, warnings in by_task.items():
        told = {warning.replace(TASK, task) for warning in whole.warnings}
        for warning in warnings:
            if warning not in told:
                where.setdefault(warning, []).append(task)
    for warning, tasks in where.items():
        yield warning if len(tasks) == len(by_task) else f"{', '.join(tasks)}: {warning}"


def _budgets(parts: Mapping[str, Comparison]) -> tuple[Budget, ...]:
    """Of each algorithm: the settings it was chosen among on a task, the runs of all tasks."""
    found: dict[str, list[Budget]] = {}
    for part in parts.values():
        for budget in part.budgets:
            found.setdefault(budget.algorithm, []).append(budget)
    return tuple(
        Budget(
            algorithm,
            max(budget.settings for budget in each),
            sum(budget.runs for budget in each),
            _sum([budget.epochs for budget in each]),
        )
        for algorithm, each in found.items()
    )


def _sum(numbers: Sequence[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None

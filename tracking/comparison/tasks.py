"""Comparisons over several tasks, by DomainBed's rules."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from tracking.comparison.compare import Comparison, compare
from tracking.comparison.domainbed import Cell, Line, Protocol
from tracking.comparison.metrics import SPLITS, kind_of
from tracking.comparison.runs import Role, RunRecord, State, group, params_key
from tracking.comparison.selection import Budget, choose
from tracking.comparison.spec import LEAVE_ONE_OUT, TASK, VAL_DOMAIN, Rule, Terms
from tracking.errors import TrackingError

TOGETHER = "+"
"""Between the digests of the runs of a mean."""


@dataclass(frozen=True)
class Picked:
    """An algorithm on one seed."""

    algorithm: str
    seed: int | None
    runs: Mapping[str, RunRecord]
    """By task; lacking where no run of it gave a value."""

    def value(self, task: str, metric: str, merge: str | None) -> float | None:
        """Of the run that stands on a task."""
        run = self.runs.get(task)
        return None if run is None else run.value(metric, merge)


def picked(
    by_task: Mapping[str, Sequence[RunRecord]], rule: Rule, seeds: Sequence[int]
) -> list[Picked]:
    """The choice of every algorithm on every seed that it has, zero-shot first.

    For each task the run with the best value that the rule sees on this seed, as DomainBed chooses
    for each of its trial seeds; of equal values (but for float rounding) the later one, as there
    the largest `hparams_seed` wins.
    """
    every = [run for runs in by_task.values() for run in runs if run.role != "confirmation"]
    order = dict.fromkeys(arm.algorithm for arm in group(every))
    found = []
    for algorithm in order:
        ours = {
            task: [r for r in runs if r.algorithm == algorithm] for task, runs in by_task.items()
        }
        has_seeds = any(run.seed is not None for runs in ours.values() for run in runs)
        for seed in seeds if has_seeds else (None,):
            chosen = {task: _best(runs, rule.on(task), seed) for task, runs in ours.items()}
            known = {task: run for task, run in chosen.items() if run is not None}
            found.append(Picked(algorithm, seed, known))
    return found


def mean_record(
    pick: Picked, by_task: Mapping[str, Sequence[RunRecord]], rule: Rule, terms: Terms
) -> RunRecord:
    """The mean over tasks as a run; one that is not done where a task lacks its run.

    It has the metrics, and merged models, that the chosen runs of all tasks have; what the rule
    sees, and what tasks are judged by, also where each task has it under a name of its own.
    """
    known = {task: pick.runs[task] for task in by_task if task in pick.runs}
    every = [run for runs in by_task.values() for run in runs if run.algorithm == pick.algorithm]
    role: Role = "trial" if any(run.role == "trial" for run in every) else "baseline"
    whole = len(known) == len(by_task)
    models = [{None: run.metrics, **run.merges} for run in known.values()] if whole else []
    means = {
        label: _mean({task: run.values(label) for task, run in known.items()}, rule, terms)
        for label in (models[0] if models else ())
        if all(label in model for model in models)
    }
    epochs = [run.epochs for run in known.values() if run.epochs is not None]
    return RunRecord(
        algorithm=pick.algorithm,
        params={},
        seed=pick.seed,
        digest=TOGETHER.join(run.digest for run in known.values()),
        state="done" if whole else _why_lacking(pick, by_task),
        role=role,
        metrics=means.pop(None, {}),
        merges={label: values for label, values in means.items() if label is not None},
        facts=combined({task: run.facts for task, run in known.items()}),
        epochs=sum(epochs) if len(epochs) == len(known) else None,
        untrained=any(run.untrained for run in every),
    )


def combined(facts: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    """The facts of several tasks as those of one run.

    What all share stands as it is, lists are joined, and what differs stands by task: so rows
    still differ where they differ on a task.
    """
    found: dict[str, object] = {}
    for name in dict.fromkeys(name for own in facts.values() for name in own):
        values = {task: own[name] for task, own in facts.items() if name in own}
        first = next(iter(values.values()))
        if all(isinstance(value, (list, tuple)) for value in values.values()):
            found[name] = list(
                dict.fromkeys(item for value in values.values() for item in _items(value))
            )
        elif all(value == first for value in values.values()):
            found[name] = first
        else:
            found[name] = "; ".join(f"{task}: {value}" for task, value in values.items())
    return found


def _items(value: object) -> Iterator[object]:
    yield from value if isinstance(value, (list, tuple)) else ()


def _best(runs: Iterable[RunRecord], rule: Rule, seed: int | None) -> RunRecord | None:
    """Of the finished runs on this seed."""
    ours = [run for run in runs if run.seed == seed and run.role != "confirmation"]
    arms = [group([run])[0] for run in ours if run.state == "done"]
    # The first of equals is taken there: the last of these.
    found = choose(arms[::-1], rule, () if seed is None else (seed,))
    return None if found is None else found.arm.runs[0]


def _mean(by_task: Mapping[str, Mapping[str, float]], rule: Rule, terms: Terms) -> dict[str, float]:
    """Of the metrics that every task has."""
    shared = set.intersection(*(set(values) for values in by_task.values()))
    means = {name: fmean(values[name] for values in by_task.values()) for name in sorted(shared)}
    own = {rule.metric: {task: rule.on(task).metric for task in by_task}}
    if terms.by_task:
        own |= {
            f"{split}/{terms.by}": {task: f"{split}/{terms.on(task).by}" for task in by_task}
            for split in SPLITS
        }
    for name, metrics in own.items():
        seen = [values.get(metrics[task]) for task, values in by_task.items()]
        known = [value for value in seen if value is not None]
        if len(known) == len(seen):
            means[name] = fmean(known)
    return means


def _why_lacking(pick: Picked, by_task: Mapping[str, Sequence[RunRecord]]) -> State:
    """The state of a run that should be there."""
    for task, runs in by_task.items():
        for run in runs if task not in pick.runs else ():
            if (run.algorithm, run.seed) == (pick.algorithm, pick.seed) and run.state != "done":
                return run.state
    return "missing"


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


NAMES = {
    "training_domain": "training-domain validation",
    LEAVE_ONE_OUT: "leave-one-domain-out cross-validation",
}
"""DomainBed's rules in its own words."""
RESULT = "result"
"""The fact that says whether a run was measured at its last or its best step."""
DOMAINBED = "id/val/mean_group_top1"
"""What DomainBed's training-domain validation looks at: the mean over the domains that train."""


def protocol(
    field: str, whole: Comparison, parts: Mapping[str, Comparison], chosen: Sequence[Picked]
) -> Protocol:
    """The table for the rows of `whole` that stand for something: unmerged, and chosen merges."""
    endpoints = {task: part.terms.endpoint for task, part in parts.items()}
    rows = [row.arm for row in whole.rows if row.arm.merge is None or row.chosen]
    lines = tuple(
        Line(
            arm.label,
            {
                task: _cell(
                    [pick for pick in chosen if pick.algorithm == arm.algorithm],
                    task,
                    metric,
                    arm.merge,
                )
                for task, metric in endpoints.items()
            },
        )
        for arm in rows
    )
    settings = {task: part.selected.label for task, part in parts.items() if part.selected}
    return Protocol(field, endpoints, lines, tuple(_told(field, whole, parts, endpoints)), settings)


def _cell(picks: Sequence[Picked], task: str, metric: str, merge: str | None) -> Cell:
    found = {pick.seed: pick.value(task, metric, merge) for pick in picks}
    return Cell({seed: value for seed, value in found.items() if value is not None})


def _told(
    field: str,
    whole: Comparison,
    parts: Mapping[str, Comparison],
    endpoints: Mapping[str, str],
) -> Iterator[str]:
    by_kind = len({kind_of(metric) for metric in endpoints.values()}) > 1
    metrics: dict[str, list[str]] = {}
    for task, metric in endpoints.items():
        metrics.setdefault(metric, []).append(task)
    each = (f"{m} ({', '.join(of)})" if by_kind else m for m, of in metrics.items())
    n = len(whole.seeds)
    yield (
        f"Tasks by {field}: {' or '.join(each)} in percent, mean ± standard error (divisor n) "
        f"over {n} seed{'' if n == 1 else 's'}; Avg: for each seed the mean over tasks first."
    )
    yield f"For each task and seed settings are chosen by {_rule(whole.rule)}, of equals the later."
    counts = {
        algorithm: max(part.rivals[algorithm, None] for part in parts.values())
        for algorithm in dict.fromkeys(row.arm.algorithm for row in whole.rows if row.arm.trains)
    }
    if counts:
        among = ", ".join(f"{name} {count}" for name, count in counts.items())
        yield f"Settings chosen among on each task: {among}."
    runs = (run for part in parts.values() for run in part.runs() if run.state == "done")
    yield from _other_than_domainbed(whole.rule, {run.facts.get(RESULT) for run in runs})


def _rule(rule: Rule) -> str:
    on = rule.metric if rule.merge is None else f"{rule.metric} of {rule.merge}"
    if rule.oracle:
        return f"test-domain validation (oracle) on {on}" if rule.is_of_task else f"oracle on {on}"
    return f"{rule.name if rule.named is None else NAMES[rule.named]} on {on}"


def _other_than_domainbed(rule: Rule, results: Collection[object]) -> Iterator[str]:
    """As far as it is known; `results` are the steps that runs were measured at."""
    if rule.named == "training_domain" and rule.metric != DOMAINBED:
        yield f"DomainBed chooses by the mean over the training domains, {DOMAINBED}."
    if rule.named == "training_domain" and "last" in results:
        yield "DomainBed takes the step with the best validation (keep.result: best_val)."
    if rule.oracle and rule.is_of_task and "best_val" in results:
        yield "DomainBed takes the last step here (keep.result: last)."
    if rule.named == LEAVE_ONE_OUT:
        yield "DomainBed chooses the step as well in this way; here each run has its own result."


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

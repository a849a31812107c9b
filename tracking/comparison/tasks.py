"""Comparisons over several tasks, by DomainBed's rules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, pstdev

from carft_sweep.tracking.comparison.compare import Comparison, compare
from carft_sweep.tracking.comparison.metrics import SPLITS, kind_of
from carft_sweep.tracking.comparison.runs import Arm, RunRecord, group
from carft_sweep.tracking.comparison.selection import Budget, select
from carft_sweep.tracking.comparison.spec import TASK, ComparisonSpec, Endpoint, SelectionRule
from carft_sweep.tracking.errors import TrackingError, counted

TOGETHER = "+"
"""Joins the digests of the runs of a mean over tasks."""
ByTask = Mapping[str, Sequence[RunRecord]]
"""The runs of each task, without the task among their params."""


Selected = Mapping[tuple[str, int | None], Mapping[str, RunRecord]]
"""By algorithm and seed: the selected run of each task where some run has a value."""


def select_per_seed(by_task: ByTask, rule: SelectionRule, seeds: Sequence[int]) -> Selected:
    """Return the selected runs of every algorithm and every seed that it has, zero-shot first.

    For each task the run with the best value on this seed is selected, as DomainBed does for each
    of its trial seeds; of equal values (but for float rounding) the later run, as there the largest
    `hparams_seed` wins.
    """
    every = [run for runs in by_task.values() for run in runs if run.role != "confirmation"]
    selected = {}
    for algorithm in dict.fromkeys(arm.algorithm for arm in group(every)):
        own = {
            task: [r for r in runs if r.algorithm == algorithm and r.role != "confirmation"]
            for task, runs in by_task.items()
        }
        has_seeds = any(run.seed is not None for runs in own.values() for run in runs)
        for seed in seeds if has_seeds else (None,):
            best = {task: _best(runs, rule.on(task), seed) for task, runs in own.items()}
            selected[algorithm, seed] = {task: run for task, run in best.items() if run is not None}
    return selected


def mean_record(
    algorithm: str,
    seed: int | None,
    runs: Mapping[str, RunRecord],
    by_task: ByTask,
    rule: SelectionRule,
    endpoint: Endpoint,
) -> RunRecord:
    """Return the selected runs of all tasks as one run with their mean metrics; its state is not
    `done` if a task lacks its run. The record has the metrics and merged models that all these runs
    have; those of rule and endpoint also where each task has its own name for them."""
    every = [run for of in by_task.values() for run in of if run.algorithm == algorithm]
    lacking = [run for task in by_task if task not in runs for run in by_task[task]]
    states = (run.state for run in lacking if (run.algorithm, run.seed) == (algorithm, seed))
    is_whole = len(runs) == len(by_task)
    models = [{None: run.metrics, **run.merges} for run in runs.values()] if is_whole else []
    means = {
        label: _mean({task: run.metrics_of(label) for task, run in runs.items()}, rule, endpoint)
        for label in (models[0] if models else ())
        if all(label in model for model in models)
    }
    return RunRecord(
        algorithm=algorithm,
        params={},
        seed=seed,
        digest=TOGETHER.join(run.digest for run in runs.values()),
        state="done" if is_whole else next((s for s in states if s != "done"), "missing"),
        role="trial" if any(run.role == "trial" for run in every) else "baseline",
        metrics=means.pop(None, {}),
        merges={label: values for label, values in means.items() if label is not None},
        facts=combined({task: run.facts for task, run in runs.items()}),
        untrained=any(run.untrained for run in every),
        parts=runs,
    )


def combined(facts: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    """Merge `facts[task][name]` into one value for each name: an equal value once, lists joined
    without repeats, others as the text `task: value; ...`, so that rows still differ."""
    joined: dict[str, object] = {}
    for name in dict.fromkeys(name for own in facts.values() for name in own):
        values = {task: own[name] for task, own in facts.items() if name in own}
        first = next(iter(values.values()))
        lists = [value for value in values.values() if isinstance(value, (list, tuple))]
        if len(lists) == len(values):
            joined[name] = list(dict.fromkeys(item for value in lists for item in value))
        elif all(value == first for value in values.values()):
            joined[name] = first
        else:
            joined[name] = "; ".join(f"{task}: {value}" for task, value in values.items())
    return joined


def _best(runs: Iterable[RunRecord], rule: SelectionRule, seed: int | None) -> RunRecord | None:
    """Return the best of the finished runs on this seed; None without one. Runs that train nothing
    and lack the rule's merge are valued unmerged."""
    done = [run for run in runs if run.seed == seed and run.state == "done"]
    if not any(run.trains or rule.merge in run.merges for run in done):
        rule = rule.model_copy(update={"merge": None})
    arms = [group([run])[0] for run in done]
    # `select` takes the first of equals: the latest of these runs.
    arms.sort(key=lambda arm: _lateness(arm.runs[0]), reverse=True)
    selection = select(arms, rule, () if seed is None else (seed,))
    return None if selection is None else selection.arm.runs[0]


def _lateness(run: RunRecord) -> tuple[int, int, str]:
    """Return a sort key of runs by their trial, and without one by their place in the sweep."""
    return (-1 if run.trial is None else run.trial, run.position, run.digest)


def _mean(
    by_task: Mapping[str, Mapping[str, float]], rule: SelectionRule, endpoint: Endpoint
) -> dict[str, float]:
    """Return the mean over tasks of each metric that every task has, and of those of `rule` and
    `endpoint` that each task has under a name of its own."""
    shared = set.intersection(*(set(values) for values in by_task.values()))
    means = {name: fmean(values[name] for values in by_task.values()) for name in sorted(shared)}
    own = {rule.metric: {task: rule.on(task).metric for task in by_task}}
    if endpoint.by_task:
        own |= {
            f"{split}/{endpoint.by}": {task: f"{split}/{endpoint.on(task).by}" for task in by_task}
            for split in SPLITS
        }
    for name, metrics in own.items():
        values = [measured.get(metrics[task]) for task, measured in by_task.items()]
        present = [value for value in values if value is not None]
        if len(present) == len(values):
            means[name] = fmean(present)
    return means


AVERAGE = "Avg"


@dataclass(frozen=True)
class TaskCell:
    """An accuracy over seeds, in fractions."""

    by_seed: Mapping[int | None, float]

    @property
    def mean(self) -> float | None:
        """Mean over seeds; None where no seed has a value."""
        return fmean(self.by_seed.values()) if self.by_seed else None

    @property
    def error(self) -> float | None:
        """The standard error with which DomainBed prints its means; None below two seeds. The
        spread has the divisor n, not n - 1 (`collect_results.format_mean`, NumPy's default)."""
        values = list(self.by_seed.values())
        return pstdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


@dataclass(frozen=True)
class TaskLine:
    """One algorithm, unmerged or through one merge: a row of DomainBed's table."""

    arm: Arm
    """The arm of the comparison's row."""
    cells: Mapping[str, TaskCell]
    """Accuracies by task."""

    @property
    def average(self) -> TaskCell:
        """Mean over tasks within each seed that every task has, by seed. A value that no seed
        changes counts for each seed."""
        columns = list(self.cells.values())
        shared = [seed for seed in columns[0].by_seed if all(seed in c.by_seed for c in columns)]
        return TaskCell({seed: fmean(c.by_seed[seed] for c in columns) for seed in shared})


@dataclass(frozen=True)
class DomainBedTable:
    """DomainBed's table of accuracies by algorithm and task, with notes on how it was made."""

    endpoints: Mapping[str, str]
    """By task: the metric in its column."""
    lines: tuple[TaskLine, ...]
    notes: tuple[str, ...]
    """What the numbers are, and how settings were chosen."""
    settings: Mapping[str, str]
    """By task: the setting with the best value over all seeds, where there is one."""

    def of(self, arm: Arm) -> TaskLine | None:
        """Return the line of the arm of a comparison's row; None without one."""
        return next((line for line in self.lines if line.arm.key == arm.key), None)


def domainbed_table(comparison: Comparison) -> DomainBedTable | None:
    """Return DomainBed's table for the rows that represent algorithms; None without tasks."""
    parts = comparison.tasks
    if not parts:
        return None
    endpoints = {task: part.endpoint.metric for task, part in parts.items()}

    def cell(arm: Arm, task: str) -> TaskCell:
        own = {run.seed: run.parts[task] for run in arm.runs if task in run.parts}
        values = {seed: run.value(endpoints[task], arm.merge) for seed, run in own.items()}
        return TaskCell({seed: value for seed, value in values.items() if value is not None})

    lines = tuple(
        TaskLine(row.arm, {task: cell(row.arm, task) for task in endpoints})
        for row in comparison.rows
        if row.arm.merge is None or row.chosen
    )
    settings = {task: part.selected.arm.label for task, part in parts.items() if part.selected}
    return DomainBedTable(endpoints, lines, tuple(_notes(comparison, endpoints)), settings)


def _notes(whole: Comparison, endpoints: Mapping[str, str]) -> Iterator[str]:
    by_kind = len({kind_of(metric) for metric in endpoints.values()}) > 1
    metrics: dict[str, list[str]] = {}
    for task, metric in endpoints.items():
        metrics.setdefault(metric, []).append(task)
    each = (f"{m} ({', '.join(of)})" if by_kind else m for m, of in metrics.items())
    seeds = counted(len(whole.seeds), "seed")
    yield (
        f"Tasks by {whole.spec.tasks}: {' or '.join(each)} in percent, mean ± standard error "
        f"(divisor n) over {seeds}; Avg: for each seed the mean over tasks first."
    )
    yield f"For each task and seed settings are chosen by {_rule(whole.rule)}, of equals the later."
    counts = {
        algorithm: max(part.rivals[algorithm, None] for part in whole.tasks.values())
        for algorithm in dict.fromkeys(row.arm.algorithm for row in whole.rows if row.arm.trains)
    }
    if counts:
        among = ", ".join(f"{name} {count}" for name, count in counts.items())
        yield f"Settings chosen among on each task: {among}."


def _rule(rule: SelectionRule) -> str:
    on = rule.metric if rule.merge is None else f"{rule.metric} of {rule.merge}"
    if rule.oracle:
        return (
            f"test-domain validation (oracle) on {on}" if TASK in rule.metric else f"oracle on {on}"
        )
    return f"{rule.name} on {on}"


def split_by_task(runs: Iterable[RunRecord], field: str) -> dict[str, list[RunRecord]]:
    """Return runs by task, which their parameters then lack. Raises TrackingError without one."""
    by_task: dict[str, list[RunRecord]] = {}
    for run in runs:
        if field not in run.params:
            raise TrackingError(
                f"run {run.digest[:12]} of {run.algorithm} has no {field}, so it is of no task; "
                "look at each sweep by itself"
            )
        params = {name: value for name, value in run.params.items() if name != field}
        by_task.setdefault(str(run.params[field]), []).append(replace(run, params=params))
    return by_task


def compare_tasks(
    runs: Iterable[RunRecord],
    spec: ComparisonSpec,
    *,
    sweep: str = "",
    tried: Mapping[str, int] | None = None,
) -> Comparison:
    """Return the comparison of the means over tasks, with each task's own; arguments as of
    `compare`.

    `spec.tasks` is the parameter whose values are tasks. Settings are selected by the rule for each
    task and seed, as DomainBed does, so that the spread over seeds includes that of the selection;
    of equal values the later trial is taken. A mean has the metrics that every task has, and where
    tasks are ranked by different accuracies (`endpoint.by_task`) those of each task. Nothing is
    selected as a whole. Raises TrackingError for a run without a task.
    """
    field, rule, records = spec.tasks or "", spec.rule, list(runs)
    by_task = split_by_task(records, field)
    seeds = spec.seeds
    if seeds is None:
        seeds = tuple(sorted({run.seed for run in records if run.seed is not None}))
    parts = {
        task: compare(
            own,
            spec.model_copy(
                update={
                    "rule": rule.on(task),
                    "endpoint": spec.endpoint.on(task),
                    "seeds": seeds,
                    "tasks": None,
                }
            ),
            sweep=f"{sweep}, {task}",
            tried=tried,
        )
        for task, own in by_task.items()
    }
    selected = select_per_seed(by_task, rule, seeds)
    endpoint = spec.endpoint.over(by_task)
    spent = _budgets(parts)
    whole = compare(
        [mean_record(*key, runs, by_task, rule, endpoint) for key, runs in selected.items()],
        spec.model_copy(update={"rule": rule, "endpoint": endpoint, "seeds": seeds}),
        sweep=sweep,
        # A mean is of runs that were chosen on its own seed, on each task.
        tried=tried or {budget.algorithm: budget.settings for budget in spent},
    )
    every = [row for part in parts.values() for row in part.rows]
    untuned = {row.arm.algorithm for row in every if "untuned" in row.marks}
    rows = []
    for row in whole.rows:
        is_untuned = row.arm.role == "baseline" and row.arm.algorithm in untuned
        marks = (*(["untuned"] if is_untuned else []), *row.marks)
        rows.append(replace(row, selected=False, marks=marks))
    return replace(
        whole,
        rows=tuple(rows),
        selected=None,
        statistics=(*whole.statistics, *_sentences(parts)),
        warnings=tuple(_warnings({task: part.warnings for task, part in parts.items()}, whole)),
        budgets=spent,
        tasks=parts,
    )


def _sentences(parts: Mapping[str, Comparison]) -> Iterator[str]:
    yield (
        f"Each number is the mean over {len(parts)} tasks ({', '.join(parts)}), with settings "
        "chosen for each task and seed."
    )
    best = [f"{task}: {part.selected.arm.label}" for task, part in parts.items() if part.selected]
    if best:
        yield f"Over all seeds the best setting of each task is {'; '.join(best)}."


def _warnings(by_task: Mapping[str, Sequence[str]], whole: Comparison) -> Iterator[str]:
    """Yield the warnings of the means, then each warning of single tasks with their names."""
    yield from whole.warnings
    where: dict[str, list[str]] = {}
    for task, warnings in by_task.items():
        general = {warning.replace(TASK, task) for warning in whole.warnings}
        for warning in warnings:
            if warning not in general:
                where.setdefault(warning, []).append(task)
    for warning, tasks in where.items():
        yield warning if len(tasks) == len(by_task) else f"{', '.join(tasks)}: {warning}"


def _budgets(parts: Mapping[str, Comparison]) -> tuple[Budget, ...]:
    """Return for each algorithm its settings on a task and the runs of all tasks."""
    by_algorithm: dict[str, list[Budget]] = {}
    for part in parts.values():
        for budget in part.budgets:
            by_algorithm.setdefault(budget.algorithm, []).append(budget)
    return tuple(
        Budget(
            algorithm, max(budget.settings for budget in each), sum(budget.runs for budget in each)
        )
        for algorithm, each in by_algorithm.items()
    )

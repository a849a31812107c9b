"""Which run stands for an algorithm on each task and seed, and the mean of those over tasks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from tracking.accuracy import SPLITS
from tracking.records import Role, RunRecord, State, group
from tracking.selection import Rule, choose
from tracking.terms import Terms

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

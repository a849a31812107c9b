"""DomainBed's table of a comparison over tasks: its lines, its columns, and what is said below."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from tracking.accuracy import kind_of
from tracking.compare import Comparison
from tracking.picked import Picked
from tracking.protocol import Cell, Line, Protocol
from tracking.rule_names import LEAVE_ONE_OUT
from tracking.selection import Rule

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

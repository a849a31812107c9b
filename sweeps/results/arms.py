"""A sweep's answer as a tracking store has it: its arms, and the values of the selected one."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from carft_sweep.sweeps.results.merged_metrics import CURVE, model_prefix
from carft_sweep.tracking.comparison.compare import Comparison, Row, shown_rows
from carft_sweep.tracking.comparison.metrics import shifts
from carft_sweep.tracking.comparison.runs import ArmKey, Scalar, split_merge
from carft_sweep.tracking.comparison.spec import Endpoint
from carft_sweep.tracking.comparison.wise_ft_curve import PAPER_ALPHA, WISE
from carft_sweep.tracking.errors import counted
from carft_sweep.tracking.report.table import SELECTED, TableOptions, usual_columns, visible_rows
from carft_sweep.tracking.store.base import GROUP, RunsView

MEAN, SELECTED_ARM, VERSUS = "mean/", "selected/", "vs_reference/"
"""Prefixes of metric names: of an arm's means over seeds, and, in the sweep's own run, of the
selected arm's means and of its differences from the reference. Single runs have none of these
names: a maximum over all runs would mix means over seeds with single seeds."""
LOW, HIGH = "_ci_low", "_ci_high"
"""Suffixes of the names of an interval's two ends, which follow their mean in every list."""
MOST_VARIED = 4
"""Varied parameters that have a chart of their own."""
ARM_PARAM = "arm"
"""The parameter with an arm's name: an axis of charts, which cannot name their points."""
_DIGITS = 6
"""Decimal digits of the store's values, finer than one test image. The files have every digit."""


@dataclass(frozen=True)
class ArmSummary:
    """An arm of the table in the form of the run that the store has for it."""

    key: ArmKey
    label: str
    name: str
    """The label with the number of seeds, for people."""
    params: Mapping[str, Scalar]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    """The mean over seeds of each metric of the table, `mean/id/test/top1`, and behind that of a
    split both ends of its interval, `mean/id/test/top1_ci_low`."""

    @property
    def kind(self) -> str:
        """Digest of the arm's parameters and metric names, which a store cannot change later."""
        return _digest([self.params, [*self.metrics]])

    @property
    def fingerprint(self) -> str:
        """The text of `kind` and a digest of all values of the arm."""
        return f"{self.kind} {_digest([self.name, self.params, self.tags, self.metrics])}"


def arm_summaries(comparison: Comparison, group: str = "") -> list[ArmSummary]:
    """Return a summary of each arm that the table or a view shows, in the order of the table.
    `group` is the text by which the views find the arms of their sweep."""
    metrics = [column.metric for column in usual_columns(comparison)]
    first = {row.arm.key for row in shown_rows(comparison)}
    keys = first.union(row.arm.key for row in visible_rows(comparison, TableOptions()))
    endpoint = comparison.endpoint
    splits = {endpoint.val, endpoint.test, endpoint.ood, comparison.rule.metric}
    splits |= {metric for metric, _ in shifts(metrics, endpoint.by)}
    summaries = []
    for row in comparison.rows:
        if row.n and row.arm.key in keys:
            estimates = dict(_estimates(row, metrics, splits))
            summaries.append(_summary(row, estimates, group if row.arm.key in first else ""))
    return summaries


def arms_view(comparison: Comparison, arms: Sequence[ArmSummary]) -> RunsView:
    """Return what a page of the store shows of these arms, sorted by OOD mean (without shifts: ID).

    A chart of ID against OOD cannot name its points, so the view also has charts of each against
    the arms' names.
    """
    endpoint = comparison.endpoint
    measured = {name for arm in arms for name in arm.metrics}
    wanted = (endpoint.ood, endpoint.test, endpoint.val)
    means = [f"{MEAN}{name}" for name in wanted if f"{MEAN}{name}" in measured]
    means = means or [f"{MEAN}{comparison.rule.metric}"]
    columns = [
        f"{mean}{end}"
        for names in (means[:2], means[2:])  # OOD and ID stand side by side
        for ends in (("",), (LOW, HIGH))
        for mean in names
        for end in ends
    ]
    params = dict.fromkeys(name for arm in arms for name in arm.params)
    varied = [name for name in params if name not in (ARM_PARAM, "algorithm", "merge", "alpha")]
    by_name = [(ARM_PARAM, mean) for mean in means[:2]]
    against_id = [(mean, means[0]) for mean in means[1:2]]
    return RunsView(
        title=f"{comparison.sweep}: arms",
        kind="arm",
        metrics=[name for name in columns if name in measured],
        params=[name for name in params if name != ARM_PARAM],
        sort_by=means[0],
        scatters=[*against_id, *by_name, *((name, means[0]) for name in varied[:MOST_VARIED])],
    )


def runs_view(sweep: str, varied: Sequence[str], endpoint: Endpoint) -> RunsView:
    """Return what a page of the store shows of a sweep's runs: a table of varied fields and seeds,
    charts of learning curves. WiSE-FT at alpha 0.5 is shown beside each run's own model."""
    own = (endpoint.ood, endpoint.test, endpoint.val)
    wise = [f"{model_prefix(f'{WISE}@{PAPER_ALPHA:g}')}{name}" for name in own[:2]]
    return RunsView(
        title=f"{sweep}: runs",
        kind="run",
        metrics=[*own[:2], *wise, endpoint.val],
        params=["algorithm", *varied, "seed"],
        sort_by=own[0],
        lines=["train/loss", endpoint.val, *(f"{CURVE}{WISE}/{name}" for name in own[:2])],
    )


def all_sweeps_view(endpoint: Endpoint) -> RunsView:
    """Return what a page of the store shows of all sweeps: a table with each sweep's answer and the
    values of the selected arm, its other arms below it, and a chart of OOD against ID accuracy."""
    means = (f"{MEAN}{endpoint.ood}", f"{MEAN}{endpoint.test}")
    difference = f"{VERSUS}{endpoint.ood}"
    return RunsView(
        title="Sweeps",
        kind="sweep",
        tags=["carft.answer"],
        metrics=[*means, difference, f"{difference}{LOW}", f"{difference}{HIGH}"],
        sort_by=GROUP,
        scatters=[(means[1], means[0])],
    )


def selected_values(comparison: Comparison) -> dict[str, float]:
    """Return the values of the selected arm and of its verdict, for the sweep's own run in the
    store. These are the arm's means, and its difference from the reference with the interval that
    decided, or NaN. Of a confirmed setting the values are those of the fresh seeds."""
    if comparison.selected is None:
        return {}
    verdict, rule, endpoint = comparison.selected_verdict, comparison.rule, comparison.endpoint
    arm = comparison.selected.arm if verdict is None else verdict.pair.candidate
    names = dict.fromkeys((rule.metric, endpoint.val, endpoint.test, endpoint.ood))
    means = ((name, arm.mean(name)) for name in names)
    values = {f"{SELECTED_ARM}{name}": mean for name, mean in means if mean is not None}
    for name in (endpoint.id_metric, endpoint.ood):
        if verdict is not None and (test := verdict.pair.test(name)) is not None:
            low, high = verdict.interval(name) or (math.nan, math.nan)
            difference = f"{VERSUS}{name}"
            values |= {difference: test.mean}
            values |= {f"{difference}{LOW}": low, f"{difference}{HIGH}": high}
    return {name: round(value, _DIGITS) for name, value in values.items()}


def _summary(row: Row, metrics: Mapping[str, float], group: str) -> ArmSummary:
    arm = row.arm
    params: dict[str, Scalar] = {ARM_PARAM: arm.label, "algorithm": arm.algorithm, **arm.params}
    if arm.merge is not None:
        merge, alpha = split_merge(arm.merge)
        params |= {"merge": merge} if alpha is None else {"merge": merge, "alpha": alpha}
    fresh = "fresh seed" if arm.confirms else "seed"
    seeds = f" ({counted(row.n, fresh)})" if arm.has_seeds else ""
    return ArmSummary(
        key=arm.key,
        label=arm.label,
        name=f"{SELECTED if row.selected else ''}{arm.name}{seeds}",
        params=params,
        tags={
            "carft.role": arm.role,
            "carft.is_selected": str(row.selected).lower(),
            "carft.marks": ", ".join(row.marks),
            "carft.seeds": str(row.n),
            GROUP: group,
        },
        metrics=metrics,
    )


def _estimates(
    row: Row, metrics: Sequence[str], splits: Collection[str]
) -> Iterator[tuple[str, float]]:
    for metric in metrics:
        estimate, name = row.metric(metric), f"{MEAN}{metric}"
        if estimate.mean is not None:
            yield name, round(estimate.mean, _DIGITS)
        if estimate.ci95 is not None and metric in splits:
            yield f"{name}{LOW}", round(estimate.ci95.low, _DIGITS)
            yield f"{name}{HIGH}", round(estimate.ci95.high, _DIGITS)


def _digest(plain: object) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]

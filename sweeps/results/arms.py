"""A sweep's answer as a tracking store has it: its arms, and the values of the selected one."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from carft_sweep.tracking.comparison.compare import Comparison, Row
from carft_sweep.tracking.comparison.metrics import ID, OOD
from carft_sweep.tracking.comparison.runs import Scalar, setting, split_merge
from carft_sweep.tracking.comparison.verdict import Verdict
from carft_sweep.tracking.report.table import (
    SELECTED,
    TableOptions,
    usual_columns,
    visible_rows,
)
from carft_sweep.tracking.store.base import RunsView

VERSUS = "vs_reference/"
"""What the names of differences begin with: MLflow's groups of charts are in the order of the
alphabet, and these come behind the accuracies."""
MOST_SCATTERS = 4
"""Varied parameters that have a chart of their own."""


@dataclass(frozen=True)
class ArmSummary:
    """An arm of the table, as the store has a run of it."""

    label: str
    name: str
    params: Mapping[str, Scalar]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    """`mean/`, `ci_low/` and `ci_high/` of each metric of the table, and `n`."""

    @property
    def kind(self) -> str:
        """A digest of what a store cannot forget again: parameters, names of metrics."""
        return _digest([self.params, [*self.metrics]])

    @property
    def sent_as(self) -> str:
        """`kind`, and a digest of everything."""
        return f"{self.kind} {_digest([self.name, self.params, self.tags, self.metrics])}"


def arm_summaries(comparison: Comparison) -> list[ArmSummary]:
    """Summarise the arms of the table, in its order."""
    metrics = [column.metric for column in usual_columns(comparison)]
    rows = visible_rows(comparison, TableOptions())
    return [_summary(row, metrics) for row in rows if row.n]


def arms_view(comparison: Comparison, arms: Sequence[ArmSummary]) -> RunsView:
    """Return how a store shows these arms: by OOD mean, or by ID where no shifts were measured."""
    endpoint = comparison.endpoint
    measured = {name for arm in arms for name in arm.metrics}
    wanted = (endpoint.ood, endpoint.test, endpoint.val)
    shown = [name for name in wanted if f"mean/{name}" in measured]
    shown = shown or [comparison.rule.metric]
    columns = [f"{end}/{name}" for name in shown for end in ("mean", "ci_low", "ci_high")]
    params = dict.fromkeys(name for arm in arms for name in arm.params)
    varied = [name for name in params if name not in ("algorithm", "merge", "alpha")]
    main = f"mean/{shown[0]}"
    against_id = [(f"mean/{name}", main) for name in shown[1:2]]
    return RunsView(
        title=f"{comparison.sweep}: arms",
        metrics=[name for name in (*columns, "n") if name in measured],
        params=list(params),
        sort_by=main,
        scatters=[*against_id, *((name, main) for name in varied[:MOST_SCATTERS])],
        bars=[f"mean/{name}" for name in shown],
    )


def sweeps_view(metric: str) -> RunsView:
    """Return how a store shows every sweep; `metric` is what one selects by."""
    accuracies = [*dict.fromkeys((metric, "id/val/top1", ID, OOD))]
    difference = f"{VERSUS}{OOD}"
    ends = (f"{difference}_ci_low", f"{difference}_ci_high")
    return RunsView(
        title="Sweeps",
        metrics=[*accuracies, difference, *ends, "seeds"],
        lines=[*accuracies, "train/loss"],
    )


def selected_values(comparison: Comparison) -> dict[str, float]:
    """Return what the sweep's own run has of the selected arm, and of its verdict.

    Its means, over how many `seeds` they are, and its difference to the reference with both ends of
    the interval that decided, NaN where there is none. Of a setting that was confirmed these are of
    the fresh seeds.
    """
    if comparison.selected is None:
        return {}
    verdict, rule, endpoint = selected_verdict(comparison), comparison.rule, comparison.endpoint
    arm = comparison.selected.arm if verdict is None else verdict.pair.candidate
    names = dict.fromkeys((rule.metric, endpoint.val, endpoint.test, endpoint.ood))
    means = ((name, arm.mean(name)) for name in names)
    values = {name: mean for name, mean in means if mean is not None}
    values["seeds"] = float(len(arm.done))
    for name in (endpoint.id_metric, endpoint.ood):
        test = None if verdict is None else verdict.pair.test(name)
        if test is not None:
            low, high = test.ci95 or (math.nan, math.nan)
            difference = f"{VERSUS}{name}"
            values |= {difference: test.mean}
            values |= {f"{difference}_ci_low": low, f"{difference}_ci_high": high}
    return values


def selected_verdict(comparison: Comparison) -> Verdict | None:
    """Return the verdict on the selected setting, where it was tested."""
    selected, verdict = comparison.selected, comparison.answer.verdict
    if selected is None or verdict is None:
        return None
    return verdict if verdict.pair.candidate.name == selected.arm.label else None


def run_name(algorithm: str, params: Mapping[str, Scalar], seed: str | None) -> str:
    """Name a run of a store, which cuts long names: `kl_weight=3 s2 car_ft`, `fine_tune s2`."""
    return _name(algorithm, params, "" if seed is None else f"s{seed}")


def _name(algorithm: str, params: Mapping[str, Scalar], what: str) -> str:
    varied = setting(params)
    parts = (varied, what, algorithm) if varied else (algorithm, what)
    return " ".join(filter(None, parts))


def _summary(row: Row, metrics: Sequence[str]) -> ArmSummary:
    arm = row.arm
    params: dict[str, Scalar] = {"algorithm": arm.algorithm, **arm.params}
    if arm.merge is not None:
        merge, alpha = split_merge(arm.merge)
        params |= {"merge": merge} if alpha is None else {"merge": merge, "alpha": alpha}
    fresh = "fresh seed" if arm.confirms else "seed"
    seeds = f"({row.n} {fresh}{'' if row.n == 1 else 's'})" if arm.has_seeds else ""
    pointer = SELECTED if row.selected else ""
    name = pointer + _name(arm.algorithm, arm.params, arm.merge or "")
    return ArmSummary(
        label=arm.label,
        name=f"{name} {seeds}".rstrip(),
        params=params,
        tags={
            "carft.algorithm": arm.algorithm,
            "carft.role": arm.role,
            "carft.is_selected": str(row.selected).lower(),
            "carft.marks": ", ".join(row.marks),
        },
        metrics={"n": float(row.n), **dict(_estimates(row, metrics))},
    )


def _estimates(row: Row, metrics: Sequence[str]) -> Iterator[tuple[str, float]]:
    for metric in metrics:
        estimate = row.metric(metric)
        if estimate.mean is not None:
            yield f"mean/{metric}", estimate.mean
        if estimate.ci95 is not None:
            yield f"ci_low/{metric}", estimate.ci95.low
            yield f"ci_high/{metric}", estimate.ci95.high


def _digest(plain: object) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]

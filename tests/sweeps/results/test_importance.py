"""Importance is Optuna's fANOVA of the finished trials, and nothing where they are too few."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from sweeps.ledger.snapshot import View
from sweeps.ledger.trials import Trial
from sweeps.results.report import FEWEST, importance
from tests.tracking.made_up import metrics, run
from tracking.comparison.compare import compare
from tracking.comparison.runs import RunRecord

KL, LR, LAYERS = "algorithm.kl_weight", "optim.lr", "optim.warmup"
PARAMETERS: Mapping[str, Any] = {
    KL: {"values": [0.1, 0.3, 1.0, 3.0]},
    LR: {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-2},
    LAYERS: {"distribution": "uniform", "min": 0.0, "max": 0.9},
}


def points(count: int) -> list[dict[str, float]]:
    draw = random.Random(1)
    return [
        {
            KL: draw.choice(PARAMETERS[KL]["values"]),
            LR: 10 ** draw.uniform(-5, -2),
            LAYERS: draw.uniform(0.0, 0.9),
        }
        for _ in range(count)
    ]


def measured(point: Mapping[str, float]) -> dict[str, float]:
    """ID goes by the learning rate alone, OOD by both in equal parts."""
    rate = (math.log10(point[LR]) + 3.5) / 1.5
    weight = {0.1: -1.0, 0.3: -1 / 3, 1.0: 1 / 3, 3.0: 1.0}[point[KL]]
    held = 0.05 * weight * math.sqrt((1 / 3) / (5 / 9))  # as large a variance as the rate's
    return metrics(0.6 + 0.05 * rate, 0.35 + 0.05 * rate + held)


def swept(
    where: Sequence[Mapping[str, float]], parameters: Mapping[str, Any] = PARAMETERS
) -> tuple[View, list[RunRecord]]:
    """A sweep with one run at each point."""
    trials, records = {}, []
    for number, point in enumerate(where):
        record = run("car_ft", 0, measured(point), trial=number, params=dict(point))
        value = (record.metrics["id/val/top1"],)
        known = {name: value for name, value in point.items() if name in parameters}
        trials[number] = Trial(
            number, number, "complete", value, known, "car_ft", {"0": record.digest}, (), None
        )
        records.append(replace(record, params=known))
    spec = {"parameters": {name: parameters[name] for name in parameters}}
    return View("swept", 1, {"spec": spec}, trials), records


def test_what_decides_the_metric_of_selection_has_the_largest_share() -> None:
    sweep, records = swept(points(300))
    found = importance(sweep, compare(records, sweep="swept"))
    assert found is not None
    (shares,) = found.values()
    assert {*found} == {"id/val/top1"}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares[LR] > 0.95
    assert {*shares} == {KL, LR, LAYERS}


def test_it_is_the_same_each_time() -> None:
    sweep, records = swept(points(30))
    comparison = compare(records, sweep="swept")
    assert importance(sweep, comparison) == importance(sweep, comparison)


def test_too_few_trials_or_a_single_parameter_have_none() -> None:
    for count, expected in ((FEWEST - 1, False), (FEWEST, True)):
        sweep, records = swept(points(count))
        found = importance(sweep, compare(records, sweep="swept"))
        assert (found is not None) is expected
    sweep, records = swept(points(30), {LR: PARAMETERS[LR]})
    assert importance(sweep, compare(records, sweep="swept")) is None


def test_failed_and_pruned_trials_do_not_count() -> None:
    sweep, records = swept(points(12))
    pruned = {n: replace(t, state="pruned", values=()) for n, t in sweep.by_point.items() if n < 3}
    sweep = replace(sweep, by_point={**sweep.by_point, **pruned})
    assert importance(sweep, compare(records, sweep="swept")) is None


def test_a_parameter_that_not_every_trial_has_is_left_out() -> None:
    where = points(30)
    sweep, records = swept(where)
    first = sweep.by_point[0]
    partial = replace(first, params={KL: where[0][KL], LR: where[0][LR]})
    sweep = replace(sweep, by_point={**sweep.by_point, 0: partial})
    found = importance(sweep, compare(records, sweep="swept"))
    assert found is not None
    assert {*found["id/val/top1"]} == {KL, LR}


def test_a_metric_that_is_the_same_everywhere_has_no_shares() -> None:
    sweep, records = swept(points(12))
    flat = [replace(r, metrics={**r.metrics, "id/val/top1": 0.3}) for r in records]
    assert importance(sweep, compare(flat, sweep="swept")) is None

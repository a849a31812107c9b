"""Importance is Optuna's fANOVA of the finished trials, and nothing where they are too few."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweeps.ledger.trials import Ledger
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
) -> tuple[Ledger, list[RunRecord]]:
    """A sweep with one run at each point."""
    spec = {"parameters": dict(parameters)}
    sweep, records = Ledger(Path("swept/ledger.jsonl"), 1, spec, 0.0), []
    for number, point in enumerate(where):
        record = run("car_ft", 0, measured(point), trial=number, params=dict(point))
        value = (record.metrics["id/val/top1"],)
        known = {name: value for name, value in point.items() if name in parameters}
        told = {"number": number, "point": number, "params": known, "algorithm": "car_ft"}
        told |= {"runs": {"0": record.digest}, "merges": (), "state": "complete", "values": value}
        sweep._apply({"trial": told})
        records.append(replace(record, params=known))
    return sweep, records


def test_each_metric_has_the_shares_of_its_own_variance() -> None:
    sweep, records = swept(points(300))
    found = importance(sweep, compare(records, sweep="swept"))
    assert found is not None
    assert {*found} == {"id/val/top1", "id/test/top1", "ood/mean/top1"}
    for shares in found.values():
        assert sum(shares.values()) == pytest.approx(1)
    assert found["id/test/top1"][LR] > 0.95
    both = found["ood/mean/top1"]
    assert both[LR] == pytest.approx(0.5, abs=0.08)
    assert both[KL] == pytest.approx(0.5, abs=0.08)
    assert both[LAYERS] < 0.05


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
    assert {*found["id/test/top1"]} == {KL, LR}


def test_a_metric_that_is_the_same_everywhere_has_no_shares() -> None:
    sweep, records = swept(points(12))
    flat = [replace(r, metrics={**r.metrics, "ood/mean/top1": 0.3}) for r in records]
    found = importance(sweep, compare(flat, sweep="swept"))
    assert found is not None
    assert {*found} == {"id/val/top1", "id/test/top1"}

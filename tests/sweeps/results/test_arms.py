"""The arms of a sweep and the values of the selected one, as a tracking store has them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from carft_sweep.sweeps.plan.planner import run_label
from carft_sweep.sweeps.results.arms import (
    all_sweeps_view,
    arm_summaries,
    arms_view,
    runs_view,
    selected_values,
)
from carft_sweep.tracking.comparison.compare import Comparison, Row, compare
from carft_sweep.tracking.comparison.spec import ComparisonSpec
from carft_sweep.tracking.errors import TrackingError
from carft_sweep.tracking.report.table import TableOptions, usual_columns, visible_rows
from carft_sweep.tracking.store.base import Metric, RunKey
from tests.sweeps.conftest import ToySweep
from tests.tracking.made_up import KL, metrics, run, zero_shot
from tests.tracking.memory_store import MemoryTracker

SEEDS = range(5)
PARENT = RunKey("toy")


def accuracies(base: float, seed: int) -> dict[str, float]:
    return metrics(base + 0.01 * (seed % 3), base - 0.1 + 0.02 * (seed % 2))


@pytest.fixture
def compared() -> Comparison:
    runs = [zero_shot()]
    for seed in SEEDS:
        runs.append(run("fine_tune", seed, accuracies(0.2, seed)))
        for trial, weight in enumerate((0.3, 3.0)):
            measured = accuracies(0.3 + weight / 10 - 0.002 * seed, seed)
            merges = {"wise_ft@0.5": accuracies(0.4, seed)}
            params = {KL: weight}
            runs.append(run("car_ft", seed, measured, trial=trial, params=params, merges=merges))
    return compare(runs, ComparisonSpec(seeds=tuple(SEEDS)), sweep="toy")


def test_each_row_is_an_arm_with_means_and_intervals(compared: Comparison) -> None:
    rows = visible_rows(compared, TableOptions())
    arms = arm_summaries(compared)
    assert [arm.label for arm in arms] == [row.arm.label for row in rows]
    assert len(arms) == 6
    for arm, row in zip(arms, rows, strict=True):
        assert arm.metrics == pytest.approx(values_of(row, compared), abs=5e-7)
    assert [arm.tags["carft.seeds"] for arm in arms[:2]] == ["1", "5"]
    assert "mean/ood/mean/top1_ci_low" not in arms[0].metrics
    own = arms[1].metrics
    names = ("mean/gap/top1", "mean/ood/outline/top1_ci_high", "mean/id/val/top1_ci_low")
    assert {*names} <= own.keys()
    assert "mean/gap/top1_ci_low" not in own


def values_of(row: Row, comparison: Comparison) -> dict[str, float]:
    """Compute what an arm should have from the comparison alone."""
    values = {}
    for column in usual_columns(comparison):
        summary, name = row.metric(column.metric), f"mean/{column.metric}"
        if summary.mean is not None:
            values[name] = summary.mean
        if summary.ci95 is not None and column.metric.startswith(("id/", "ood/")):
            values |= {f"{name}_ci_low": summary.ci95.low, f"{name}_ci_high": summary.ci95.high}
    return values


def test_what_tells_arms_apart_is_in_their_parameters_and_names(compared: Comparison) -> None:
    arms = arm_summaries(compared)
    params = {arm.label: dict(arm.params) for arm in arms}
    assert params["fine_tune"] == {"arm": "fine_tune", "algorithm": "fine_tune"}
    label = "car_ft kl_weight=3 + wise_ft@0.5"
    merged = {"algorithm": "car_ft", KL: 3.0, "merge": "wise_ft", "alpha": 0.5}
    assert params[label] == {"arm": label, **merged}
    assert [arm.name for arm in arms] == [
        "zero_shot",
        "fine_tune (5 seeds)",
        "car_ft kl_weight=0.3 (5 seeds)",
        "car_ft kl_weight=0.3 + wise_ft@0.5 (5 seeds)",
        "▸ car_ft kl_weight=3 (5 seeds)",
        "car_ft kl_weight=3 + wise_ft@0.5 (5 seeds)",
    ]
    assert run_label("car_ft", {KL: 3.0, "optim.lr": 1e-5}) == "car_ft kl_weight=3 lr=1e-05"
    assert run_label("zero_shot", {}) == "zero_shot"


def test_the_sweep_has_the_values_of_the_selected_arm(compared: Comparison) -> None:
    selected = next(row for row in compared.rows if row.selected)
    values = selected_values(compared)
    for name in ("id/val/top1", "id/test/top1", "ood/mean/top1"):
        assert values[f"selected/{name}"] == pytest.approx(selected.metric(name).mean, abs=5e-7)
    (verdict,) = compared.verdicts
    test = verdict.pair.ood
    assert test is not None
    assert test.ci95 is not None
    assert values["vs_reference/ood/mean/top1"] == pytest.approx(test.mean, abs=5e-7)
    ends = [values[f"vs_reference/ood/mean/top1_ci_{end}"] for end in ("low", "high")]
    assert ends == pytest.approx([*test.ci95], abs=5e-7)


def test_the_interval_of_the_selected_arm_is_the_one_that_decides_or_none() -> None:
    runs = [run("fine_tune", 0, accuracies(0.2, 0))]
    runs += [run("car_ft", 0, accuracies(0.3, 0), trial=0, params={KL: 1.0})]
    values = selected_values(compare(runs, ComparisonSpec(seeds=(0,)), sweep="toy"))
    assert values["vs_reference/ood/mean/top1"] == pytest.approx(0.1)
    assert math.isnan(values["vs_reference/ood/mean/top1_ci_low"])


def test_the_view_of_arms_shows_each_varied_parameter(compared: Comparison) -> None:
    arms = arm_summaries(compared)
    view = arms_view(compared, arms)
    test, ood = "mean/id/test/top1", "mean/ood/mean/top1"
    assert view.sort_by == view.metrics[0] == ood
    assert view.metrics[1:4] == [test, f"{ood}_ci_low", f"{ood}_ci_high"]
    assert view.scatters == [(test, ood), ("arm", ood), ("arm", test), (KL, ood)]
    known = {name for arm in arms for name in (*arm.metrics, *arm.params)}
    charted = {name for pair in view.scatters for name in pair}
    assert {*view.metrics, *view.params, *charted} <= known


def test_every_row_that_is_shown_first_is_an_arm_and_has_the_tag_of_its_sweep(
    compared: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = replace(compared.rows[1], arm=compared.rows[1].arm.merged("wise_ft@0.9"), chosen=False)
    more = replace(compared, rows=(*compared.rows, hidden))
    assert "fine_tune + wise_ft@0.9" not in {arm.label for arm in arm_summaries(more)}
    shown = (hidden, compared.rows[0])
    monkeypatch.setattr("carft_sweep.sweeps.results.arms.shown_rows", lambda _: shown)
    arms = {arm.label: arm for arm in arm_summaries(more, "2026 toy")}
    tagged = {label for label, arm in arms.items() if arm.tags["carft.group"] == "2026 toy"}
    assert tagged == {"zero_shot", "fine_tune + wise_ft@0.9"}
    assert {arm.tags["carft.group"] for arm in arms.values()} == {"2026 toy", ""}
    assert arms["fine_tune + wise_ft@0.9"].name == "fine_tune + wise_ft@0.9 (5 seeds)"


def test_a_store_has_the_arms_in_order_and_views_of_what_there_is(toy: ToySweep) -> None:
    ended = toy.run()
    arms = toy.arms()
    rows = [row.arm.label for row in visible_rows(ended.comparison, TableOptions()) if row.n]
    assert sorted(arms, key=lambda label: -arms[label].started) == rows
    for summary in arm_summaries(ended.comparison):
        arm = arms[summary.label]
        assert (arm.state, arm.parent) == ("finished", PARENT)
        assert {name: point.value for name, (point,) in arm.history.items()} == summary.metrics
        assert arm.tags["carft.seeds"] == summary.tags["carft.seeds"]
    parent = toy.tracker.runs[PARENT]
    values = {name: point.value for name, (point,) in parent.history.items()}
    assert values == pytest.approx(selected_values(ended.comparison), nan_ok=True)
    assert parent.tags["carft.answer"].startswith("UNDECIDED")
    # In the order of the group, a sweep is before its arms.
    (group,) = {arm.tags["carft.group"] for arm in arms.values()} - {""}
    assert parent.tags["carft.group"] > group
    assert parent.tags["carft.group"].startswith(group)
    assert {*toy.tracker.views} == {("", "sweep"), ("toy", "arm"), ("toy", "run")}
    endpoint = ended.comparison.endpoint
    for view, kinds in (
        (all_sweeps_view(endpoint), ("sweep", "arm")),
        (runs_view("toy", [KL], endpoint), ("run",)),
    ):
        runs = [run for key, run in toy.tracker.runs.items() if key.kind in kinds]
        assert {*view.metrics, *view.lines} <= {name for run in runs for name in run.history}
        assert {*view.params} <= {name for run in runs for name in run.params}
        assert {*view.tags} <= {name for run in runs for name in run.tags}
    # Else a maximum over all runs mixes a mean over seeds with single seeds.
    names: dict[str, set[str]] = {"sweep": set(), "arm": set(), "run": set()}
    for key, tracked in toy.tracker.runs.items():
        names[key.kind] |= tracked.history.keys()
    assert all(names.values())
    assert not any(first & second for first, second in itertools.combinations(names.values(), 2))


def test_arms_change_and_go_with_their_sweep(toy: ToySweep) -> None:
    toy.run(seeds=[0, 1])
    first = toy.arms()
    noted = {"mlflow.user": "ada", "mine": "look here"}
    label = "car_ft kl_weight=0.3"
    (key,) = (key for key, run in toy.tracker.runs.items() if run.params.get("arm") == label)
    toy.tracker.set_tags(key, noted)
    ended = toy.run(seeds=[0, 1, 2], parameters={KL: {"values": [0.3, 3.0]}})
    second = toy.arms()
    assert {*second} == {arm.label for arm in arm_summaries(ended.comparison)}
    gone = {label for label in first if "kl_weight=0.1" in label}
    assert {*first} - {*second} == gone
    assert second["car_ft kl_weight=0.3"].tags["carft.seeds"] == "3"
    assert second["car_ft kl_weight=0.3"].tags["mine"] == "look here"
    assert "mean/id/val/top1_ci_low" in second["car_ft kl_weight=0.3"].history


def test_an_arm_that_is_refused_is_tried_by_the_next_driver(toy: ToySweep) -> None:
    class Picky(MemoryTracker):
        refuses = True

        def log_metrics(self, key: RunKey, values: Sequence[Metric]) -> None:
            if self.refuses and self.runs[key].params.get("arm") == "fine_tune":
                raise TrackingError("no")
            super().log_metrics(key, values)

    store = toy.tracker = Picky()
    toy.run()
    (complaint,) = toy.complaints
    assert "of arm fine_tune: no" in complaint
    assert toy.arms()["fine_tune"].history == {}
    store.refuses = False
    toy.run()
    assert toy.complaints == []
    assert "mean/id/val/top1" in toy.arms()["fine_tune"].history

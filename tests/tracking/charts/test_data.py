"""The rows on show are those that stand for something."""

from __future__ import annotations

from carft_sweep.tracking.charts import CHARTS
from carft_sweep.tracking.charts.data import ChartData
from carft_sweep.tracking.comparison.compare import compare
from tests.tracking.charted import grid_runs
from tests.tracking.charts.drawn import data_of, spec_of
from tests.tracking.made_up import KL, kl_sweep, metrics, run, zero_shot


def test_on_show_is_what_stands_for_each_algorithm_and_its_merges() -> None:
    data = ChartData(compare(grid_runs(), sweep="s"))
    assert [row.arm.label for row in data.shown] == [
        "zero_shot",
        "fine_tune lr=0.0001",
        "fine_tune lr=0.0001 + wise_ft@0.5",
        "fine_tune lr=0.0001 + wise_ft@0.75",
        "car_ft kl_weight=0 lr=0.001",
        "car_ft kl_weight=0 lr=0.001 + wise_ft@0.5",
        "car_ft kl_weight=0 lr=0.001 + wise_ft@0.75",
        "flyp lr=0.0001",
    ]
    assert data.reference is data.shown[1]
    assert data.zero_shot is data.shown[0]


def test_without_candidates_fine_tuning_is_the_reference_and_without_it_nobody() -> None:
    alone = ChartData(compare([zero_shot(), run("fine_tune", 0, metrics(0.6, 0.3))], sweep="s"))
    assert alone.reference is not None
    assert alone.reference.arm.label == "fine_tune"
    other = ChartData(
        compare([zero_shot(), run("car_ft", 0, metrics(0.6, 0.3), trial=0)], sweep="s")
    )
    assert other.reference is None
    assert CHARTS["shifts"].draw(other) is None


def test_confirmed_choices_are_shown_on_their_fresh_seeds() -> None:
    runs = kl_sweep(3)
    for record in kl_sweep(6):
        if record.seed is not None and record.seed >= 3 and record.params.get(KL, 1.0) == 1.0:
            changes = {"params": record.params, "merges": record.merges, "role": "confirmation"}
            runs.append(run(record.algorithm, record.seed, record.metrics, **changes))
    comparison = compare(runs, sweep="confirmed")
    data = ChartData(comparison)
    shown = [row for row in data.shown if row.arm.trains and row.arm.merge is None]
    assert {row.arm.label for row in shown} == {
        "fine_tune (confirmed)",
        "car_ft kl_weight=1 (confirmed)",
    }
    assert {run.seed for row in shown for run in row.arm.done} == {3, 4, 5}
    assert data_of(spec_of("shifts", data), "difference")
    assert len(data.settings) == 6

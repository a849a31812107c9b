"""Columns, order and ranks of a table."""

from __future__ import annotations

import pytest

from carft_sweep.tracking.comparison.compare import Comparison, compare
from carft_sweep.tracking.comparison.metrics import shifts
from carft_sweep.tracking.comparison.power import Power
from carft_sweep.tracking.comparison.spec import ComparisonSpec, SelectionRule
from carft_sweep.tracking.errors import TrackingError
from carft_sweep.tracking.report import formats
from carft_sweep.tracking.report.table import (
    POWER_SEEDS,
    Column,
    TableOptions,
    build_table,
    power_table,
    resolve_columns,
    visible_rows,
)
from tests.tracking.made_up import kl_sweep, metrics, run

SWEEP = compare(kl_sweep(), sweep="kl_weight")


def wide() -> Comparison:
    more = {"id/test/nll": 1.23456, "context/id/test/kl": 4.9e-5, "id/test/ece": 0.0623}
    more["system/images_per_s"] = 1234.4
    runs = [run("car_ft", s, metrics(0.6, 0.3) | more, trial=0) for s in range(3)]
    return compare(runs, sweep="wide")


@pytest.mark.parametrize(
    ("name", "metric"),
    [("OOD mean", "ood/mean/top1"), ("ood/mean/top1", "ood/mean/top1"), ("gap", "gap/top1")],
)
def test_a_column_goes_by_header_or_metric(name: str, metric: str) -> None:
    (column,) = resolve_columns(SWEEP, [name])
    assert column.metric == metric


def test_what_settings_are_chosen_by_has_a_column_also_where_it_is_no_accuracy() -> None:
    runs = [
        run("car_ft", seed, metrics(0.6, 0.3) | {"id/val/nll": 1.2 + trial / 10}, trial=trial)
        for trial in range(2)
        for seed in range(3)
    ]
    comparison = compare(
        runs, ComparisonSpec(rule=SelectionRule(metric="id/val/nll", goal="minimize")), sweep="s"
    )
    head, _, row, *_ = formats.markdown(comparison).splitlines()
    assert head.startswith("| setting | n | id/val/nll | ID val |")
    assert "1.2 ±0" in row


def test_what_is_kept_on_other_tasks_has_columns_of_its_own() -> None:
    kept = {"retention/mean/top1": 0.5, "retention/gain/top1": -0.073, "retention/dtd/top1": 0.5}
    runs = [run("car_ft", s, metrics(0.6, None) | kept, trial=0) for s in range(3)]
    head, _, row, *_ = formats.markdown(compare(runs, sweep="other")).splitlines()
    assert head.endswith("| other tasks | kept there |")
    assert row.endswith("| 50.0 ±0.0 | -7.3 ±0.0 |")
    assert list(compare(runs, sweep="other").rows[0].metrics)[-3:] == [
        "retention/dtd/top1",
        "retention/mean/top1",
        "retention/gain/top1",
    ]


def test_a_column_that_no_row_has_is_told_with_the_nearest_name() -> None:
    with pytest.raises(
        TrackingError, match="unknown column 'id/test/nil'; did you mean 'id/test/nll'"
    ):
        resolve_columns(wide(), ["id/test/nil"])


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("id/test/top1", 0.6512, "65.1"),
        ("id/test/ece", 0.0623, "6.2"),
        ("id/test/nll", 1.23456, "1.23"),
        ("context/id/test/kl", 4.9e-5, "4.9e-05"),
        ("system/images_per_s", 1234.4, "1234"),
        ("id/test/top1", -0.00001, "0.0"),
    ],
)
def test_fractions_are_percent_and_the_rest_is_not(metric: str, value: float, text: str) -> None:
    assert Column(metric, metric).number(value) == text


def test_of_many_baselines_the_best_are_shown_and_the_one_that_stands_for_their_algorithm() -> None:
    rates = [0.5 - abs(rate - 29.6) / 1000 for rate in range(60)]
    runs = [
        *(
            run("fine_tune", 0, metrics(at, 0.3), params={"optim.lr": i})
            for i, at in enumerate(rates)
        ),
        run("car_ft", 0, metrics(0.6, 0.4), trial=0, params={"optim.lr": 1}),
    ]
    rows = visible_rows(compare(runs, sweep="random"), TableOptions(max_trials=10))
    baselines = {row.setting for row in rows if row.arm.trial is None}
    assert baselines == {f"fine_tune lr={rate}" for rate in range(25, 35)}


def test_a_shift_called_test_or_val_is_told_from_what_is_in_distribution() -> None:
    names = {"ood/test/top1", "ood/val/top1", "ood/outline/top1", "ood/mean/top1", "id/val/top1"}
    assert shifts(names) == [
        ("ood/outline/top1", "outline"),
        ("ood/test/top1", "OOD test"),
        ("ood/val/top1", "OOD val"),
    ]


def test_the_table_of_power_has_a_line_for_each_claim_and_its_numbers() -> None:
    table = power_table(SWEEP)
    assert [line.name for line in table.lines] == [
        "car_ft kl_weight=1 + WiSE-FT, curve",
        "car_ft kl_weight=1, OOD mean",
        "car_ft kl_weight=1, ID test",
    ]
    assert len(table.heads) == 1 + len(table.lines[0].cells)
    ood = SWEEP.verdicts[0].pair.ood
    assert ood is not None
    power = Power.of(ood)
    assert power is not None
    numbers = [cell.number for cell in table.lines[1].cells]
    assert numbers[0] == f"{100 * power.of_seeds:.2f}"
    assert numbers[1] == "–", "no predictions are kept"
    smallest = [f"{100 * power.smallest_difference(n):.2f}" for n in (5, *POWER_SEEDS)]
    assert numbers[2:-1] == smallest
    assert numbers[-1] == str(power.seeds_for(0.005, 5))
    few = power_table(compare(kl_sweep(2), sweep="s"))
    assert {cell.number for line in few.lines for cell in line.cells} == {"–"}


def test_settings_called_by_a_number_have_columns_of_the_fields_that_vary() -> None:
    fields = {"optim.batch_size": 32, "optim.weight_decay": 0.123456, "optim.momentum": 0.9}
    runs = [
        run("car_ft", seed, metrics(0.6, 0.3), trial=trial, params={**fields, "optim.lr": rate})
        for trial, rate in enumerate((1.23456e-4, 1e-3))
        for seed in (0, 1)
    ]
    table = build_table(compare(runs, ComparisonSpec()))
    assert table.heads[-2:] == ("pixel", "lr")
    assert {line.name.strip("▸ "): line.cells[-1].text for line in table.lines} == {
        "car_ft #0": "0.000123",
        "car_ft #1": "0.001",
    }

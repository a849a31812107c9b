"""The comparison reads well at every width: columns, order, ranks, and nothing of it is lost."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from carft_sweep.tracking.comparison.compare import Comparison, compare
from carft_sweep.tracking.comparison.metrics import shifts
from carft_sweep.tracking.comparison.power import Power
from carft_sweep.tracking.comparison.runs import RunRecord
from carft_sweep.tracking.comparison.spec import ComparisonSpec, SelectionRule
from carft_sweep.tracking.errors import TrackingError
from carft_sweep.tracking.report import formats
from carft_sweep.tracking.report import table as tables
from carft_sweep.tracking.report import terminal as report
from carft_sweep.tracking.report.table import TableOptions
from tests.tracking.made_up import KL, arm, bent, kl_sweep, known, metrics, run, zero_shot

GOLDEN = Path(__file__).parents[2] / "golden"


def troubled() -> Comparison:
    """Three seeds of which some failed, an oracle, contexts that tell, other data, no tuning."""
    facts, other = {"data": "a" * 64}, {"data": "b" * 64, "contexts_name": ["pixel"]}
    runs: list[RunRecord] = [zero_shot(facts=facts)]
    for record in kl_sweep(3)[1:]:
        own = replace(record, facts=facts if record.trial is None else other)
        if record.trial:
            own = replace(own, params={**record.params, "optim.lr": 3e-4})
        lost = record.trial == 2 and record.seed == 1
        runs.append(replace(own, metrics={}, state="failed") if lost else own)
    rule = SelectionRule(metric="ood/mean/top1", oracle=True, within=0.005, strength={KL: 1})
    return compare(runs, ComparisonSpec(rule=rule), sweep="troubled")


SWEEP = compare(kl_sweep(), sweep="kl_weight")
ALPHAS = TableOptions(all_alphas=True)
TEXTS: dict[str, Callable[[], str]] = {
    **{f"comparison_{n}.txt": partial(report.terminal, SWEEP, width=n) for n in (80, 100, 120)},
    "comparison_troubled_80.txt": lambda: report.terminal(troubled(), width=80),
    "comparison_all_alphas_120.txt": lambda: report.terminal(SWEEP, width=120, options=ALPHAS),
    "comparison.md": lambda: formats.markdown(SWEEP),
    "comparison.csv": lambda: formats.to_csv(SWEEP),
}


@pytest.mark.parametrize("name", TEXTS)
def test_the_text_is_the_one_that_was_looked_at(name: str) -> None:
    """CARFT_WRITE_GOLDEN=1 writes the new text after a wanted change; read it then."""
    text = TEXTS[name]()
    path = GOLDEN / name
    if os.environ.get("CARFT_WRITE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
        pytest.fail(f"{name} was written; read it, then run again without CARFT_WRITE_GOLDEN")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [40, 79, 100, 200])
def test_no_line_is_wider_than_asked_and_no_number_is_cut(width: int) -> None:
    for comparison, all_alphas in product((SWEEP, troubled()), (False, True)):
        text = report.terminal(comparison, width=width, options=TableOptions(all_alphas=all_alphas))
        assert max(map(cell_len, text.splitlines())) <= width
        assert "…" not in text


def test_many_shifts_take_several_tables_rather_than_being_left_out() -> None:
    shifts = {f"ood/corruption_{i}/top1": 0.3 for i in range(15)}
    runs = [run("car_ft", s, metrics(0.6, 0.3) | shifts, trial=0) for s in range(3)]
    text = report.terminal(compare(runs, sweep="s"), width=80)
    assert text.count("setting ") > 2
    assert text.count("corruption") == 15
    assert max(map(cell_len, text.splitlines())) <= 80


@pytest.mark.parametrize(("width", "second"), [(60, ["gap", "dusk"]), (70, ["dusk"])])
def test_a_shift_stands_beside_the_means_that_the_first_table_has_no_room_for(
    width: int, second: list[str]
) -> None:
    runs = []
    for seed in range(3):
        own = {"id/val/top1": 0.6, "id/test/top1": 0.6, "ood/dusk/top1": 0.3 + seed / 30}
        means = {
            "ood/mean/top1": own["ood/dusk/top1"],
            "gain/ood/top1": 0.1,
            "gap/top1": 0.3 - seed / 30,
        }
        runs.append(run("car_ft", seed, own | means, trial=0))
    lines = report.terminal(compare(runs, sweep="s"), width=width).splitlines()
    heads = [line.split() for line in lines if line.startswith("setting ")]
    assert heads[1:] == [["setting", "n", *second]]


def test_colour_is_asked_for_and_never_in_the_way() -> None:
    assert "\x1b[" not in report.terminal(SWEEP, width=100)
    coloured = report.terminal(SWEEP, width=100, colour=True)
    assert "\x1b[1mBETTER CURVE: car_ft kl_weight=1 beats fine_tune" in coloured


def test_what_has_no_number_is_a_dash_and_nothing_at_all_still_gives_a_text() -> None:
    text = report.terminal(compare([run("car_ft", 0, trial=0), zero_shot()], sweep="s"), width=100)
    line = next(line for line in text.splitlines() if line.startswith("  car_ft"))
    assert (line.split()[1], {*line.split()[2:]}) == ("0/1", {"–"})
    empty = compare([], sweep="s")
    nothing = "UNDECIDED: no trial has ended with a value to select on."
    assert nothing in report.terminal(empty, width=80)
    assert nothing in formats.markdown(empty)
    assert formats.to_csv(empty).startswith("setting,")


def test_of_many_trials_the_best_the_selected_and_what_they_are_compared_with_are_shown() -> None:
    crowd = [zero_shot(), *arm("fine_tune", [0.6] * 3, [0.3] * 3)]
    for trial in range(80):  # the best in the middle
        own: dict[str, Any] = {"trial": trial, "params": {KL: trial}}
        test = 0.7 - abs(trial - 40) / 1000
        crowd += arm("car_ft", [test] * 3, [0.35] * 3, merges=bent(test, 0.35), **own)
    comparison, every = compare(crowd, sweep="crowd"), TableOptions(max_trials=None)
    text = report.terminal(comparison, width=100)
    settings = re.compile(r"^..car_ft kl_weight=\S+", re.MULTILINE)
    assert len({*settings.findall(text)}) == 50
    for name in ("▸ car_ft kl_weight=40 ", "  zero_shot ", "  fine_tune "):
        assert f"\n{name}" in text
    assert "52 of 82 settings, the best by id/val/top1." in " ".join(text.split())
    everything = report.terminal(comparison, width=100, options=every)
    assert len({*settings.findall(everything)}) == 80
    assert "settings, the best" not in everything
    assert "52 of 82 settings" in formats.markdown(comparison)
    assert formats.markdown(comparison, options=every).count("car_ft kl_weight") > 80
    heights = [metrics(0.7 - trial / 10_000, 0.3) for trial in range(80)]
    runs = [run("car_ft", 0, own, trial=t, params={KL: t + 1}) for t, own in enumerate(heights)]
    spec = ComparisonSpec(rule=SelectionRule(within=0.5, strength={KL: 1}))
    chosen = report.terminal(compare(runs, spec, sweep="s"), width=100)
    assert "\n▸ car_ft kl_weight=80 " in chosen


def test_a_column_goes_by_header_or_metric_and_an_unknown_one_is_told_with_the_nearest() -> None:
    named = {"OOD mean": "ood/mean/top1", "ood/mean/top1": "ood/mean/top1", "gap": "gap/top1"}
    resolved = [column.metric for column in tables.resolve_columns(SWEEP, [*named])]
    assert resolved == [*named.values()]
    with pytest.raises(TrackingError, match="unknown column 'gap/top2'; did you mean 'gap/top1'"):
        tables.resolve_columns(SWEEP, ["gap/top2"])


def test_what_settings_are_chosen_by_and_what_is_kept_on_other_tasks_have_columns() -> None:
    nll = {"id/val/nll": 1.2}
    runs = [run("car_ft", s, metrics(0.6, 0.3) | nll, trial=0) for s in range(3)]
    rule = SelectionRule(metric="id/val/nll", goal="minimize")
    comparison = compare(runs, ComparisonSpec(rule=rule), sweep="s")
    head, _, row, *_ = formats.markdown(comparison).splitlines()
    assert head.startswith("| setting | n | id/val/nll | ID val |")
    assert "1.2 ±0" in row
    tasks = {"retention/mean/top1": 0.5, "retention/gain/top1": -0.073, "retention/dtd/top1": 0.5}
    runs = [run("car_ft", s, metrics(0.6, None) | tasks, trial=0) for s in range(3)]
    comparison = compare(runs, sweep="other")
    head, _, row, *_ = formats.markdown(comparison).splitlines()
    assert head.endswith("| other tasks | kept there |")
    assert row.endswith("| 50.0 ±0.0 | -7.3 ±0.0 |")
    order = [f"retention/{name}/top1" for name in ("dtd", "mean", "gain")]
    assert list(comparison.rows[0].metrics)[-3:] == order


def test_fractions_are_percent_and_the_rest_is_not() -> None:
    for metric, value, text in (
        ("id/test/top1", 0.6512, "65.1"),
        ("id/test/ece", 0.0623, "6.2"),
        ("id/test/nll", 1.23456, "1.23"),
        ("context/id/test/kl", 4.9e-5, "4.9e-05"),
        ("system/images_per_s", 1234.4, "1234"),
        ("id/test/top1", -0.00001, "0.0"),
    ):
        assert tables.Column(metric, metric).number(value) == text


def test_a_shift_called_test_or_val_is_told_from_what_is_in_distribution() -> None:
    names = {"ood/test/top1", "ood/val/top1", "ood/outline/top1", "ood/mean/top1", "id/val/top1"}
    called = {"outline": "outline", "test": "OOD test", "val": "OOD val"}
    assert shifts(names) == [(f"ood/{name}/top1", title) for name, title in called.items()]


def test_of_many_baselines_the_best_are_shown_and_the_one_that_stands_for_their_algorithm() -> None:
    runs = [run("car_ft", 0, metrics(0.6, 0.4), trial=0, params={"optim.lr": 1})]
    for rate in range(60):
        measured = metrics(0.5 - abs(rate - 29.6) / 1000, 0.3)
        runs.append(run("fine_tune", 0, measured, params={"optim.lr": rate}))
    rows = tables.visible_rows(compare(runs, sweep="random"), tables.TableOptions(max_trials=10))
    baselines = {row.arm.label for row in rows if row.arm.trial is None}
    assert baselines == {f"fine_tune lr={rate}" for rate in range(25, 35)}


def test_the_table_of_power_has_a_line_for_each_claim_and_its_numbers() -> None:
    table = tables.power_table(SWEEP)
    claims = (" + WiSE-FT, curve", ", OOD mean", ", ID test")
    assert [line.name for line in table.lines] == [f"car_ft kl_weight=1{of}" for of in claims]
    assert len(table.heads) == 1 + len(table.lines[0].cells)
    ood = known(SWEEP.verdicts[0].pair.ood)
    power = known(Power.of(ood))
    numbers = [cell.number for cell in table.lines[1].cells]
    assert numbers[0] == f"{100 * power.of_seeds:.2f}"
    assert numbers[1] == "–", "no predictions are kept"
    smallest = [f"{100 * power.smallest_difference(n):.2f}" for n in (5, *tables.POWER_SEEDS)]
    assert numbers[2:-1] == smallest
    assert numbers[-1] == str(power.seeds_for(0.005, 5))
    two_seeds = tables.power_table(compare(kl_sweep(2), sweep="s"))
    assert {cell.number for line in two_seeds.lines for cell in line.cells} == {"–"}


def test_settings_called_by_a_number_have_columns_of_the_fields_that_vary() -> None:
    fields = {"optim.batch_size": 32, "optim.weight_decay": 0.123456, "optim.momentum": 0.9}
    runs = [
        run("car_ft", 0, metrics(0.6, 0.3), trial=trial, params={**fields, "optim.lr": rate})
        for trial, rate in enumerate((1.23456e-4, 1e-3))
    ]
    table = tables.build_table(compare(runs))
    assert table.heads[-2:] == ("pixel", "lr")
    last = {line.name.strip("▸ "): line.cells[-1].text for line in table.lines}
    assert last == {"car_ft #0": "0.000123", "car_ft #1": "0.001"}

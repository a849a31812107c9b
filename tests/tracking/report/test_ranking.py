"""Which rows are marked as the best of a column."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carft_sweep.tracking.comparison.compare import Comparison, compare
from carft_sweep.tracking.comparison.runs import RunRecord
from carft_sweep.tracking.comparison.spec import ComparisonSpec, SelectionRule
from carft_sweep.tracking.comparison.statistics import t_interval
from carft_sweep.tracking.report import terminal as report
from carft_sweep.tracking.report.formats import latex, markdown
from carft_sweep.tracking.report.html import cell
from carft_sweep.tracking.report.table import (
    MEANING,
    TableOptions,
    best_rows,
    build_table,
    full_table,
    headline,
)
from tests.tracking.made_up import KL, arm, bent, kl_sweep, metrics, run, zero_shot

SWEEP = compare(kl_sweep(), sweep="kl_weight")


def settings(*tests: Sequence[float], metric: str = "id/test/top1") -> Comparison:
    """Compare one setting of CAR-FT for each list of values, a seed a value."""
    runs = [
        run("car_ft", seed, metrics(0.5, 0.3) | {metric: value}, trial=trial, params={KL: trial})
        for trial, values in enumerate(tests)
        for seed, value in enumerate(values)
    ]
    return compare(runs, sweep="s")


def best(comparison: Comparison, metric: str = "id/test/top1") -> list[str]:
    """List the settings that share the best, by what tells them apart."""
    labels = best_rows(comparison, metric, lambda value: f"{100 * value:.1f}")
    return sorted(label.removeprefix("car_ft kl_weight=") for label in labels)


def marked(comparison: Comparison, header: str, options: TableOptions) -> set[str]:
    table = build_table(comparison, options)
    at = table.heads.index(header) - 1
    return {line.name.strip("▸• ") for line in table.lines if line.cells[at].best}


def test_the_one_row_that_the_seeds_tell_from_all_others_is_the_best() -> None:
    low, middle, high = [0.60, 0.61, 0.62], [0.63, 0.65, 0.64], [0.701, 0.712, 0.723]
    assert best(settings(low, middle, high)) == ["2"]


def test_a_row_whose_paired_difference_may_be_none_shares_the_best() -> None:
    low, level, high = [0.50, 0.51, 0.52], [0.700, 0.730, 0.705], [0.705, 0.715, 0.725]
    assert best(settings(low, level, high)) == ["1", "2"]


def test_pairs_decide_where_the_rows_own_intervals_overlap() -> None:
    """Seeds move both rows far and alike: each is wide, and their difference is not."""
    low, high = [0.50, 0.60, 0.70], [0.511, 0.610, 0.712]
    assert best(settings(low, high)) == ["1"]


def test_where_no_row_is_told_from_the_best_none_is_marked() -> None:
    assert best(settings([0.70, 0.73, 0.71], [0.71, 0.72, 0.73])) == []
    assert best(settings([0.70, 0.71], [0.80, 0.81])) == []
    assert best(settings([0.7, 0.71, 0.72])) == []


def test_numbers_that_are_printed_alike_are_marked_alike() -> None:
    low, level, high = [0.5, 0.51, 0.52], [0.7, 0.71, 0.72], [0.7001, 0.7102, 0.7201]
    assert best(settings(low, level, high)) == ["1", "2"]


@given(st.lists(st.lists(st.integers(0, 1000), min_size=5, max_size=5), min_size=2, max_size=6))
def test_what_is_marked_is_exactly_what_the_interval_does_not_exclude(
    permille: list[list[int]],
) -> None:
    values = [[value / 1000 for value in row] for row in permille]
    means = [sum(row) / 5 for row in values]
    top = means.index(max(means))
    level = {top}
    for place, row in enumerate(values):
        differences = [one - two for one, two in zip(row, values[top], strict=True)]
        ends = t_interval(differences)
        assert ends is not None
        spreads = max(differences) - min(differences) > 1e-9
        if (spreads and ends.low <= 0 <= ends.high) or round(means[place], 3) == round(
            means[top], 3
        ):
            level.add(place)
        elif not spreads:
            own, other = t_interval(row), t_interval(values[top])
            assert own is not None
            assert other is not None
            if own.high >= other.low:
                level.add(place)
    expected = {str(place) for place in level} if len(level) < len(values) else set()
    comparison = settings(*values)
    labels = best_rows(comparison, "id/test/top1", lambda value: f"{100 * value:.1f}")
    assert {label.removeprefix("car_ft kl_weight=") for label in labels} == expected


def test_a_loss_is_better_the_smaller_it_is() -> None:
    low, high = [0.30, 0.31, 0.32], [0.51, 0.53, 0.52]
    assert best(settings(low, high, metric="id/test/nll"), "id/test/nll") == ["0"]


def test_a_loss_does_not_change_by_whole_images() -> None:
    """Differences of NLL smaller than one of 30 images is of them have an interval all the same."""
    low, high = [1.100, 1.104, 1.102, 1.098, 1.101], [1.120, 1.120, 1.126, 1.119, 1.120]
    comparison = settings(low, high, metric="id/test/nll")
    arms = [row.arm for row in comparison.rows]
    runs = [replace(run, facts={"images": {"id/test": 30}}) for arm in arms for run in arm.runs]
    comparison = compare(runs, sweep="s")
    first, second = (row.arm for row in comparison.rows)
    test = comparison.pair(first, second).test("id/test/nll")
    assert test is not None
    assert test.ci95 is not None
    assert test.ci95.high < 0
    assert best(comparison, "id/test/nll") == ["0"]


@pytest.mark.parametrize("metric", ["gap/top1", "context/id/test/kl", "system/images_per_s"])
def test_what_has_no_good_side_has_no_best(metric: str) -> None:
    low, high = [0.30, 0.31, 0.32], [0.51, 0.53, 0.52]
    assert best(settings(low, high, metric=metric), metric) == []


def test_models_that_no_seed_changes_are_told_apart_by_their_values() -> None:
    runs = [zero_shot(0.4, params={KL: 0}), zero_shot(0.5, params={KL: 1}, digest="other")]
    comparison = compare(runs, sweep="s")
    assert len(best_rows(comparison, "id/test/top1", lambda value: f"{value:.3f}")) == 1


def test_zero_shot_stands_against_each_seed_of_the_others() -> None:
    runs = [zero_shot(0.5, 0.4), *arm("fine_tune", [0.6, 0.61, 0.63], [0.3, 0.31, 0.33])]
    comparison = compare(runs, sweep="s")
    number = "{:.3f}".format
    assert best_rows(comparison, "ood/mean/top1", number) == {"zero_shot"}
    assert best_rows(comparison, "id/test/top1", number) == {"fine_tune"}


def test_each_data_set_and_each_backbone_has_its_own_best() -> None:
    runs = []
    facts = [{"data": "small"}, {"data": "small"}, {"data": "large"}, {"data": "large"}]
    for trial, own in enumerate(facts):
        tests = [0.5 + trial / 10 + wobble for wobble in (0.001, 0.003, 0.002)]
        runs += arm("car_ft", tests, [0.3] * 3, trial=trial, params={KL: trial}, facts=own)
    assert best(compare(runs, sweep="s")) == ["1", "3"]


def test_no_oracle_and_nothing_that_lacks_seeds_is_ranked() -> None:
    rule = SelectionRule(metric="ood/mean/top1", oracle=True)
    assert not build_table(compare(kl_sweep(), ComparisonSpec(rule=rule), sweep="s")).ranked
    runs = [
        *arm("fine_tune", [0.60, 0.61, 0.62], [0.3] * 3),
        *arm("car_ft", [0.7] * 2, [0.3] * 2, trial=0),
        zero_shot(0.5),
    ]
    assert best(compare(runs, sweep="s")) == ["fine_tune"]


def crossing(seeds: int = 5) -> list[RunRecord]:
    """Baselines and five weights of CAR-FT: the best OOD mean stands for no algorithm."""
    wobble = [0.0, 0.004, -0.003, 0.002, -0.001][:seeds]
    runs = [zero_shot(0.55, 0.30)]
    for seed, w in enumerate(wobble):
        runs.append(run("fine_tune", seed, metrics(0.65 + w, 0.34 - w), merges=bent(0.65, 0.30)))
        for trial, (test, ood) in enumerate(
            [(0.64, 0.35), (0.66, 0.352), (0.63, 0.37), (0.62, 0.31)]
        ):
            measured = metrics(test + w / 2, ood + w * (0.3 if seed % 2 else -0.2))
            runs.append(run("car_ft", seed, measured, trial=trial, params={KL: float(trial)}))
    return runs


def test_every_table_of_a_comparison_marks_the_same_rows() -> None:
    comparison = compare(crossing(), sweep="s")
    short, full = headline(comparison), full_table(comparison)
    assert full is not None
    for table in (short, full, build_table(comparison, TableOptions(all_alphas=True))):
        for column, header in enumerate(table.heads[2:], start=1):
            every = marked(comparison, header, TableOptions(max_trials=None))
            here = {line.name.strip("▸• ") for line in table.lines}
            own = {line.name.strip("▸• ") for line in table.lines if line.cells[column].best}
            assert own == every & here, header
    assert marked(comparison, "OOD mean", TableOptions()) == {"car_ft kl_weight=2"}
    assert not any(line.cells[short.heads.index("OOD mean") - 1].best for line in short.lines)


def test_an_alpha_that_was_not_selected_is_no_best() -> None:
    """Of many alphas some has the best OOD mean: which one is seen on the test images alone."""
    every = build_table(SWEEP, TableOptions(all_alphas=True))
    names = [line.name for line in every.lines if any(cell.best for cell in line.cells)]
    assert names
    assert not any("wise_ft@0.25" in name for name in names)


def test_terminal_markdown_latex_and_notebook_mark_the_same_numbers() -> None:
    table = build_table(SWEEP)
    marks = [cell.number for line in table.lines for cell in line.cells if cell.best]
    assert marks
    rows = [line.split(" | ") for line in markdown(SWEEP).splitlines() if line.startswith("| ")]
    bold = [text for row in rows[2:] for text in row[1:] if text.startswith("**")]
    assert [re.sub(r"\*| ±.*| \|", "", text) for text in bold] == marks
    in_latex = re.findall(r"\\textbf\{(\$-\$)?([\d.+]+)\}", latex(SWEEP))
    assert [("-" if minus else "") + digits for minus, digits in in_latex] == marks
    coloured = report.terminal(SWEEP, width=120, colour=True)
    assert re.findall(r"\x1b\[(?:\d+;)*4m([^\x1b]+)", coloured) == marks
    underlined = re.findall(r"text-decoration: underline\">([^<]+)<", cell(SWEEP))
    assert [text.partition(" ")[0] for text in underlined] == marks


def test_a_mark_is_explained_where_it_can_be_seen() -> None:
    assert MEANING in markdown(SWEEP)
    assert f"Bold: {MEANING[:40]}" in latex(SWEEP)
    assert f"Underlined: {MEANING[:40]}" in cell(SWEEP)
    plain, coloured = (report.terminal(SWEEP, width=400, colour=flag) for flag in (False, True))
    assert MEANING not in plain
    assert MEANING in coloured
    nothing = compare([*kl_sweep(2)], sweep="s")
    assert not build_table(nothing).ranked
    assert MEANING not in markdown(nothing)

"""The best and the second of a column are ranked once, for the report, the paper and the cell."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.tracking.made_up import arm, metrics, run, zero_shot
from tracking.comparison.compare import Comparison, compare
from tracking.report.formats import latex
from tracking.report.table import build_table


def places(comparison: Comparison) -> dict[str, int]:
    """By label the place of a row's ID test accuracy."""
    table = build_table(comparison, rows=comparison.rows)
    at = table.heads.index("ID test") - 1
    placed = [line.cells[at].place for line in table.lines]
    return {row.arm.label: p for row, p in zip(comparison.rows, placed, strict=True) if p}


def settings(*values: float) -> Comparison:
    """One setting of CAR-FT for each value, of one seed."""
    runs = [
        run("car_ft", 0, metrics(value, 0.3), trial=trial, params={"optim.lr": trial})
        for trial, value in enumerate(values)
    ]
    return compare(runs, sweep="s")


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=8))
def test_a_place_is_how_many_different_numbers_are_better(permille: list[int]) -> None:
    comparison = settings(*(value / 1000 for value in permille))
    found = places(comparison)
    for row in comparison.rows:
        assert row.arm.trial is not None
        better = {value for value in permille if value > permille[row.arm.trial]}
        is_placed = len(better) < 2 and len(set(permille)) > 1
        place = found.get(row.arm.label)
        assert place == (len(better) + 1 if is_placed else None)


def test_each_data_set_has_its_own_best_and_every_form_marks_the_same() -> None:
    small = [{"data": "small"}, {"data": "small"}, {"data": "large"}, {"data": "large"}]
    runs = [
        run(
            "car_ft",
            0,
            metrics(0.5 + trial / 10, 0.3),
            trial=trial,
            params={"optim.lr": trial},
            facts=facts,
        )
        for trial, facts in enumerate(small)
    ]
    comparison = compare(runs, sweep="s")
    found = places(comparison)
    assert [found[row.arm.label] for row in comparison.rows] == [2, 1, 2, 1]
    bold = [line for line in latex(comparison).splitlines() if r"\textbf{60.0}" in line]
    assert len(bold) == 1


def test_what_lacks_seeds_takes_no_place() -> None:
    runs = [*arm("fine_tune", [0.6] * 3, [0.3] * 3), *arm("car_ft", [0.7] * 2, [0.3] * 2, trial=0)]
    comparison = compare([*runs, zero_shot(0.5)], sweep="s")
    found = places(comparison)
    assert found.keys() == {"fine_tune", "zero_shot"}

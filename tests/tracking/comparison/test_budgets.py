"""What each algorithm was given for its tuning is counted, and told where it is not equal."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.tracking.made_up import KL, kl_sweep, metrics, run, zero_shot
from tracking.comparison.compare import compare
from tracking.comparison.runs import RunRecord, group
from tracking.comparison.selection import Budget, budgets, less_tried
from tracking.report.formats import to_json

LR, FLYP = "optim.lr", "algorithm.temperature"


def tried(algorithm: str, params: Sequence[dict[str, float]], **more: object) -> list[RunRecord]:
    """A trial with one run at each point."""
    return [
        run(algorithm, 0, metrics(0.6 - t / 100, 0.3), trial=t, params=p, epochs=10, **more)
        for t, p in enumerate(params)
    ]


def said(*groups: Sequence[RunRecord]) -> list[str]:
    warnings = compare([run for runs in groups for run in runs], sweep="s").warnings
    return [text for text in warnings if "tuning budgets" in text]


def test_settings_runs_and_epochs_are_counted_for_each_algorithm_that_trains() -> None:
    runs = [zero_shot(), *tried("car_ft", [{KL: 1.0}, {KL: 2.0}])]
    runs += [
        run("car_ft", 0, trial=2, params={KL: 3.0}, state="pruned", epochs=3),
        run("car_ft", 1, trial=2, params={KL: 3.0}, state="missing"),
        run("car_ft", 0, trial=3, params={KL: 4.0}, state="missing"),
        run("fine_tune", 0, metrics(0.6, 0.3), epochs=10),
        run("fine_tune", 1, state="failed", epochs=4),
        run("fine_tune", 7, metrics(0.6, 0.3), epochs=10, role="confirmation"),
    ]
    assert budgets(group(runs)) == (Budget("fine_tune", 1, 2, 14), Budget("car_ft", 3, 3, 23))


def test_where_a_run_does_not_tell_its_epochs_there_is_no_sum() -> None:
    runs = [run("car_ft", s, metrics(0.6, 0.3), epochs=e) for s, e in enumerate((10, None))]
    (budget,) = budgets(group(runs))
    assert (budget.runs, budget.epochs) == (2, None)


def test_a_comparison_tells_them_as_plain_data() -> None:
    plain = to_json(compare(kl_sweep(2), sweep="s"))
    assert plain["budgets"] == [
        {"algorithm": "fine_tune", "settings": 1, "runs": 2, "epochs": None},
        {"algorithm": "car_ft", "settings": 4, "runs": 8, "epochs": None},
    ]


def test_two_searches_of_different_length_are_told_with_their_numbers() -> None:
    long = tried("car_ft", [{KL: float(k), LR: float(k)} for k in range(20)])
    short = tried("flyp", [{FLYP: float(t), LR: float(t)} for t in range(4)])
    assert said(long, short) == [
        "unequal tuning budgets, which favour what was tried more: car_ft 20 settings (20 runs, "
        "200 epochs), flyp 4 settings (4 runs, 40 epochs)"
    ]
    assert said(long, tried("flyp", [{FLYP: float(t)} for t in range(20)])) == []


@pytest.mark.parametrize(
    ("ours", "theirs", "equal"),
    [
        ([{KL: 1.0}, {KL: 3.0}], [{}], True),
        ([{KL: k, LR: x} for k in (1.0, 3.0) for x in (1.0, 2.0)], [{LR: 1.0}, {LR: 2.0}], True),
        ([{KL: k, LR: x} for k in (1.0, 3.0) for x in (1.0, 2.0)], [{LR: 1.0}], False),
        ([{KL: 1.0}, {KL: 3.0}], [{FLYP: 1.0}], False),
        ([{KL: 1.0}, {KL: 3.0}], [{FLYP: 1.0}, {FLYP: 2.0}], True),
        ([{LR: 1.0}, {LR: 2.0}], [{LR: 1.0}], False),
        ([{"prompts.contexts": 1.0}, {"prompts.contexts": 2.0}], [{}], True),
    ],
    ids=["own field", "grid", "half a grid", "own fields", "as many", "shared", "contexts"],
)
def test_fields_that_only_one_of_two_has_do_not_count(
    ours: list[dict[str, float]], theirs: list[dict[str, float]], equal: bool
) -> None:
    arms = group([*tried("car_ft", ours), *tried("flyp", theirs)])
    assert less_tried(arms) == ({} if equal else {"flyp": {"car_ft"}})


def test_a_baseline_with_fewer_settings_is_marked_and_told_once() -> None:
    baseline = [run("fine_tune", 0, metrics(0.6, 0.3))]
    comparison = compare([*baseline, *tried("car_ft", [{LR: 1.0}, {LR: 2.0}])], sweep="s")
    assert [text.split(":")[0] for text in comparison.warnings] == [
        "unequal tuning budgets, which favour what was tried more"
    ]
    marked = [row.arm.algorithm for row in comparison.rows if "untuned" in row.marks]
    assert marked == ["fine_tune"]

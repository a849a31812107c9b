"""A comparison holds every arm, its counts, its caveats, and the shape that `--json` promises."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carft_sweep.tracking.comparison.compare import Comparison, Row, compare
from carft_sweep.tracking.comparison.metrics import metric_order
from carft_sweep.tracking.comparison.runs import RunRecord
from carft_sweep.tracking.comparison.spec import ComparisonSpec, SelectionRule
from carft_sweep.tracking.report.formats import markdown, to_json
from tests.tracking.made_up import KL, arm, kl_sweep, metrics, run, zero_shot


def row(comparison: Comparison, label: str) -> Row:
    return next(row for row in comparison.rows if row.arm.label == label)


def plain(comparison: Comparison) -> dict[str, Any]:
    """What a reader of the JSON gets; raises for NaN and infinity."""
    plain: dict[str, Any] = json.loads(json.dumps(to_json(comparison), allow_nan=False))
    return plain


def warned(comparison: Comparison, *words: str) -> bool:
    return any(all(word in warning for word in words) for warning in comparison.warnings)


def test_runs_that_did_not_finish_enter_no_mean_and_are_counted() -> None:
    runs = [*arm("fine_tune", [0.6, 0.62], [0.3, 0.3]), run("fine_tune", 2)]
    runs += [run("fine_tune", 3, metrics(0.9, 0.9), state="pruned")]
    comparison = compare(runs, sweep="s")
    fine_tune = row(comparison, "fine_tune")
    assert fine_tune.n == 2
    assert fine_tune.metrics["id/test/top1"].mean == pytest.approx(0.61)
    assert to_json(comparison)["rows"][0]["runs"] == {"done": 2, "failed": 1, "pruned": 1}
    assert "incomplete" in fine_tune.marks
    assert "1 failed run (fine_tune: 1): in no mean, test or curve" in comparison.warnings
    assert warned(comparison, "1 pruned run")


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("failed", "2 failed runs"),
        ("pruned", "2 pruned runs"),
        ("stopped", "2 stopped runs"),
        ("running", "2 unfinished runs"),
        ("missing", "2 unfinished runs"),
    ],
)
def test_every_state_but_done_is_named(state: Any, said: str) -> None:
    runs = [run("fine_tune", seed, state=state) for seed in range(2)]
    assert warned(compare(runs, sweep="s"), said)


def test_one_setting_is_selected_and_one_stands_for_each_algorithm() -> None:
    comparison = compare(kl_sweep(), sweep="s")
    assert [r.arm.label for r in comparison.rows if r.selected] == ["car_ft kl_weight=1"]
    assert [r.arm.label for r in comparison.rows if r.chosen and r.arm.merge is None] == [
        "zero_shot",
        "fine_tune",
        "car_ft kl_weight=1",
    ]
    for label in {r.arm.label for r in comparison.rows if r.arm.merge is None} - {"zero_shot"}:
        merged = [
            r for r in comparison.rows if r.arm.merge and r.arm.label.startswith(f"{label} +")
        ]
        # That of validation, and alpha 0.5.
        assert {r.arm.merge for r in merged if r.chosen} == {"wise_ft@0.5", "wise_ft@0.75"}


def test_an_oracle_is_told_on_every_row_and_above_the_table() -> None:
    rule = SelectionRule(metric="ood/mean/top1", oracle=True)
    comparison = compare(kl_sweep(), ComparisonSpec(rule=rule), sweep="s")
    assert all("oracle" in r.marks for r in comparison.rows)
    assert warned(comparison, "oracle", "ood/mean/top1")
    assert to_json(comparison)["selection"] == "oracle"
    assert row(comparison, "fine_tune + wise_ft@0.25").chosen


def with_facts(changes: dict[str, object]) -> Comparison:
    """CAR-FT measured under facts that differ from fine-tuning's by `changes`."""
    facts: dict[str, object] = {"data": "d1" * 32, "budget": "10 epochs"}
    runs = arm("fine_tune", [0.6] * 3, [0.3] * 3, facts=facts)
    runs += arm("car_ft", [0.6] * 3, [0.3] * 3, trial=0, facts=facts | changes)
    return compare([*runs, zero_shot(facts=facts | {"budget": None})], sweep="s")


def test_contexts_that_name_a_held_out_domain_mark_their_row() -> None:
    comparison = with_facts({"contexts_name": ["sketch", "clipart"]})
    assert "names domains" in row(comparison, "car_ft").marks
    assert "names domains" not in row(comparison, "fine_tune").marks
    assert warned(comparison, "contexts of car_ft name held-out domains: clipart, sketch")
    assert with_facts({"contexts_name": []}).warnings == ()


def test_what_a_merge_says_of_itself_marks_its_rows_alone() -> None:
    facts = {"merge_marks": ["dawin: transductive"]}
    runs = [
        replace(run, facts={**run.facts, **facts}, merges={**run.merges, "dawin": run.metrics})
        for run in kl_sweep()
        if run.trains
    ]
    comparison = compare(runs, sweep="s")
    marked = {r.arm.merge for r in comparison.rows if "transductive" in r.marks}
    assert marked == {"dawin"}
    text = markdown(comparison)
    assert "dawin §" in text
    assert "§ transductive" in text


def test_what_is_true_of_every_row_is_one_sentence_and_no_mark() -> None:
    facts = {"contexts_name": ["sketch", "clipart"]}
    runs = [zero_shot(facts=facts), *arm("fine_tune", [0.6] * 3, [0.3] * 3, facts=facts)]
    comparison = compare([*runs, *arm("car_ft", [0.6] * 3, [0.3] * 3, trial=0, facts=facts)])
    assert comparison.warnings == (
        "the prompts of all methods name test domains ('clipart', 'sketch'): OOD numbers are "
        "optimistic; a sweep over prompts.contexts measures by how much",
    )
    assert not any("names domains" in r.marks for r in comparison.rows)


def test_notes_on_the_data_are_told_above_the_table_once_each() -> None:
    notes = ["1 image of test was skipped", "v2 has 9,000 images here"]
    warnings = with_facts({"data_notes": notes}).warnings
    assert [text for text in warnings if text in notes] == notes
    assert with_facts({"data_notes": []}).warnings == ()
    many = with_facts({"data_notes": [f"note {number}" for number in range(20)]}).warnings
    assert many[-2:] == ("note 7", "and 12 more notes on the data")


def test_settings_with_the_same_value_are_called_tied_and_which_was_taken() -> None:
    runs = [
        run("car_ft", seed, metrics(0.6, 0.3), trial=trial, params={KL: weight})
        for trial, weight in enumerate((0.1, 1.0))
        for seed in (0, 1)
    ]
    comparison = compare(runs, sweep="s")
    assert comparison.warnings == (
        "car_ft kl_weight=0.1, car_ft kl_weight=1 tie on id/val/top1; car_ft kl_weight=0.1 was "
        "taken, the first of them",
    )
    strong = compare(
        runs, ComparisonSpec(rule=SelectionRule(within=0.005, strength={KL: 1})), sweep="s"
    )
    assert warned(
        strong, "car_ft kl_weight=1 was taken, the most strongly regularised within the margin"
    )


def test_metrics_come_in_a_stable_order() -> None:
    names = [
        "gain/ood/top1", "ood/mean/nll", "ood/b/top1", "id/test/ece", "train/loss", "ood/mean/top1",
        "hmean/top1", "id/val/top1", "ood/a/top1", "gap/top1", "context/id/test/kl",
        "id/test/top1", "id/test/nll", "system/images_per_s", "id/test_r/top1",
    ]  # fmt: skip
    expected = [
        "id/val/top1", "id/test/top1", "id/test/nll", "id/test/ece", "id/test_r/top1",
        "ood/mean/top1", "ood/mean/nll", "gain/ood/top1", "gap/top1", "hmean/top1",
        "ood/a/top1", "ood/b/top1",
        "context/id/test/kl", "train/loss", "system/images_per_s",
    ]  # fmt: skip
    assert sorted(names, key=metric_order) == expected
    assert len({metric_order(name) for name in names}) == len(names)


@given(st.permutations(kl_sweep(3)))
def test_the_order_of_the_records_changes_nothing(runs: list[RunRecord]) -> None:
    assert to_json(compare(runs, sweep="s")) == to_json(compare(kl_sweep(3), sweep="s"))


values = st.one_of(st.floats(0, 1), st.sampled_from([math.nan, math.inf, -math.inf]))
states = st.sampled_from(["done", "failed", "pruned", "stopped", "running", "missing"])
records = st.builds(
    lambda algorithm, seed, state, trial, kl, test, ood, fresh: run(
        algorithm,
        None if algorithm == "zero_shot" else seed,
        metrics(test, ood),
        state=state,
        trial=None if algorithm == "zero_shot" else trial,
        params={} if kl is None else {KL: kl},
        merges={"wise_ft@0.5": metrics(test / 2, ood)},
        **({"role": "confirmation"} if fresh else {}),
    ),
    st.sampled_from(["zero_shot", "fine_tune", "car_ft"]),
    st.integers(0, 5),
    states,
    st.none() | st.integers(0, 3),
    st.none() | st.sampled_from([0.1, 1.0]),
    values,
    st.none() | values,
    st.booleans(),
)


@given(st.lists(records, max_size=20))
def test_whatever_ran_or_failed_gives_standard_json_and_a_verdict(runs: list[RunRecord]) -> None:
    document = plain(compare(runs, sweep="s"))
    assert document["verdict"]
    assert sum(line["selected"] for line in document["rows"]) == (document["selected"] is not None)
    for line in document["rows"]:
        assert line["n"] == line["runs"].get("done", 0)

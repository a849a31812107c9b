"""A comparison holds every arm, its counts and caveats, and the shape that `--json` promises."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carft_sweep.tracking.comparison import caveats
from carft_sweep.tracking.comparison.compare import Comparison, Row, compare
from carft_sweep.tracking.comparison.metrics import metric_order
from carft_sweep.tracking.comparison.runs import RunRecord, group
from carft_sweep.tracking.comparison.spec import ComparisonSpec, SelectionRule
from carft_sweep.tracking.report.formats import markdown, to_json
from tests.tracking.made_up import KL, arm, kl_sweep, metrics, run, zero_shot


def row(comparison: Comparison, label: str) -> Row:
    return next(row for row in comparison.rows if row.arm.label == label)


def warned(comparison: Comparison, *words: str) -> bool:
    return any(all(word in warning for word in words) for warning in comparison.warnings)


def test_runs_that_did_not_finish_enter_no_mean_and_are_counted() -> None:
    runs = [*arm("fine_tune", [0.6, 0.62], [0.3, 0.3]), run("fine_tune", 2)]
    runs += [run("fine_tune", 3, metrics(0.9, 0.9), state="pruned")]
    comparison = compare(runs, sweep="s")
    fine_tune = row(comparison, "fine_tune")
    assert (fine_tune.n, fine_tune.metrics["id/test/top1"].mean) == (2, pytest.approx(0.61))
    assert to_json(comparison)["rows"][0]["runs"] == {"done": 2, "failed": 1, "pruned": 1}
    assert "incomplete" in fine_tune.marks
    assert "1 failed run (fine_tune: 1): in no mean, test or curve" in comparison.warnings
    assert warned(comparison, "1 pruned run")
    named = {"running": "unfinished", "missing": "unfinished"}
    for state in ("failed", "pruned", "stopped", "running", "missing"):
        runs = [run("fine_tune", seed, state=state) for seed in range(2)]
        assert warned(compare(runs, sweep="s"), f"2 {named.get(state, state)} runs")


def test_one_setting_is_selected_and_one_stands_for_each_algorithm() -> None:
    rows = compare(kl_sweep(), sweep="s").rows
    assert [r.arm.label for r in rows if r.selected] == ["car_ft kl_weight=1"]
    unmerged = [r for r in rows if r.arm.merge is None]
    labels = ["zero_shot", "fine_tune", "car_ft kl_weight=1"]
    assert [r.arm.label for r in unmerged if r.chosen] == labels
    for label in {r.arm.label for r in unmerged} - {"zero_shot"}:
        merged = [r for r in rows if r.arm.label.startswith(f"{label} + ")]
        # That of validation, and alpha 0.5.
        assert {r.arm.merge for r in merged if r.chosen} == {"wise_ft@0.5", "wise_ft@0.75"}


def test_an_oracle_is_told_on_every_row_and_above_the_table() -> None:
    rule = SelectionRule(metric="ood/mean/top1", oracle=True)
    comparison = compare(kl_sweep(), ComparisonSpec(rule=rule), sweep="s")
    assert all("oracle" in r.marks for r in comparison.rows)
    assert warned(comparison, "oracle", "ood/mean/top1")
    assert to_json(comparison)["selection"] == "oracle"
    assert row(comparison, "fine_tune + wise_ft@0.25").chosen


def with_facts(changes: dict[str, object], **every: object) -> Comparison:
    """CAR-FT measured under facts that differ from fine-tuning's by `changes`."""
    facts: dict[str, object] = {"data": "d1" * 32, "budget": "10 epochs", **every}
    runs = arm("fine_tune", [0.6] * 3, [0.3] * 3, facts=facts)
    runs += arm("car_ft", [0.6] * 3, [0.3] * 3, trial=0, facts=facts | changes)
    return compare([*runs, zero_shot(facts=facts | {"budget": None})], sweep="s")


def test_contexts_that_name_a_held_out_domain_mark_their_row() -> None:
    comparison = with_facts({"contexts_name": ["sketch", "clipart"]})
    assert "names domains" in row(comparison, "car_ft").marks
    assert "names domains" not in row(comparison, "fine_tune").marks
    assert warned(comparison, "contexts of car_ft name held-out domains: clipart, sketch")
    assert with_facts({"contexts_name": []}).warnings == ()
    # What is true of every row is one sentence and no mark.
    comparison = with_facts({}, contexts_name=["sketch", "clipart"])
    assert comparison.warnings == (
        "the prompts of all methods name test domains ('clipart', 'sketch'): OOD numbers are "
        "optimistic; a sweep over prompts.contexts measures by how much",
    )
    assert not any("names domains" in r.marks for r in comparison.rows)


def test_what_a_merge_says_of_itself_marks_its_rows_alone() -> None:
    facts, (_, *tuned) = {"merge_marks": ["dawin: transductive"]}, kl_sweep()
    comparison = compare(
        replace(run, facts=facts, merges={**run.merges, "dawin": run.metrics}) for run in tuned
    )
    assert {r.arm.merge for r in comparison.rows if "transductive" in r.marks} == {"dawin"}
    text = markdown(comparison)
    assert "dawin §" in text
    assert "§ transductive" in text


def test_notes_on_the_data_are_told_above_the_table_once_each() -> None:
    notes = ["1 image of test was skipped", "v2 has 9,000 images here"]
    warnings = with_facts({"data_notes": notes}).warnings
    assert [text for text in warnings if text in notes] == notes
    assert with_facts({"data_notes": []}).warnings == ()
    crowded = with_facts({"data_notes": [f"note {number}" for number in range(20)]}).warnings
    assert crowded[-2:] == ("note 7", "and 12 more notes on the data")


def test_settings_with_the_same_value_are_called_tied_and_which_was_taken() -> None:
    runs = arm("car_ft", [0.6] * 2, [0.3] * 2, trial=0, params={KL: 0.1})
    runs += arm("car_ft", [0.6] * 2, [0.3] * 2, trial=1, params={KL: 1.0})
    assert compare(runs, sweep="s").warnings == (
        "car_ft kl_weight=0.1, car_ft kl_weight=1 tie on id/val/top1; car_ft kl_weight=0.1 was "
        "taken, the first of them",
    )
    rule = SelectionRule(within=0.005, strength={KL: 1})
    reason = "car_ft kl_weight=1 was taken, the most strongly regularised within the margin"
    assert warned(compare(runs, ComparisonSpec(rule=rule), sweep="s"), reason)


def test_metrics_come_in_a_stable_order() -> None:
    names = [
        *("id/val/top1", "id/test/top1", "id/test/nll", "id/test/ece", "id/test_r/top1"),
        *("ood/mean/top1", "ood/mean/nll", "gain/ood/top1", "gap/top1", "hmean/top1"),
        *("ood/a/top1", "ood/b/top1", "context/id/test/kl", "train/loss", "system/images_per_s"),
    ]
    for shuffled in (names[::-1], sorted(names)):
        assert sorted(shuffled, key=metric_order) == names


@cache
def in_order() -> dict[str, Any]:
    return to_json(compare(kl_sweep(3), sweep="s"))


@given(st.permutations(kl_sweep(3)))
def test_the_order_of_the_records_changes_nothing(runs: list[RunRecord]) -> None:
    assert to_json(compare(runs, sweep="s")) == in_order()


values = st.one_of(st.floats(0, 1), st.sampled_from([math.nan, math.inf, -math.inf]))
states = st.sampled_from(["done", "failed", "pruned", "stopped", "running", "missing"])
records = st.builds(
    lambda algorithm, seed, kl, test, ood, changes: run(
        algorithm,
        None if algorithm == "zero_shot" else seed,
        metrics(test, ood),
        params={} if kl is None else {KL: kl},
        merges={"wise_ft@0.5": metrics(test / 2, ood)},
        **{**changes, **({"trial": None} if algorithm == "zero_shot" else {})},
    ),
    st.sampled_from(["zero_shot", "fine_tune", "car_ft"]),
    st.integers(0, 5),
    st.none() | st.sampled_from([0.1, 1.0]),
    values,
    st.none() | values,
    st.fixed_dictionaries(
        {"state": states, "trial": st.none() | st.integers(0, 3)},
        optional={"role": st.just("confirmation")},
    ),
)


@given(st.lists(records, max_size=20))
def test_whatever_ran_or_failed_gives_standard_json_and_a_verdict(runs: list[RunRecord]) -> None:
    document = json.loads(json.dumps(to_json(compare(runs, sweep="s")), allow_nan=False))
    assert document["verdict"]
    assert sum(line["selected"] for line in document["rows"]) == (document["selected"] is not None)
    for line in document["rows"]:
        assert line["n"] == line["runs"].get("done", 0)


SQUARE = "Transform(size=32, mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0), interpolation='bicubic')"
LARGE = SQUARE.replace("32", "224")
FACTS: dict[str, object] = {
    **{"data": "d1" * 32, "model": "e1" * 32, "revision": "c1" * 32, "transform": SQUARE},
    "augmentation": "Augmentation(crop='area', area=(0.9, 1.0), flip=0.0)",
    **{"budget": "10 epochs", "precision": "fp32", "device": "cpu"},
    "versions": {"torch": "2.9.0", "open_clip_torch": "3.2.0"},
}
NOT = "these rows are not comparable"
MAY = "which may give other numbers"
TORCH = {"torch": "2.10.0", "open_clip_torch": "3.2.0"}


def mixed_facts(*runs: RunRecord) -> tuple[str, ...]:
    return tuple(caveats.mixed_facts(group(runs)))


@pytest.mark.parametrize(
    ("field", "changed", "warning"),
    [
        ("data", "d1" * 32, None),
        ("data", "d2" * 32, f"data, {NOT}: d1d1d1d1d1d1 in BOTH; d2d2d2d2d2d2 in car_ft"),
        ("transform", LARGE, f"image transforms, {NOT}: size=32 in BOTH; size=224 in car_ft"),
        ("precision", "bf16", f"precisions, {NOT}: fp32 in BOTH; bf16 in car_ft"),
        (
            "revision",
            "c2" * 32,
            f"versions of the code, {NOT}: {'c1' * 6} in BOTH; {'c2' * 6} in car_ft",
        ),
        # Among those that train.
        (
            "budget",
            "9 epochs",
            f"training budgets, {NOT}: 10 epochs in fine_tune; 9 epochs in car_ft",
        ),
        ("versions", TORCH, f"versions of torch, {MAY}: 2.9.0 in BOTH; 2.10.0 in car_ft"),
        ("versions", {"torch": "2.9.0"}, None),
        ("versions", "unreadable", None),
        ("own_code", "a2" * 32, None),  # which is compared with itself only
    ],
    ids=str,
)
def test_facts_in_which_methods_differ_are_named_with_their_rows(
    field: str, changed: object, warning: str | None
) -> None:
    runs = arm("fine_tune", [0.6] * 2, [0.3] * 2, facts=FACTS)
    runs += arm("car_ft", [0.6] * 2, [0.3] * 2, trial=0, facts={**FACTS, field: changed})
    runs.append(zero_shot(facts={**FACTS, "budget": None, "augmentation": None}))
    expected = warning and f"mixed {warning.replace('BOTH', 'zero_shot, fine_tune')}"
    assert mixed_facts(*runs) == ((expected,) if expected else ())


def test_a_budget_is_none_of_zero_shots_and_own_code_is_that_of_one_method() -> None:
    trained = run("a", 0, metrics(0.6, 0.3), facts=FACTS)
    assert mixed_facts(zero_shot(facts={"budget": "0"}), trained) == ()
    runs = []
    for trial, code in enumerate(("a1", "a2")):
        own = {"params": {"lr": trial}, "facts": {**FACTS, "own_code": code * 32}}
        runs.append(run("car_ft", 0, metrics(0.6, 0.3), trial=trial, **own))
    assert mixed_facts(*runs) == (
        f"mixed versions of car_ft, {NOT}: a1a1a1a1a1a1 in car_ft lr=0; a2a2a2a2a2a2 in car_ft "
        "lr=1",
    )


def by_seed(algorithm: str, digests: str, split: int = 0) -> list[RunRecord]:
    """A run for each seed with data of its own."""
    runs, trial = [], 0 if algorithm == "car_ft" else None
    for seed, digest in enumerate(digests):
        facts = {"data": digest, "split": seed + split}
        runs.append(run(algorithm, seed, metrics(0.6, 0.3), trial=trial, facts=facts))
    return runs


def test_data_that_differ_by_seed_alone_are_mixed_only_where_the_split_does_not_follow_it() -> None:
    ours = by_seed("fine_tune", "ab")
    assert mixed_facts(*ours, *by_seed("car_ft", "ab")) == ()
    (fixed, *_) = mixed_facts(*by_seed("fine_tune", "ab", split=7), *by_seed("car_ft", "ab"))
    assert fixed.startswith("mixed data")
    warning = f"mixed data, {NOT}: b in fine_tune; c in car_ft"
    assert mixed_facts(*ours, *by_seed("car_ft", "ac")) == (warning,)


def test_data_are_named_by_family_version_and_the_beginning_of_their_digest() -> None:
    def on(family: str | None, digest: str, seed: int = 0, **changes: Any) -> RunRecord:
        facts = {"data": digest * 32} | ({} if family is None else {"family": family})
        return run("fine_tune", seed, metrics(0.6, 0.3), facts=facts, **changes)

    unmeasured = run("fine_tune", 0, facts={"family": "dtd v1", "data": "1a" * 32})
    parts = {"dtd": on("dtd v1", "1a"), "eurosat": on("eurosat v3", "2b")}
    by_seed = [on("pacs v1", f"{seed}f", seed) for seed in range(5)]
    for runs, names in (
        ([on("icon_shift v2", "a1b2c3")] * 2, ("icon_shift v2 a1b2c3",)),
        ([unmeasured], ()),
        ([zero_shot()], ()),
        ([on(None, "4d")], ("data 4d4d4d",)),
        (by_seed, ("pacs v1 0f0f0f, 1f1f1f, 2f2f2f, 2 more",)),
        ([on(None, "3c", parts=parts)], ("dtd v1 1a1a1a", "eurosat v3 2b2b2b")),
    ):
        assert caveats.datasets(runs) == names


def test_a_seed_that_diverged_is_named_and_a_spread_is_not() -> None:
    oods = [0.35, 0.352, 0.349, 0.351, 0.15]
    base = arm("fine_tune", [0.6, 0.61, 0.6, 0.59, 0.6], oods)
    warnings = compare([*base, *arm("car_ft", [0.6] * 5, [0.4] * 5)], sweep="s").warnings
    assert [text for text in warnings if "diverged" in text] == [
        "seed 4 of fine_tune lies -20.0 pp off the median of its seeds in ood/mean/top1: a run "
        "that diverged hides differences"
    ]

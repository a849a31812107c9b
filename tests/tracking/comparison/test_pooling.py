"""Several sweeps as one, some of their runs, and how a sweep compares: nothing merges wrongly."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from carft_sweep.tracking.comparison import pooling
from carft_sweep.tracking.comparison.compare import Comparison
from carft_sweep.tracking.comparison.pooling import SweepRuns, compare_sweeps, unified
from carft_sweep.tracking.comparison.runs import RunRecord, Scalar, group
from carft_sweep.tracking.comparison.spec import ComparisonSpec, Endpoint, SelectionRule, agreed
from carft_sweep.tracking.errors import TrackingError
from tests.tracking.made_up import KL, bent, kl_sweep, known, metrics, run, zero_shot

LR = "optim.lr"
SHARED: dict[str, Scalar] = {"model.name": "builtin", LR: 1e-5, "data.train_fraction": 1.0}
SEEDS = range(5)


def made(algorithm: str, seed: int | None, value: float, digest: str, **changes: Any) -> RunRecord:
    return run(algorithm, seed, metrics(value, value / 2), digest=digest, **changes)


def part(
    sweep: str,
    records: list[RunRecord],
    fields: dict[str, Scalar] | None = None,
    spec: ComparisonSpec | None = None,
) -> SweepRuns:
    """With the fields of each run: the shared ones, its params, and `fields`."""
    by_digest = {}
    for record in records:
        own = {n: v for n, v in (fields or {}).items() if n != KL or record.algorithm == "car_ft"}
        by_digest[record.digest] = {**SHARED, **own, **record.params}
    return SweepRuns(sweep, records, spec or ComparisonSpec(seeds=tuple(SEEDS)), by_digest)


def weights(sweep: str = "weights") -> SweepRuns:
    records = [made("zero_shot", None, 0.5, "zero"), made("fine_tune", 0, 0.6, "tuned0")]
    for trial, weight in enumerate((0.1, 0.3)):
        own: dict[str, Any] = {"trial": trial, "params": {KL: weight}}
        value = 0.6 + weight / 100
        records += [made("car_ft", seed, value, f"car{weight}{seed}", **own) for seed in (0, 1)]
    return part(sweep, records)


def rates() -> SweepRuns:
    """One point of it is a run of `weights`; zero-shot and fine-tuning are the same runs."""
    slow, fast = {LR: 1e-5}, {LR: 1e-4}
    records = [
        made("zero_shot", None, 0.5, "zero"),
        made("fine_tune", 0, 0.6, "tuned0", params=slow),
        made("car_ft", 0, 0.6, "car0.30", trial=0, params=slow, merges=bent(0.6, 0.3)),
        made("car_ft", 0, 0.7, "car0.3-fast", trial=1, params=fast),
    ]
    return part("rates", records, {KL: 0.3})


def labels(records: list[RunRecord]) -> dict[str, list[int | None]]:
    return {arm.label: [r.seed for r in arm.runs] for arm in group(records)}


def test_settings_are_told_apart_by_what_either_sweep_varies_and_shared_runs_count_once() -> None:
    assert labels(unified([weights(), rates()])) == {
        **{"zero_shot": [None], "fine_tune lr=1e-05": [0]},
        **{f"car_ft kl_weight={weight} lr=1e-05": [0, 1] for weight in (0.1, 0.3)},
        "car_ft kl_weight=0.3 lr=0.0001": [0],
    }
    # What decides no weights parts no setting.
    for field in ("keep.result", "eval.logits", "workers", "data.root", "device"):
        other = part("other", list(weights().records), {field: "x"})
        assert labels(unified([weights(), other])) == labels(list(weights().records)), field


def test_a_condition_on_a_whole_number_takes_that_number_alone() -> None:
    field = "data.split_seed"
    seeds = range(20260100, 20260105)
    records = [made("fine_tune", 0, 0.6, f"run {seed}", params={field: seed}) for seed in seeds]
    sweep = part("splits", records)
    for text, left in (("split_seed=20260101", 1), ("split_seed!=20260101", 4)):
        compared = compare_sweeps([sweep], where=[text])
        assert len(compared.rows) == left


def test_a_rounded_number_that_several_values_have_names_them_all() -> None:
    rates = (1.2340001e-4, 1.2340002e-4)
    records = [made("fine_tune", 0, 0.6, f"run {lr}", params={"optim.lr": lr}) for lr in rates]
    sweep = part("near", records)
    several = r"0.000123 may be any of 0.00012340001, 0.00012340002; write the one"
    with pytest.raises(TrackingError, match=several):
        compare_sweeps([sweep], where=["lr=0.000123"])
    (row,) = compare_sweeps([sweep], where=["lr=0.00012340002"]).rows
    assert row.arm.params["optim.lr"] == rates[1]


def test_sweeps_on_different_data_sets_are_not_ranked_in_one_table() -> None:
    def on(sweep: SweepRuns, family: str) -> SweepRuns:
        facts = {"family": family}
        return replace(sweep, records=[replace(record, facts=facts) for record in sweep.records])

    ours = on(weights(), "icon_shift v2")
    with pytest.raises(TrackingError, match=r"weights of icon_shift, rates of pets; compare each"):
        compare_sweeps([ours, on(rates(), "pets v1")])
    assert compare_sweeps([ours, on(rates(), "icon_shift v3")]).rows


def test_equal_fields_and_seed_but_another_run_are_told_apart_by_the_sweep() -> None:
    again = [record for record in weights().records if record.params.get(KL) == 0.3]
    later = part("later", [replace(record, digest=f"new-{record.digest}") for record in again])
    tuned = ("kl_weight=0.1", "kl_weight=0.3 sweep=weights", "kl_weight=0.3 sweep=later")
    assert labels(unified([weights(), later])) == {
        **{"zero_shot": [None], "fine_tune": [0]},
        **{f"car_ft {name}": [0, 1] for name in tuned},
    }
    rows = compare_sweeps([weights(), later]).rows
    assert not [row for row in rows if "untuned" in row.marks]


def test_a_run_of_two_sweeps_is_a_trial_and_has_the_merged_models_of_both() -> None:
    first = made("car_ft", 0, 0.6, "same", params={KL: 0.3}, merges={"wise_ft@0.5": {}})
    second = made("car_ft", 0, 0.6, "same", trial=4, params={KL: 0.3}, merges={"wise_ft@0.1": {}})
    (record,) = unified([part("a", [first]), part("b", [second])])
    merges = {"wise_ft@0.5", "wise_ft@0.1"}
    assert (record.role, record.trial, {*record.merges}) == ("trial", 4, merges)


def test_a_run_without_a_config_stands_with_its_siblings() -> None:
    records = [*weights().records, run("car_ft", 2, None, digest="lost", trial=1, params={KL: 0.3})]
    whole = SweepRuns("weights", records, ComparisonSpec(seeds=(0, 1, 2)), weights().fields)
    other = part("other", [made("car_ft", 0, 0.6, "o", trial=0)], {KL: 9.0})
    assert labels(unified([whole, other]))["car_ft kl_weight=0.3"] == [0, 1, 2]


NLL = {"metric": "id/val/nll", "goal": "minimize"}
CONSTRAINED = {"constraint": {**NLL, "of": "zero_shot", "margin": 0.0}}


def joined(first: ComparisonSpec, second: ComparisonSpec, **options: Any) -> Comparison:
    parts = [part("a", kl_sweep(), spec=first), part("b", kl_sweep(), spec=second)]
    return compare_sweeps(parts, **options)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"rule": NLL}, "metric of one is .*--metric"),
        ({"rule": {"within": 0.01}}, "selection of one is best_val, .*within 0.01.*--selection"),
        ({"endpoint": {"id_margin": 0.01}}, "id_margin of one is 0.005, .*--id-margin"),
        (
            {"rule": CONSTRAINED},
            "constraint of one is none, of the other id/val/nll as good as zero_shot's; look",
        ),
    ],
)
def test_sweeps_that_judge_differently_are_not_compared(changes: dict[str, Any], text: str) -> None:
    other = ComparisonSpec.model_validate(changes)
    with pytest.raises(TrackingError, match=f"a and b cannot be compared as one: the {text}"):
        joined(ComparisonSpec(), other)
    assert joined(ComparisonSpec(), other, spec=other).rule == other.rule


def test_a_setting_is_whole_with_the_seeds_that_the_sweeps_have_in_common() -> None:
    spec = joined(ComparisonSpec(seeds=(0, 1, 2, 3, 4)), ComparisonSpec(seeds=(0, 1, 2)))
    assert spec.seeds == (0, 1, 2)
    assert spec.warnings[0] == (
        "the sweeps have different seeds (a: 0, 1, 2, 3, 4; b: 0, 1, 2); a setting is whole with "
        "the common ones"
    )
    assert joined(ComparisonSpec(seeds=(0,)), ComparisonSpec(seeds=(0,))).warnings == ()


def test_without_a_common_seed_the_settings_with_most_seeds_are_chosen_among() -> None:
    """Else a setting would win by its one lucky seed over one that has both."""
    parts = []
    for name, seed, value, weight in (("a", 0, 0.7, 0.1), ("c", 0, 0.8, 1.0), ("b", 1, 0.5, 1.0)):
        runs, spec = [made("car_ft", seed, value, name, trial=0)], ComparisonSpec(seeds=(seed,))
        parts.append(part(name, runs, {KL: weight}, spec))
    comparison = compare_sweeps(parts)
    assert comparison.seeds == (0, 1)
    assert known(comparison.selected).arm.params == {KL: 1.0}
    assert "those of all, since none is common" in comparison.warnings[0]


def test_settings_that_a_condition_leaves_out_still_count_as_tried() -> None:
    whole = SweepRuns("kl", kl_sweep(), ComparisonSpec(seeds=tuple(SEEDS)))
    for where in (["kl_weight=1"], ["seed<4"], []):
        comparison = compare_sweeps([whole], where=where)
        assert [verdict.tried for verdict in comparison.verdicts] == [4]
        assert where == ["seed<4"] or "chosen among 4 settings" in comparison.answer.lines[0]


def filtered_run(seed: int, trial: int, **params: Any) -> RunRecord:
    named = {KL: params.get("kl_weight"), LR: params.get("lr"), "prompts.classes": "openai"}
    return run("car_ft", seed, metrics(0.6, 0.3), trial=trial, params=named)


RUNS = [
    zero_shot(),
    run("fine_tune", 0, metrics(0.6, 0.3), params={LR: 1e-4}),
    filtered_run(0, 0, kl_weight=0.1, lr=1e-5),
    filtered_run(1, 0, kl_weight=0.1, lr=1e-5),
    filtered_run(0, 1, kl_weight=1 / 3, lr=1e-4),
    run("car_ft", 1, None, trial=1, params={KL: 1 / 3, LR: 1e-4}),
]
SWEEPS = {RUNS[0].digest: ["a", "b"], RUNS[1].digest: ["a"], RUNS[2].digest: ["b"]}


def filtered(records: list[RunRecord], *texts: str) -> list[RunRecord]:
    """The records of which every condition holds."""
    conditions = [pooling.parse_condition(text, records, SWEEPS) for text in texts]
    return pooling.filter_runs(records, conditions, SWEEPS)


def remaining(*texts: str) -> list[int]:
    """The places in RUNS of what is left."""
    return [RUNS.index(record) for record in filtered(RUNS, *texts)]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["algorithm=car_ft"], [2, 3, 4, 5]),
        (["algorithm=zero_shot,fine_tune"], [0, 1]),
        (["kl_weight>=0.3"], [0, 1, 4, 5]),
        (["algorithm.kl_weight = 0.333333"], [0, 1, 4, 5]),
        (["lr=1e-4", "algorithm=car_ft"], [4, 5]),
        (["classes!=openai", "algorithm!=x"], [0, 1, 5]),
        (["state=done"], [0, 1, 2, 3, 4]),
        (["seed=1"], [0, 3, 5]),
        (["trial>0"], [0, 1, 4, 5]),
        (["sweep=b"], [0, 2, 3, 4, 5]),
        (["sweep!=b"], [1, 3, 4, 5]),
    ],
)
def test_runs_that_meet_all_conditions_stay(texts: Sequence[str], expected: Sequence[int]) -> None:
    assert remaining(*texts) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kl_weight", "write FIELD=VALUE"),
        ("kl_weight>=1,2", "wants one number"),
        ("kl_wait=1", "unknown field 'kl_wait'; did you mean 'kl_weight'?"),
        ("classes>1", "prompts.classes is no number; use = or !="),
        ("algorithm=carft", "unknown algorithm 'carft'; did you mean 'car_ft'?"),
        # Only runs without the field meet these.
        ("kl_weight=9", "--where kl_weight=9: unknown algorithm.kl_weight '9'; Known: 0.1"),
        ("kl_weight>9", "--where kl_weight>9: holds of no algorithm.kl_weight; Known: 0.1"),
    ],
)
def test_a_wrong_condition_is_told_with_its_remedy(text: str, message: str) -> None:
    with pytest.raises(TrackingError, match=re.escape(message)):
        remaining(text)
    with pytest.raises(TrackingError, match=re.escape(message)):
        compare_sweeps([SweepRuns("toy", RUNS)], where=[text])


def test_a_last_part_that_two_fields_share_must_be_given_whole() -> None:
    runs = [run("car_ft", 0, metrics(0.6, 0.3), params={"optim.lr": 1.0, "head.lr": 2.0})]
    with pytest.raises(TrackingError, match=r"may be head\.lr or optim\.lr; say which"):
        filtered(runs, "lr=1")
    assert filtered(runs, "head.lr=2") == runs


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8), st.floats(-1e6, 1e6))
def test_a_bound_and_its_opposite_part_the_runs(values: list[float], bound: float) -> None:
    values += [-2e6, 2e6]  # on each side of every bound: one that nothing meets is refused
    runs = [run("car_ft", i, {}, params={KL: kl}, state="done") for i, kl in enumerate(values)]
    runs.append(zero_shot())  # which has no such field, and so is in both
    below, above = (filtered(runs, f"kl_weight{sign}{bound!r}") for sign in ("<", ">="))
    assert [record.seed for record in below if record in above] == [None]
    assert len(below) + len(above) == len(runs) + 1


def test_a_setting_is_whole_with_the_seeds_that_are_left_and_a_constraint_may_be_gone() -> None:
    for required, where, seeds in (
        ((0, 1, 2), ["seed=0,2", "kl_weight>1"], (0, 2)),
        ((0, 1, 2), ["seed<2"], (0, 1)),
        (None, ["seed<2"], (0, 1)),
        ((0, 1), ["seed>2"], (3, 4)),  # not any one of them
    ):
        whole = SweepRuns("kl", kl_sweep(), ComparisonSpec(seeds=required))
        assert compare_sweeps([whole], where=where).seeds == seeds
    spec = ComparisonSpec.model_validate({"rule": CONSTRAINED})
    rest = compare_sweeps([SweepRuns("kl", kl_sweep(), spec)], where=["algorithm!=zero_shot"])
    warning = "the constraint was not applied: no finished run of zero_shot has id/val/nll"
    assert warning in rest.warnings


TASKS = "data.test_domain"
RULES = [
    SelectionRule(),
    SelectionRule(metric="id/val/nll", goal="minimize", within=0.01, strength={"optim.lr": -1}),
    SelectionRule(metric="ood/mean/top1", oracle=True),
    SelectionRule(merge="wise_ft@0.5"),
]
EVERY: list[dict[str, object]] = [
    *({"rule": rule, "seeds": (0, 3)} for rule in RULES),
    {"seeds": (), "endpoint": {"id_margin": 0.02}},
    {"seeds": (1,), "confirm_seeds": (2, 3)},
    {"rule": {"metric": "ood/{task}_out/top1", "oracle": True}, "tasks": TASKS},
    {"seeds": (0,), "tasks": TASKS},
    {"endpoint": {"by": "macro_f1"}, "reference": "flyp"},
    {"endpoint": {"by_task": {"a": "macro_f1", "b": "top1"}}, "tasks": "data.family"},
]


def test_it_is_read_back_as_it_was_written_without_what_was_measured() -> None:
    for fields in EVERY:
        spec = ComparisonSpec.model_validate(fields)
        assert ComparisonSpec.model_validate(json.loads(spec.model_dump_json())) == spec
    endpoint = Endpoint().suited(["id/val/top1"])
    assert (endpoint.has_test, endpoint.metric) == (False, "ood/mean/top1")
    written = {"id_margin", "ood_margin", "by", "by_task"}
    assert ComparisonSpec(endpoint=endpoint).model_dump()["endpoint"].keys() == written


def test_what_no_sweep_writes_is_refused() -> None:
    rules = ({"metric": "ood/mean/top1"}, {"within": -1}, {"strength": {"a": 7}}, {"margin": 1})
    specs = ({"endpoint": {"id_margin": None}}, {"endpoint": {"by": "f1"}}, {"seeds": "x"})
    for change in (*({"rule": rule} for rule in rules), *specs, {"version": 2}):
        with pytest.raises(ValidationError):
            ComparisonSpec.model_validate(change)


def test_what_one_sweep_selects_on_confirms_nothing_in_another_and_tasks_must_agree() -> None:
    mine = ComparisonSpec(seeds=(0, 1), confirm_seeds=(5, 6, 7))
    yours = ComparisonSpec(seeds=(0, 1, 5))
    assert agreed({"mine": mine}) is mine
    both = agreed({"mine": mine, "yours": yours})
    assert (both.seeds, both.confirm_seeds) == ((0, 1), (6, 7))
    theirs = ComparisonSpec(seeds=(0,), confirm_seeds=(7, 8))
    assert agreed({"mine": mine, "theirs": theirs}).confirm_seeds == (7,)
    assert agreed({"a": yours, "b": yours}).confirm_seeds == ()
    message = "the tasks of one is data.test_domain, of the other none; look at each by itself$"
    with pytest.raises(TrackingError, match=message):
        agreed({"mine": ComparisonSpec(tasks=TASKS), "yours": ComparisonSpec()})

"""Several sweeps as one, and some of their runs: settings neither merge wrongly nor fall apart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carft_sweep.tracking.comparison.compare import Comparison
from carft_sweep.tracking.comparison.pooling import (
    SweepRuns,
    compare_sweeps,
    filter_runs,
    parse_condition,
    unified,
)
from carft_sweep.tracking.comparison.runs import RunRecord, Scalar, group
from carft_sweep.tracking.comparison.spec import ComparisonSpec, Constraint, Endpoint, SelectionRule
from carft_sweep.tracking.errors import TrackingError
from tests.tracking.made_up import KL, bent, kl_sweep, metrics, run, zero_shot

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
    own = fields or {}
    by_digest = {
        r.digest: {
            **SHARED,
            **{n: v for n, v in own.items() if n != KL or r.algorithm == "car_ft"},
            **r.params,
        }
        for r in records
    }
    return SweepRuns(sweep, records, spec or ComparisonSpec(seeds=tuple(SEEDS)), by_digest)


def weights(sweep: str = "weights") -> SweepRuns:
    records = [made("zero_shot", None, 0.5, "zero"), made("fine_tune", 0, 0.6, "tuned0")]
    records += [
        made(
            "car_ft",
            seed,
            0.6 + weight / 100,
            f"car{weight}{seed}",
            trial=trial,
            params={KL: weight},
        )
        for trial, weight in enumerate((0.1, 0.3))
        for seed in (0, 1)
    ]
    return part(sweep, records)


def rates() -> SweepRuns:
    """One point of it is a run of `weights`; zero-shot and fine-tuning are the same runs."""
    records = [
        made("zero_shot", None, 0.5, "zero"),
        made("fine_tune", 0, 0.6, "tuned0", params={LR: 1e-5}),
    ]
    records += [
        made("car_ft", 0, 0.6, "car0.30", trial=0, params={LR: 1e-5}, merges=bent(0.6, 0.3)),
        made("car_ft", 0, 0.7, "car0.3-fast", trial=1, params={LR: 1e-4}),
    ]
    return part("rates", records, {KL: 0.3})


def labels(records: list[RunRecord]) -> dict[str, list[int | None]]:
    return {arm.label: [r.seed for r in arm.runs] for arm in group(records)}


def test_settings_are_told_apart_by_what_either_sweep_varies_and_shared_runs_count_once() -> None:
    assert labels(unified([weights(), rates()])) == {
        "zero_shot": [None],
        "fine_tune lr=1e-05": [0],
        "car_ft kl_weight=0.1 lr=1e-05": [0, 1],
        "car_ft kl_weight=0.3 lr=1e-05": [0, 1],
        "car_ft kl_weight=0.3 lr=0.0001": [0],
    }


@pytest.mark.parametrize("field", ["keep.result", "eval.logits", "workers", "data.root", "device"])
def test_what_decides_no_weights_parts_no_setting(field: str) -> None:
    other = part("other", list(weights().records), {field: "x"})
    assert labels(unified([weights(), other])) == labels(list(weights().records))


def test_sweeps_on_different_data_sets_are_not_ranked_in_one_table() -> None:
    theirs = replace(rates(), records=[_on(run, "pets v1") for run in rates().records])
    ours = replace(weights(), records=[_on(run, "icon_shift v2") for run in weights().records])
    with pytest.raises(TrackingError, match=r"weights of icon_shift, rates of pets; compare each"):
        compare_sweeps([ours, theirs])
    newer = replace(theirs, records=[_on(run, "icon_shift v3") for run in theirs.records])
    assert compare_sweeps([ours, newer]).rows


def _on(record: RunRecord, family: str) -> RunRecord:
    return replace(record, facts={**record.facts, "family": family})


def test_equal_fields_and_seed_but_another_run_are_told_apart_by_the_sweep() -> None:
    again = [
        replace(r, digest=f"new-{r.digest}") for r in weights().records if r.params.get(KL) == 0.3
    ]
    names = labels(unified([weights(), part("later", again)]))
    assert names == {
        "zero_shot": [None],
        "fine_tune": [0],
        "car_ft kl_weight=0.1": [0, 1],
        "car_ft kl_weight=0.3 sweep=weights": [0, 1],
        "car_ft kl_weight=0.3 sweep=later": [0, 1],
    }
    comparison = compare_sweeps([weights(), part("later", again)])
    assert not [row for row in comparison.rows if "untuned" in row.marks]


def test_a_run_of_two_sweeps_is_a_trial_and_has_the_merged_models_of_both() -> None:
    one = made("car_ft", 0, 0.6, "same", params={KL: 0.3}, merges={"wise_ft@0.5": {}})
    other = made("car_ft", 0, 0.6, "same", trial=4, params={KL: 0.3}, merges={"wise_ft@0.1": {}})
    (record,) = unified([part("a", [one]), part("b", [other])])
    assert (record.role, record.trial) == ("trial", 4)
    assert set(record.merges) == {"wise_ft@0.5", "wise_ft@0.1"}


def test_a_run_without_a_config_stands_with_its_siblings() -> None:
    records = [*weights().records, run("car_ft", 2, None, digest="lost", trial=1, params={KL: 0.3})]
    fields = weights().fields
    weights_part = SweepRuns("weights", records, ComparisonSpec(seeds=(0, 1, 2)), fields)
    names = labels(
        unified([weights_part, part("other", [made("car_ft", 0, 0.6, "o", trial=0)], {KL: 9.0})])
    )
    assert names["car_ft kl_weight=0.3"] == [0, 1, 2]


CONSTRAINT = Constraint(metric="id/val/nll", goal="minimize", of="zero_shot", margin=0.0)


def joined(first: ComparisonSpec, second: ComparisonSpec, **options: Any) -> Comparison:
    return compare_sweeps(
        [part("a", kl_sweep(), spec=first), part("b", kl_sweep(), spec=second)], **options
    )


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            ComparisonSpec(rule=SelectionRule(metric="id/val/nll", goal="minimize")),
            "the metric of one is id/val/top1, .*--metric",
        ),
        (
            ComparisonSpec(rule=SelectionRule(within=0.01)),
            "the selection of one is best_val, .*within 0.01.*--selection",
        ),
        (
            ComparisonSpec(endpoint=Endpoint(id_margin=0.01)),
            "the id_margin of one is 0.005, .*--id-margin",
        ),
        (
            ComparisonSpec(rule=SelectionRule(constraint=CONSTRAINT)),
            "the constraint of one is none, of the other id/val/nll as good as zero_shot's; look",
        ),
    ],
)
def test_sweeps_that_judge_differently_are_not_compared_in_silence(
    other: ComparisonSpec, said: str
) -> None:
    with pytest.raises(TrackingError, match=f"a and b cannot be compared as one: {said}"):
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
    lucky = part("a", [made("car_ft", 0, 0.7, "l", trial=0)], {KL: 0.1}, ComparisonSpec(seeds=(0,)))
    both = [made("car_ft", s, (0.8, 0.5)[s], f"b{s}", trial=1) for s in (0, 1)]
    first = part("c", both[:1], {KL: 1.0}, ComparisonSpec(seeds=(0,)))
    second = part("b", both[1:], {KL: 1.0}, ComparisonSpec(seeds=(1,)))
    comparison = compare_sweeps([lucky, first, second])
    assert comparison.seeds == (0, 1)
    assert comparison.selected is not None
    assert comparison.selected.arm.params == {KL: 1.0}
    assert "those of all, since none is common" in comparison.warnings[0]


def test_settings_that_a_condition_leaves_out_still_count_as_tried() -> None:
    whole = SweepRuns("kl", kl_sweep(), ComparisonSpec(seeds=tuple(SEEDS)))
    comparison = compare_sweeps([whole], where=["kl_weight=1"])
    assert [verdict.tried for verdict in comparison.verdicts] == [4]
    assert "chosen among 4 settings" in comparison.answer.lines[0]
    assert compare_sweeps([whole]).verdicts[0].tried == 4
    by_seed = compare_sweeps([whole], where=["seed<4"])
    assert by_seed.verdicts[0].tried == 4


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
    return filter_runs(records, [parse_condition(text, records) for text in texts], SWEEPS)


def kept(*texts: str) -> list[int]:
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
def test_what_is_left_are_the_runs_of_which_each_condition_holds(
    texts: Sequence[str], expected: Sequence[int]
) -> None:
    assert kept(*texts) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kl_weight", "write FIELD=VALUE"),
        ("kl_weight>=1,2", "wants one number"),
        ("kl_wait=1", "unknown field 'kl_wait'; did you mean 'kl_weight'?"),
        ("classes>1", "prompts.classes is no number; use = or !="),
        ("algorithm=carft", "unknown algorithm 'carft'; did you mean 'car_ft'?"),
    ],
)
def test_a_wrong_condition_is_told_with_its_remedy(text: str, said: str) -> None:
    with pytest.raises(TrackingError, match=re.escape(said)):
        kept(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kl_weight=9", "--where kl_weight=9: unknown algorithm.kl_weight '9'; Known: 0.3"),
        ("kl_weight>9", "--where kl_weight>9: holds of no algorithm.kl_weight; Known: 0.3"),
    ],
)
def test_a_condition_that_only_runs_without_its_field_meet_is_refused(text: str, said: str) -> None:
    runs = [
        zero_shot(),
        run("fine_tune", 0, metrics(0.6, 0.3)),
        run("car_ft", 0, metrics(0.6, 0.3), params={KL: 0.3}),
    ]
    with pytest.raises(TrackingError, match=re.escape(said)):
        compare_sweeps([SweepRuns("toy", runs)], where=[text])


def test_a_last_part_that_two_fields_share_must_be_given_whole() -> None:
    runs = [run("car_ft", 0, metrics(0.6, 0.3), params={"optim.lr": 1.0, "head.lr": 2.0})]
    with pytest.raises(TrackingError, match=r"may be head\.lr or optim\.lr; say which"):
        filtered(runs, "lr=1")
    assert filtered(runs, "head.lr=2") == runs


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8), st.floats(-1e6, 1e6))
def test_a_bound_and_its_opposite_part_the_runs(values: list[float], bound: float) -> None:
    values += [-2e6, 2e6]  # on each side of every bound: one that nothing meets is refused
    runs = [
        run("car_ft", i, {}, params={KL: value}, state="done") for i, value in enumerate(values)
    ]
    runs.append(zero_shot())  # which has no such field, and so is in both
    below = filtered(runs, f"kl_weight<{bound!r}")
    above = filtered(runs, f"kl_weight>={bound!r}")
    assert [r.seed for r in below if r in above] == [None]
    assert len(below) + len(above) == len(runs) + 1


def test_a_setting_is_whole_with_the_seeds_that_are_left() -> None:
    def seeds(required: Sequence[int] | None, *where: str) -> tuple[int, ...]:
        spec = ComparisonSpec(seeds=None if required is None else tuple(required))
        return compare_sweeps([SweepRuns("kl", kl_sweep(), spec)], where=where).seeds

    assert seeds((0, 1, 2), "seed=0,2", "kl_weight>1") == (0, 2)
    assert seeds((0, 1, 2), "seed<2") == (0, 1)
    assert seeds(None, "seed<2") == (0, 1)
    assert seeds((0, 1), "seed>2") == (3, 4), "not any one of them"


def test_a_constraint_whose_algorithm_a_condition_leaves_out_is_said_to_be_gone() -> None:
    spec = ComparisonSpec(rule=SelectionRule(constraint=CONSTRAINT))
    rest = compare_sweeps([SweepRuns("kl", kl_sweep(), spec)], where=["algorithm!=zero_shot"])
    assert (
        "the constraint was not applied: no finished run of zero_shot has id/val/nll"
        in rest.warnings
    )

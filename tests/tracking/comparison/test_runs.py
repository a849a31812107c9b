"""Runs belong together by what they vary, and fields tell two settings apart."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

from carft_sweep.tracking.comparison import runs as grouping
from carft_sweep.tracking.comparison.runs import RunRecord
from tests.tracking.made_up import KL, arm, kl_sweep, metrics, run, zero_shot


def test_arms_come_as_zero_shot_baselines_and_trials_by_number_and_a_repeated_point_once() -> None:
    labels = ["zero_shot", "fine_tune", *(f"car_ft kl_weight={kl}" for kl in (0.1, 0.3, 1, 3))]
    assert [arm.label for arm in grouping.group(reversed(kl_sweep(2)))] == labels
    runs = arm("car_ft", [0.6] * 2, [0.3] * 2, trial=3, params={KL: 1})
    runs += arm("car_ft", [0.6] * 2, [0.3] * 2, trial=1, params={KL: 1.0})
    assert [(each.trial, len(each.done)) for each in grouping.group(runs)] == [(1, 2)]


def test_a_setting_of_many_fields_is_called_by_the_number_of_its_trial() -> None:
    def labels(*runs: RunRecord) -> list[str]:
        return [arm.label for arm in grouping.group(runs)]

    runs = []
    for number in (4, 7):
        shared = {"optim.lr": 1.2345e-4 * number, "optim.batch_size": 32, "optim.momentum": 0.91234}
        own = {**shared, KL: 0.326534}
        runs.append(run("car_ft", 0, metrics(0.6, 0.3), trial=number, params=own))
        runs.append(run("fine_tune", 0, metrics(0.6, 0.3), params=shared))
    fresh = replace(runs[0], role="confirmation", trial=None, seed=5)
    numbered = ["fine_tune #4", "fine_tune #7", "car_ft #4", "car_ft #7", "car_ft #4 (confirmed)"]
    assert labels(*runs, fresh) == numbered
    # Three digits do not tell these apart, and baselines have no numbers of their own.
    near = [replace(runs[1], params={"optim.lr": rate}) for rate in (1.0004e-5, 1.0001e-5)]
    assert sorted(labels(*near)) == ["fine_tune lr=1.0001e-05", "fine_tune lr=1.0004e-05"]
    # Of two sweeps' trials with one number.
    other = replace(runs[0], params={**runs[0].params, KL: 1.0})
    rest = "batch_size=32 lr=0.000494 momentum=0.912"
    named = [f"car_ft kl_weight={weight} {rest}" for weight in ("0.327", "1")]
    assert labels(runs[0], other) == named


def test_whole_numbers_of_any_size_are_settings_of_their_own_and_are_shown_exactly() -> None:
    field = "data.split_seed"
    for pair in ((20260101, 20260102), (2**53, 2**53 + 1), (10**18, 10**18 + 1)):
        runs = [run("fine_tune", 0, metrics(0.6, 0.3), params={field: seed}) for seed in pair]
        arms = grouping.group(runs)
        assert [arm.label for arm in arms] == [f"fine_tune split_seed={seed}" for seed in pair]
        assert len({arm.key for arm in arms} | {arm.key.digest for arm in arms}) == 4


def test_rates_that_read_alike_have_the_digits_that_tell_them_apart() -> None:
    rates = (1.00000012e-4, 1.00000011e-4, 0.5)
    arms = grouping.group(
        run("fine_tune", 0, metrics(0.6, 0.3), params={"optim.lr": rate}) for rate in rates
    )
    assert {arm.label for arm in arms} == {
        "fine_tune lr=0.000100000012",
        "fine_tune lr=0.000100000011",
        "fine_tune lr=0.5",
    }


def test_a_text_and_a_number_that_read_alike_are_two_settings_with_two_labels() -> None:
    values = (1, "1", True, "true")
    arms = grouping.group(
        run("fine_tune", 0, metrics(0.6, 0.3), params={"algorithm.mode": value}) for value in values
    )
    assert len({arm.key for arm in arms}) == len({arm.label for arm in arms}) == 4


def test_baselines_come_in_the_order_of_the_file_in_whatever_order_runs_are_read() -> None:
    rates = (3e-4, 1e-5, 2e-3)
    runs = [
        replace(run("fine_tune", 0, metrics(0.6, 0.3), params={"optim.lr": rate}), position=number)
        for number, rate in enumerate(rates)
    ]
    for order in itertools.permutations(runs):
        assert [arm.params["optim.lr"] for arm in grouping.group(order)] == [*rates]


def test_what_confirms_is_an_arm_of_its_own_and_comes_last() -> None:
    fresh = {"params": {KL: 1.0}, "role": "confirmation"}
    runs = [run("car_ft", seed, metrics(0.6, 0.3), **fresh) for seed in (5, 6)]
    runs += [run("car_ft", seed, metrics(0.6, 0.3), trial=3, params={KL: 1}) for seed in (0, 5)]
    arms = grouping.group([*runs, run("fine_tune", 0)])
    assert [(arm.label, arm.trial, len(arm.done), arm.confirms) for arm in arms] == [
        ("fine_tune", None, 0, False),
        ("car_ft kl_weight=1", 3, 2, False),
        ("car_ft kl_weight=1 (confirmed)", None, 2, True),
    ]
    assert [arms[2].is_setting_of(arm) for arm in arms[:2]] == [False, True]


def test_only_the_pre_trained_weights_are_zero_shot() -> None:
    soup = run("uniform_soup", None, metrics(0.7, 0.5), role="soup")
    checkpoint = run("from_checkpoint", None, metrics(0.7, 0.5), facts={"own_weights": True})
    arms = grouping.group([soup, checkpoint, run("fine_tune", 0, metrics(0.6, 0.4)), zero_shot()])
    labels = ["zero_shot", "fine_tune", "from_checkpoint", "uniform_soup"]
    assert [arm.label for arm in arms] == labels
    assert [arm.label for arm in arms if arm.is_zero_shot] == ["zero_shot"]
    assert [arm.label for arm in arms if arm.trains] == ["fine_tune"]


def test_params_are_named_by_their_last_part_unless_two_end_alike_and_have_one_key() -> None:
    both = {"prompts.classes": "openai", "data.classes": None}
    named: list[tuple[dict[str, Any], str]] = [
        ({"optim.lr": 3e-4, "algorithm.kl_weight": 1.0}, "kl_weight=1 lr=0.0003"),
        (both, "data.classes=none prompts.classes=openai"),
        ({"algorithm.name": "car_ft", "optim.flag": True}, "flag=true"),
    ]
    for params, name in named:
        assert grouping.setting(params) == name
    values = (1.0, True, None, 3e-5, "x")
    assert list(map(grouping.scalar_text, values)) == ["1", "true", "none", "3e-05", "x"]
    key = grouping.params_key
    assert key({"a": 1, "b": "x"}) == key({"b": "x", "a": 1.0})
    assert len({key({"a": value}) for value in (1, True, "1")}) == 3


def test_merge_labels_sort_by_number() -> None:
    labels = ("uniform_soup", "wise_ft@0.25", "wise_ft@0.5", "wise_ft@1")
    merges = {label: metrics(0.6, 0.3) for label in labels[::-1]}
    (only,) = grouping.group([run("fine_tune", 0, metrics(0.6, 0.3), merges=merges)])
    assert only.merge_labels == labels
    assert grouping.split_merge("wise_ft@0.25") == ("wise_ft", 0.25)
    assert grouping.split_merge("uniform_soup") == ("uniform_soup", None)


def test_an_arm_that_no_seed_changes_has_its_value_at_every_seed() -> None:
    ood, seeds = "ood/mean/top1", (3, 5)
    (still,) = grouping.group([zero_shot(ood=0.4)])
    assert (still.values(ood), still.values(ood, seeds)) == ({None: 0.4}, {3: 0.4, 5: 0.4})
    assert still.values("ood/mean/macro_f1", seeds) == {}
    (trained,) = grouping.group([run("fine_tune", 3, metrics(0.6, 0.3))])
    assert trained.values(ood, seeds) == {3: 0.3}
    # A value that is not finite is none.
    for value in (math.nan, math.inf):
        (odd,) = grouping.group([run("fine_tune", 0, {"id/test/top1": value})])
        assert (odd.values("id/test/top1"), odd.mean("id/test/top1")) == ({}, None)


CONFIG: dict[str, Any] = {
    "model": {"name": "builtin", "pretrained": None},
    "data": {"family": "icon_shift", "root": "/mine", "val_fraction": 0.1},
    "algorithm": {"name": "car_ft", "kl_weight": 1.0, "layers": [1, 2]},
    "optim": {"lr": 1e-5, "micro_batch": 8},
    **{"merges": [{"name": "wise_ft"}], "eval": {"logits": "auto"}, "keep": {"result": "last"}},
    **{"device": "cuda", "precision": "auto", "workers": 4},
}


def test_fields_are_dotted_and_leave_out_where_and_how_a_run_was_made() -> None:
    identity = {"optim": {"lr": 1e-5, "micro_batch": 8}}
    whole = {
        **{"model.name": "builtin", "model.pretrained": None, "data.family": "icon_shift"},
        **{"data.val_fraction": 0.1, "algorithm.kl_weight": 1.0, "algorithm.layers": "[1, 2]"},
        **{"optim.lr": 1e-5, "optim.micro_batch": 8, "precision": "auto"},
    }
    assert grouping.fields({"config": CONFIG, "identity": identity}) == whole
    # What did not enter the identity is left out.
    rate_alone = {"config": CONFIG, "identity": {"optim": {"lr": 1}}}
    assert "optim.micro_batch" not in grouping.fields(rate_alone)
    untrained = grouping.fields({"config": CONFIG, "identity": {"data": {}}})
    assert untrained == {name: whole[name] for name in whole if name[:6] != "optim."}

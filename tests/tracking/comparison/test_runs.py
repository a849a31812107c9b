"""Runs belong together by what they vary, and fields tell two settings apart."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from carft_sweep.tracking.comparison.runs import (
    fields,
    group,
    params_key,
    scalar_text,
    setting,
    split_merge,
)
from tests.tracking.made_up import KL, kl_sweep, metrics, run, zero_shot


def test_arms_come_as_zero_shot_baselines_and_trials_by_number() -> None:
    labels = [arm.label for arm in group(reversed(kl_sweep(2)))]
    assert labels == [
        "zero_shot",
        "fine_tune",
        "car_ft kl_weight=0.1",
        "car_ft kl_weight=0.3",
        "car_ft kl_weight=1",
        "car_ft kl_weight=3",
    ]


def test_a_point_proposed_twice_is_one_setting_whose_seeds_count_once() -> None:
    runs = [
        run("car_ft", seed, metrics(0.6, 0.3), trial=trial, params={KL: value})
        for trial, value in ((3, 1), (1, 1.0))
        for seed in (0, 1)
    ]
    arms = group(runs)
    assert [(arm.trial, len(arm.done)) for arm in arms] == [(1, 2)]


def test_a_setting_of_many_fields_is_called_by_the_number_of_its_trial() -> None:
    runs = []
    for number in (4, 7):
        shared = {"optim.lr": 1.2345e-4 * number, "optim.batch_size": 32, "optim.momentum": 0.91234}
        own = {**shared, KL: 0.326534}
        runs.append(run("car_ft", 0, metrics(0.6, 0.3), trial=number, params=own))
        runs.append(run("fine_tune", 0, metrics(0.6, 0.3), params=shared))
    runs.append(replace(runs[0], role="confirmation", trial=None, seed=5))
    assert [arm.label for arm in group(runs)] == [
        "fine_tune #4",
        "fine_tune #7",
        "car_ft #4",
        "car_ft #7",
        "car_ft #4 (confirmed)",
    ]
    # Three digits do not tell these apart, and baselines have no numbers of their own.
    near = [replace(runs[1], params={"optim.lr": rate}) for rate in (1.0004e-5, 1.0001e-5)]
    assert sorted(arm.label for arm in group(near)) == [
        "fine_tune lr=1.0001e-05",
        "fine_tune lr=1.0004e-05",
    ]
    # Of two sweeps' trials with one number.
    other = replace(runs[0], params={**runs[0].params, KL: 1.0})
    assert [arm.label for arm in group([runs[0], other])] == [
        "car_ft kl_weight=0.327 batch_size=32 lr=0.000494 momentum=0.912",
        "car_ft kl_weight=1 batch_size=32 lr=0.000494 momentum=0.912",
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_no_value(value: float) -> None:
    arm = group([run("fine_tune", 0, {"id/test/top1": value})])[0]
    assert arm.values("id/test/top1") == {}
    assert arm.mean("id/test/top1") is None


def test_what_confirms_is_an_arm_of_its_own_and_comes_last() -> None:
    fresh = {"params": {KL: 1.0}, "role": "confirmation"}
    runs = [run("car_ft", seed, metrics(0.6, 0.3), **fresh) for seed in (5, 6)]
    runs += [run("car_ft", seed, metrics(0.6, 0.3), trial=3, params={KL: 1}) for seed in (0, 5)]
    arms = group([*runs, run("fine_tune", 0)])
    assert [(arm.label, arm.trial, len(arm.done)) for arm in arms] == [
        ("fine_tune", None, 0),
        ("car_ft kl_weight=1", 3, 2),
        ("car_ft kl_weight=1 (confirmed)", None, 2),
    ]
    assert [arm.confirms for arm in arms] == [False, False, True]
    assert arms[2].is_setting_of(arms[1])
    assert not arms[2].is_setting_of(arms[0])


def test_params_are_named_by_their_last_part_unless_two_end_alike() -> None:
    assert setting({"optim.lr": 3e-4, "algorithm.kl_weight": 1.0}) == "kl_weight=1 lr=0.0003"
    both = {"prompts.classes": "openai", "data.classes": None}
    assert setting(both) == "data.classes=none prompts.classes=openai"
    assert setting({"algorithm.name": "car_ft", "optim.flag": True}) == "flag=true"
    values = (1.0, True, None, 3e-5, "x")
    assert list(map(scalar_text, values)) == ["1", "true", "none", "3e-05", "x"]


def test_equal_params_have_one_key() -> None:
    assert params_key({"a": 1, "b": "x"}) == params_key({"b": "x", "a": 1.0})
    assert params_key({"a": 1}) != params_key({"a": True})
    assert params_key({"a": 1}) != params_key({"a": "1"})


def test_merge_labels_sort_by_number() -> None:
    labels = ["wise_ft@1", "wise_ft@0.5", "uniform_soup", "wise_ft@0.25"]
    merges = {label: metrics(0.6, 0.3) for label in labels}
    assert group([run("fine_tune", 0, metrics(0.6, 0.3), merges=merges)])[0].merge_labels == (
        "uniform_soup",
        "wise_ft@0.25",
        "wise_ft@0.5",
        "wise_ft@1",
    )
    assert split_merge("wise_ft@0.25") == ("wise_ft", 0.25)
    assert split_merge("uniform_soup") == ("uniform_soup", None)


def test_an_arm_that_no_seed_changes_has_its_value_at_every_seed() -> None:
    arm = group([zero_shot(ood=0.4)])[0]
    assert arm.values("ood/mean/top1") == {None: 0.4}
    assert arm.values("ood/mean/top1", (3, 5)) == {3: 0.4, 5: 0.4}
    assert arm.values("ood/mean/macro_f1", (3, 5)) == {}
    trained = group([run("fine_tune", 3, metrics(0.6, 0.3))])[0]
    assert trained.values("ood/mean/top1", (3, 5)) == {3: 0.3}


def test_only_the_pre_trained_weights_are_zero_shot() -> None:
    soup = run("uniform_soup", None, metrics(0.7, 0.5), role="soup")
    given = run("from_checkpoint", None, metrics(0.7, 0.5), facts={"own_weights": True})
    arms = group([soup, given, run("fine_tune", 0, metrics(0.6, 0.4)), zero_shot()])
    labels = ["zero_shot", "fine_tune", "from_checkpoint", "uniform_soup"]
    assert [arm.label for arm in arms] == labels
    assert [arm.label for arm in arms if arm.is_zero_shot] == ["zero_shot"]
    assert [arm.label for arm in arms if arm.trains] == ["fine_tune"]


CONFIG: dict[str, Any] = {
    "model": {"name": "builtin", "pretrained": None},
    "data": {"family": "icon_shift", "root": "/mine", "val_fraction": 0.1},
    "algorithm": {"name": "car_ft", "kl_weight": 1.0, "layers": [1, 2]},
    "optim": {"lr": 1e-5, "micro_batch": 8},
    "merges": [{"name": "wise_ft"}],
    "eval": {"logits": "auto"},
    "keep": {"result": "last"},
    "device": "cuda",
    "precision": "auto",
    "workers": 4,
}


def test_they_are_dotted_and_leave_out_where_and_how_a_run_was_made() -> None:
    identity = {"optim": {"lr": 1e-5, "micro_batch": 8}}
    assert fields({"config": CONFIG, "identity": identity}) == {
        "model.name": "builtin",
        "model.pretrained": None,
        "data.family": "icon_shift",
        "data.val_fraction": 0.1,
        "algorithm.kl_weight": 1.0,
        "algorithm.layers": "[1, 2]",
        "optim.lr": 1e-5,
        "optim.micro_batch": 8,
        "precision": "auto",
    }


def test_what_did_not_enter_the_identity_is_left_out() -> None:
    assert "optim.micro_batch" not in fields({"config": CONFIG, "identity": {"optim": {"lr": 1}}})
    untrained = fields({"config": CONFIG, "identity": {"data": {}}})
    assert not [name for name in untrained if name.startswith("optim.")]

"""Conditions choose runs as they read, and speak only of what a run has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tracking.made_up import KL, metrics, run, zero_shot
from tracking.comparison.pooling import RunFilter, filter_runs
from tracking.comparison.runs import RunRecord
from tracking.errors import TrackingError

LR = "optim.lr"


def made(seed: int, trial: int, **params: Any) -> RunRecord:
    named = {KL: params.get("kl_weight"), LR: params.get("lr"), "prompts.classes": "openai"}
    return run("car_ft", seed, metrics(0.6, 0.3), trial=trial, params=named)


RUNS = [
    zero_shot(),
    run("fine_tune", 0, metrics(0.6, 0.3), params={LR: 1e-4}),
    made(0, 0, kl_weight=0.1, lr=1e-5),
    made(1, 0, kl_weight=0.1, lr=1e-5),
    made(0, 1, kl_weight=1 / 3, lr=1e-4),
    run("car_ft", 1, None, trial=1, params={KL: 1 / 3, LR: 1e-4}),
]
SWEEPS = {RUNS[0].digest: ["a", "b"], RUNS[1].digest: ["a"], RUNS[2].digest: ["b"]}


def kept(*texts: str) -> list[int]:
    """The places in RUNS of what is left."""
    found = filter_runs(RUNS, RunFilter.parse(texts), SWEEPS)
    return [RUNS.index(record) for record in found]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["algorithm=car_ft"], [2, 3, 4, 5]),
        (["algorithm!=zero_shot"], [1, 2, 3, 4, 5]),
        (["algorithm=zero_shot,fine_tune"], [0, 1]),
        (["kl_weight>=0.3"], [0, 1, 4, 5]),
        (["kl_weight<0.3"], [0, 1, 2, 3]),
        (["algorithm.kl_weight = 0.333333"], [0, 1, 4, 5]),
        (["kl_weight==1e-1"], [0, 1, 2, 3]),
        (["lr=0.0001"], [0, 1, 4, 5]),
        (["lr=1e-4", "algorithm=car_ft"], [4, 5]),
        (["classes=openai"], [0, 1, 2, 3, 4, 5]),
        (["classes!=openai", "algorithm!=x"], [0, 1, 5]),
        (["state=done"], [0, 1, 2, 3, 4]),
        (["seed=1"], [0, 3, 5]),
        (["trial>0"], [0, 1, 4, 5]),
        (["role=baseline"], [0, 1]),
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
        ("kl_weight=", "write FIELD=VALUE"),
        ("=3", "write FIELD=VALUE"),
        ("kl_weight>=", "write FIELD=VALUE"),
        ("kl_weight>=1,2", "wants one number"),
        ("kl_weight>=many", "wants one number"),
        ("kl_wait=1", "unknown field 'kl_wait'; did you mean 'kl_weight'?"),
        ("classes>1", "prompts.classes is no number; use = or !="),
        ("algorithm=clip", "no run is left where algorithm=clip"),
        ("algorithm=carft", "unknown algorithm 'carft'; did you mean 'car_ft'?"),
    ],
)
def test_a_wrong_condition_is_told_with_its_remedy(text: str, said: str) -> None:
    with pytest.raises(TrackingError, match=re.escape(said)):
        kept(text)


def test_a_last_part_that_two_fields_share_must_be_given_whole() -> None:
    runs = [run("car_ft", 0, metrics(0.6, 0.3), params={"optim.lr": 1.0, "head.lr": 2.0})]
    with pytest.raises(TrackingError, match=r"may be head\.lr or optim\.lr; say which"):
        filter_runs(runs, RunFilter.parse(["lr=1"]), {})
    assert filter_runs(runs, RunFilter.parse(["head.lr=2"]), {}) == runs


@pytest.mark.parametrize(("value", "text"), [(True, "true"), (False, "False"), (None, "none")])
def test_truth_and_nothing_are_written_as_labels_show_them(value: Any, text: str) -> None:
    runs = [run("car_ft", 0, metrics(0.6, 0.3), params={"optim.x": value})]
    assert filter_runs(runs, RunFilter.parse([f"x={text}"]), {}) == runs
    with pytest.raises(TrackingError, match="no run is left"):
        filter_runs(runs, RunFilter.parse(["x=1"]), {})


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8), st.floats(-1e6, 1e6))
def test_a_bound_and_its_opposite_part_the_runs(values: list[float], bound: float) -> None:
    runs = [
        run("car_ft", i, {}, params={KL: value}, state="done") for i, value in enumerate(values)
    ]
    runs.append(zero_shot())  # which has no such field, and so is in both
    below = filter_runs(runs, RunFilter.parse([f"kl_weight<{bound!r}"]), {})
    above = filter_runs(runs, RunFilter.parse([f"kl_weight>={bound!r}"]), {})
    assert [r.seed for r in below if r in above] == [None]
    assert len(below) + len(above) == len(runs) + 1


def test_a_setting_is_whole_with_the_seeds_that_are_left() -> None:
    assert RunFilter.parse(["seed=0,2", "kl_weight>1"]).seeds((0, 1, 2)) == (0, 2)
    assert RunFilter.parse(["seed<2"]).seeds((0, 1, 2)) == (0, 1)
    assert RunFilter.parse(["seed<2"]).seeds(None) is None

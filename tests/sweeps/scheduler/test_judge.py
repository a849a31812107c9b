"""The judge decides as Optuna's pruners do, and a restart changes no decision."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carft_sweep.sweeps.scheduler.pruning import SeedwisePruner, clearly_worse, pruner
from carft_sweep.sweeps.spec.metrics import Goal
from carft_sweep.sweeps.spec.settings import (
    EARLY_TERMINATION,
    Asha,
    EarlyTerminate,
    Median,
    Patience,
    RaceSeeds,
    Threshold,
)

TOP1 = "id/val/top1"
RULES: Mapping[str, EarlyTerminate] = {
    "median": Median(metric=TOP1, startup_trials=2, min_trials=2),
    "median from epoch 3": Median(metric=TOP1, startup_trials=0, min_epochs=3),
    "asha": Asha(metric=TOP1, reduction_factor=2),
    "asha from epoch 2": Asha(metric=TOP1, min_epochs=2, reduction_factor=3),
    "patience": Patience(metric=TOP1, patience=2),
    "patience from epoch 4": Patience(metric=TOP1, patience=1, min_delta=0.05, min_epochs=4),
    "threshold": Threshold(metric=TOP1, lower=0.3, upper=0.9),
}

each_rule = pytest.mark.parametrize("name", RULES)
each_goal = pytest.mark.parametrize("goal", ["maximize", "minimize"])


def play(
    judge: SeedwisePruner, trial: int, curve: Sequence[float], seed: int = 0
) -> tuple[int, str | None]:
    """Let one seed of a trial run: how many epochs it came to, and why no more."""
    for epoch, value in enumerate(curve[:-1], start=1):
        reason = judge.report(trial, seed, epoch, value)
        if reason is not None:
            judge.finish_trial(trial)
            return epoch, reason
    judge.replay(trial, seed, len(curve), curve[-1])
    judge.finish_run(trial, seed)
    return len(curve), None


def judge_of(**rule: Any) -> SeedwisePruner:
    """Of the accuracy, which is to be large."""
    return SeedwisePruner(EARLY_TERMINATION[rule["type"]](metric=TOP1, **rule), "maximize")


KNOWN: Mapping[str, tuple[dict[str, Any], list[tuple[int, int, list[float], str]]]] = {
    "below the median of the complete trials at the epoch": (
        {"type": "median", "startup_trials": 3},
        [
            *((trial, 0, [0.4 + trial / 10, 0.5 + trial / 10, 0.6], "") for trial in range(3)),
            (3, 0, [0.5, 0.61, 0.9], ""),  # the median is 0.5, then 0.6
            (4, 0, [0.55, 0.58, 0.9], "0.58 after 2 epochs"),
            (5, 0, [0.2, 0.9, 0.9], "0.2 after 1 epoch"),
        ],
    ),
    "epochs without an improvement of more than min_delta": (
        {"type": "patience", "patience": 3, "min_delta": 0.125},
        [
            #               best      1     2      3
            (0, 0, [0.25, 0.5, 0.5, 0.625, 0.25, 0.9, 0.9], "0.25 after 5 epochs"),
            # Each step is an improvement on the last one, or, being small, on the one before.
            (1, 0, [0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0], ""),
        ],
    ),
    "one epoch of patience": (
        {"type": "patience", "patience": 1},
        [(0, 0, [0.5, 0.5, 0.5], "0.5 after 2 epochs")],
    ),
    "the decision is held until min_epochs": (
        {"type": "patience", "patience": 2, "min_epochs": 5},
        [
            (0, 0, [0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1], "0.1 after 5 epochs"),
            (1, 0, [0.5, 0.4, 0.3, 0.2, 0.6, 0.1, 0.1, 0.1], "0.1 after 7 epochs"),
        ],
    ),
    "a later seed is judged by the mean over the seeds so far": (
        {"type": "median", "startup_trials": 1},
        [
            (0, 0, [0.5, 0.5], ""),
            (0, 1, [0.25, 0.5], ""),  # the mean after 1 epoch is 0.375
            (1, 0, [0.75, 0.5], ""),
            (1, 1, [0.0, 0.5], ""),  # 0.375, though 0 is below all
            (2, 0, [0.5, 0.5], "0.5 after 1 epoch"),
            (2, 1, [0.125, 0.5], "0.3125 after 1 epoch"),
        ],
    ),
    "each seed has rungs of its own": (
        {"type": "asha", "reduction_factor": 2},
        [
            *((0, seed, [0.5, 0.5], "") for seed in range(2)),
            (1, 0, [0.25, 0.5], "0.25 after 1 epoch"),
            (2, 0, [0.75, 0.5], ""),
            (2, 1, [0.0, 0.5], "0.375 after 1 epoch"),  # (0.75 + 0) / 2
        ],
    ),
}
"""A rule, and trial, seed, curve and the end of what is told of it, one after another."""


@pytest.mark.parametrize("case", KNOWN)
def test_known_curves_are_pruned_as_by_hand(case: str) -> None:
    rule, plays = KNOWN[case]
    judge = judge_of(**rule)
    for trial, seed, curve, ending in plays:
        reason = f"{TOP1} {ending}, by {rule['type']}" if ending else None
        epochs = int(ending.split()[2]) if ending else len(curve)
        assert play(judge, trial, curve, seed) == (epochs, reason), (trial, seed)


@each_rule
@pytest.mark.parametrize("before", [-5.0, 5.0])
def test_the_model_before_training_is_not_judged(name: str, before: float) -> None:
    judges = [SeedwisePruner(RULES[name], "maximize") for _ in range(2)]
    curves = [[value, value, value + 0.02, value, value, value] for value in (0.5, 0.4, 0.3, 0.2)]
    for trial in range(4):
        assert judges[1].report(trial, 0, 0, before) is None
    ends = [[play(judge, trial, curve) for trial, curve in enumerate(curves)] for judge in judges]
    assert ends[0] == ends[1]


def by_optuna(
    by: optuna.pruners.BasePruner, goal: Goal, curves: Sequence[Sequence[float]]
) -> list[int]:
    """How far each of the curves comes in a study, one after another."""
    epochs = []

    def objective(trial: optuna.Trial) -> float:
        curve = curves[trial.number]
        for epoch, value in enumerate(curve, start=1):
            trial.report(value, epoch)
            if trial.should_prune() and epoch < len(curve):
                epochs.append(epoch)
                raise optuna.TrialPruned
        epochs.append(len(curve))
        return curve[-1]

    study = optuna.create_study(
        direction=goal, pruner=by, sampler=optuna.samplers.RandomSampler(seed=0)
    )
    study.optimize(objective, n_trials=len(curves))
    return epochs


PLAIN: Mapping[str, tuple[EarlyTerminate, optuna.pruners.BasePruner]] = {
    "median": (
        Median(min_epochs=2, startup_trials=3, min_trials=2),
        optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=2, n_min_trials=2),
    ),
    "asha": (
        Asha(min_epochs=2, reduction_factor=2),
        optuna.pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=2),
    ),
    "asha by 4": (Asha(), optuna.pruners.SuccessiveHalvingPruner(min_resource=1)),
    "patience": (Patience(patience=3), optuna.pruners.PatientPruner(None, patience=2)),
    "threshold": (
        Threshold(min_epochs=3, lower=0.2, upper=0.9),
        optuna.pruners.ThresholdPruner(lower=0.2, upper=0.9, n_warmup_steps=3),
    ),
}


@pytest.mark.parametrize("name", PLAIN)
@given(
    goal=st.sampled_from(["maximize", "minimize"]),
    curves=st.lists(
        st.lists(st.floats(0, 1), min_size=2, max_size=9, unique=True), min_size=1, max_size=12
    ),
)
@settings(max_examples=60, deadline=None)
def test_one_seed_one_at_a_time_is_what_optuna_alone_does(
    name: str, goal: Goal, curves: list[list[float]]
) -> None:
    rule, by = PLAIN[name]
    judge = SeedwisePruner(rule, goal)
    lengths = [play(judge, trial, curve)[0] for trial, curve in enumerate(curves)]
    assert lengths == by_optuna(by, goal, curves)


def test_no_user_is_warned_that_optuna_calls_a_pruner_experimental() -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for rule in RULES.values():
            pruner(rule)
    assert heard == []


def test_a_seed_that_was_complete_before_the_trial_was_pruned_is_still_compared_with() -> None:
    judge = judge_of(type="median", startup_trials=1)
    play(judge, 0, [0.75, 0.75], seed=0)
    judge.report(0, 1, 1, 0.1)
    judge.finish_trial(0)
    assert play(judge, 1, [0.5, 0.5], seed=0)[0] == 1
    assert play(judge, 2, [0.75, 0.5], seed=0) == (2, None)
    assert play(judge, 2, [0.0, 0.5], seed=1) == (2, None)  # of seed 1 no trial is complete


@each_goal
@each_rule
def test_what_is_not_a_number_decides_nothing_and_disturbs_nothing(name: str, goal: Goal) -> None:
    judge = SeedwisePruner(RULES[name], goal)
    for trial in range(6):
        for epoch in range(1, 6):
            assert judge.report(trial, 0, epoch, math.nan) is None
        judge.finish_run(trial, 0)
    values = [0.5, 0.52, 0.54, 0.56, 0.58, 0.6]
    good = values if goal == "maximize" else values[::-1]
    rising = SeedwisePruner(Patience(min_delta=0.0), goal)
    judged = rising if name.startswith("patience") else judge
    assert play(judged, 9, good) == (6, None)


@each_goal
@each_rule
def test_infinities_are_the_largest_and_the_smallest_of_numbers(name: str, goal: Goal) -> None:
    worst = -math.inf if goal == "maximize" else math.inf
    judge = SeedwisePruner(RULES[name], goal)
    for trial in range(3):
        for epoch, value in enumerate([worst, 0.5, worst, worst, -worst], start=1):
            judge.report(trial, 0, epoch, value)
        judge.finish_run(trial, 0)
    judge.replay(3, 0, 1, worst)
    judge.replay(3, 1, 1, -worst)  # together not a number
    assert judge.report(3, 2, 1, worst) is None
    expected = f"{TOP1} {-worst} after 1 epoch, by threshold" if name == "threshold" else None
    assert judge.report(4, 0, 1, -worst) == expected


@each_rule
def test_what_comes_twice_or_after_the_end_counts_once(name: str) -> None:
    once, twice = (SeedwisePruner(RULES[name], "maximize") for _ in range(2))
    random = Random(0)
    for trial in range(12):
        for epoch in range(1, 6):
            value = random.random()
            reason = once.report(trial, 0, epoch, value)
            assert twice.report(trial, 0, epoch, value) == reason
            assert twice.report(trial, 0, epoch, 0.0) is None
            twice.replay(trial, 0, epoch, 1.0)
            if reason is not None:
                once.finish_trial(trial)
                twice.finish_trial(trial)
                break
        else:
            once.finish_run(trial, 0)
        twice.finish_run(trial, 0)
        twice.finish_trial(trial)
        assert twice.report(trial, 0, 6, 0.0) is None


def decisions(
    judges: Callable[[], SeedwisePruner],
    kills: frozenset[int],
    *,
    lengths: Sequence[int],
    seeds: int,
    turns: Sequence[int],
    chance: int,
) -> list[str | None]:
    """What is decided of trials that report at random, one epoch of a trial for each turn; before
    the turns in `kills` the judge is lost, and another one is told what is known.
    """
    random, judge, reasons = Random(chance), judges(), list[str | None]()
    log: dict[int, list[tuple[int, int, float]]] = defaultdict(list)
    over, pruned = set[int](), set[int]()
    for turn, trial in enumerate(turns):
        if turn in kills:
            judge = judges()
            for known, reports in sorted(log.items(), reverse=True):  # not as it was
                for seed, epoch, value in reports:
                    judge.replay(known, seed, epoch, value)
                    if epoch == lengths[known]:
                        judge.finish_run(known, seed)
                if known in pruned:
                    judge.finish_trial(known)
        odd, value = random.random(), round(random.random(), 2)
        value = math.nan if odd < 0.03 else math.inf if odd < 0.05 else value
        if trial in over:
            continue
        seed, before = divmod(len(log[trial]), lengths[trial])
        log[trial].append((seed, before + 1, value))
        reason = None
        if before + 1 < lengths[trial]:
            reason = judge.report(trial, seed, before + 1, value)
            if reason is not None:
                judge.finish_trial(trial)
                over.add(trial)
                pruned.add(trial)
        else:
            judge.replay(trial, seed, before + 1, value)
            judge.finish_run(trial, seed)
            if seed == seeds - 1:
                over.add(trial)
        reasons.append(reason)
    return reasons


@each_rule
@given(
    goal=st.sampled_from(["maximize", "minimize"]),
    kills=st.frozensets(st.integers(0, 120), max_size=4),
    story=st.fixed_dictionaries(
        {
            "lengths": st.lists(st.integers(1, 9), min_size=8, max_size=8),
            "seeds": st.integers(1, 3),
            "turns": st.lists(st.integers(0, 7), min_size=30, max_size=120),
            "chance": st.integers(0, 2**32),
        }
    ),
)
@settings(max_examples=60, deadline=None)
def test_a_restart_changes_no_decision(
    name: str, goal: Goal, kills: frozenset[int], story: dict[str, Any]
) -> None:
    def judges() -> SeedwisePruner:
        return SeedwisePruner(RULES[name], goal)

    assert decisions(judges, kills, **story) == decisions(judges, frozenset(), **story)


WORSE = "0.1 over its first 2 seeds is worse than the best trial's 0.85 over the same by more than "


@pytest.mark.parametrize(
    ("rule", "goal", "values", "best", "message"),
    [
        ({}, "maximize", [0.5, 1.0], [0.75, 0.75], None),  # worse and better by as much
        ({}, "maximize", [0.5, 0.5], [0.75, 0.5], None),  # worse by 0.125 in the mean: no more
        ({}, "maximize", [0.5, 0.25], [0.75, 0.5], "0.375 over its first 2 seeds is worse"),
        ({}, "minimize", [0.75], [0.5], "0.75 over its first seed is worse"),
        ({}, "maximize", [math.nan], [0.5], None),
        ({}, "maximize", [0.5], [math.nan], None),
        ({"margin": 0.05}, "maximize", [0.75], [0.8], None),  # though 0.8 - 0.75 > 0.05
        ({"margin": 0.1, "after": 2}, "maximize", [0.1], [0.9], None),
        ({"margin": 0.1, "after": 2}, "maximize", [0.1, 0.1], [0.9, 0.8], f"{WORSE}0.1"),
    ],
)
def test_a_trial_is_clearly_worse_by_the_mean_of_the_paired_differences(
    rule: dict[str, Any], goal: Goal, values: list[float], best: list[float], message: str | None
) -> None:
    reason = clearly_worse(RaceSeeds(**{"margin": 0.125, **rule}), goal, values, best)
    assert reason is None if message is None else (reason or "").startswith(message)

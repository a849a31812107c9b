"""A failure is answered by its class, and a sweep that only fails is given up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from carft_sweep.carft_core.config.trial import trial_config
from carft_sweep.sweeps.engines.base import Failure
from carft_sweep.sweeps.scheduler.retries import (
    CircuitBreaker,
    GiveUp,
    Retry,
    RetryPolicy,
    can_be_halved,
    halved,
)
from carft_sweep.sweeps.spec.settings import Retries
from carft_sweep.tracking.store.base import RunKey
from tests.sweeps.conftest import ALONE, ToySweep
from tests.sweeps.scheduler.dying import Hooked, state_of

CRASH = {"do": "raise", "error": "key"}
MEMORY = {"do": "raise", "error": "memory"}
CONFIG = trial_config(
    {"algorithm": {"name": "fine_tune"}, "optim": {"batch_size": 48}, "device": "cpu"}
)


def failure(kind: Any, message: str = "m", node: str = "") -> Failure:
    return Failure(kind, message, node=node)


@pytest.mark.parametrize(
    ("kind", "times"), [("crashed", 2), ("timeout", 0), ("preempted", 3), ("nan", 0), ("data", 0)]
)
def test_each_class_is_tried_again_as_often_as_the_policy_says(kind: str, times: int) -> None:
    policy = RetryPolicy(Retries(crashed=2, timeout=0, preempted=3, out_of_memory=1))
    answers = [policy.decide("d", failure(kind), CONFIG) for _ in range(times + 2)]
    assert answers == [Retry(halve=False)] * times + [GiveUp(f"retries.{kind} is {times}")] * 2


def test_classes_and_runs_are_counted_apart_and_a_retry_avoids_the_node_of_a_failure() -> None:
    policy = RetryPolicy(Retries(crashed=1, preempted=1))
    assert policy.nodes_to_avoid("a") == ()
    for run, failed in (("a", failure("crashed", "m", "x")), ("a", failure("preempted", "m", "y"))):
        assert policy.decide(run, failed, CONFIG) == Retry(halve=False)
    assert policy.nodes_to_avoid("a") == ("x",)
    assert policy.decide("b", failure("crashed"), CONFIG) == Retry(halve=False)
    assert policy.decide("a", failure("crashed"), CONFIG) == GiveUp("retries.crashed is 1")


def test_what_was_out_of_memory_beside_others_is_tried_again_as_it_is() -> None:
    """Fewer are side by side then. A smaller micro-batch would stay with the run for good."""
    policy = RetryPolicy(Retries(out_of_memory=1))
    beside = replace(failure("out_of_memory"), narrowed=True)
    assert [policy.decide("a", beside, CONFIG) for _ in range(3)] == [Retry(halve=False)] * 3
    assert policy.decide("a", failure("out_of_memory"), CONFIG) == Retry(halve=True)
    assert isinstance(policy.decide("a", failure("out_of_memory"), CONFIG), GiveUp)


def test_out_of_memory_halves_the_micro_batch_then_that_of_evaluation_and_keeps_the_batch() -> None:
    sizes = [halved(CONFIG, times).optim.micro_batch for times in range(8)]
    assert sizes == [None, 24, 12, 6, 3, 1, 1, 1]
    assert halved(CONFIG, 3).optim.batch_size == 48
    assert halved(CONFIG, 1).eval.batch_size == CONFIG.eval.images_at_once // 2
    assert can_be_halved(halved(CONFIG, 4))
    single = halved(CONFIG, 6)
    assert (single.optim.micro_batch, single.eval.batch_size) == (1, 4)
    assert RetryPolicy(Retries()).decide("a", failure("out_of_memory"), single) == Retry(halve=True)
    assert halved(single, 2).eval.batch_size == 1
    assert not can_be_halved(halved(single, 2))


def test_where_that_would_be_another_run_only_evaluation_is_halved(
    dropping_clip_files: Path,
) -> None:
    """Its items are coupled, or each micro-batch has masks of its own."""
    normed = {"algorithm": "fine_tune", "optim": {"batch_size": 48, "batch_norm": "train"}}
    dropping = {"algorithm": "car_ft", "model": {"name": str(dropping_clip_files)}}
    for config in map(trial_config, (normed, dropping)):
        memory = failure("out_of_memory")
        assert RetryPolicy(Retries()).decide("a", memory, config) == Retry(halve=True)
        smaller = halved(config, 1)
        assert smaller.optim == config.optim
        assert smaller.eval.batch_size == config.eval.images_at_once // 2
        assert not can_be_halved(halved(config, 8))


def test_a_sweep_tries_a_run_again_in_half_the_memory_and_remembers_it(toy: ToySweep) -> None:
    toy.plan({"0.1/0": [MEMORY, MEMORY]})
    batch, sizes = CONFIG.optim.batch_size, list[int | None]()
    engine = Hooked(run=lambda _: sizes.append(engine.job.config["optim"]["micro_batch"]))
    trial = {"algorithm": {"name": "car_ft"}, "optim": {"batch_size": batch}, "device": "cpu"}
    assert toy.run(engine, trial=trial, **ALONE).state == "done"
    assert sizes == [None, batch // 2, batch // 4, None]
    retried = toy.ledger().trials()[0]
    state = state_of(toy, retried.runs["0"])
    assert (retried.state, state.attempts, state.halvings) == ("complete", 3, 2)


def test_a_full_disk_is_not_tried_again_and_breaks_at_once() -> None:
    for message in (
        "OSError: [Errno 28] No space left on device: 'w.safetensors'",
        "OSError: [Errno 122] Disk quota exceeded: 'checkpoint.pt'",
    ):
        full = failure("crashed", message)
        decided = RetryPolicy(Retries(crashed=5)).decide("d", full, CONFIG)
        assert decided == GiveUp("the disk is full")
        for limit in (0, 5):
            broken = CircuitBreaker(limit).failed(full, "trial 0")
            assert broken == f"the disk is full ({message})"
    other = failure("crashed", "OSError: else")
    assert RetryPolicy(Retries(crashed=1)).decide("d", other, CONFIG) == Retry(halve=False)


BREAKING: dict[str, tuple[int, str, bool]] = {
    "one cause in a row": (3, "crashed a, crashed b, crashed b, crashed b", True),
    "another cause": (2, "crashed a, crashed b, crashed a", False),
    "other numbers": (2, "out_of_memory 3 GiB, out_of_memory 41 GiB", True),
    "a success": (2, "crashed a, success, crashed a", False),
    "seeds of one setting": (2, "nan 0, nan 0, nan 0, nan 0", False),
    "two settings": (2, "nan 0, nan 0, nan 0, nan 1", True),
    "never": (0, ", ".join(["crashed a"] * 20), False),
}
"""A limit, what happens in a row, and whether the sweep breaks at the last of it."""


@pytest.mark.parametrize("case", BREAKING)
def test_the_breaker_wants_one_cause_in_a_row(case: str) -> None:
    limit, story, breaks = BREAKING[case]
    breaker, answers = CircuitBreaker(limit), list[str | None]()
    for number, event in enumerate(story.split(", ")):
        kind, _, cause = event.partition(" ")
        if kind == "success":
            breaker.succeeded()
        elif kind == "nan":
            answers.append(breaker.failed(failure("nan", "loss is nan"), f"trial {cause}"))
        else:
            answers.append(breaker.failed(failure(kind, f"OSError: {cause}"), f"trial {number}"))
    assert answers[:-1] == [None] * (len(answers) - 1)
    assert (answers[-1] is not None) == breaks
    reason = f"{limit} runs in a row failed for one cause ({kind}): "
    assert not breaks or str(answers[-1]).startswith(reason)


def test_a_lone_node_on_which_all_fails_breaks_the_sweep() -> None:
    breaker = CircuitBreaker(3)
    breaker.usable(["bad"])
    messages = [breaker.failed(failure("crashed", why, "bad"), "s") for why in "abc"]
    reason = "3 runs in a row failed on bad, the last one (crashed): c"
    assert messages == [None, None, reason]
    assert breaker.bad_nodes() == {}


def test_failures_that_follow_one_node_of_several_stop_new_runs_there_and_not_the_sweep() -> None:
    breaker = CircuitBreaker(5)
    assert breaker.usable(["bad", "good"]) == {"bad", "good"}
    for number in range(20):
        assert breaker.failed(failure("crashed", "Xid 79", "bad"), f"trial {number}") is None
        assert ("bad" in breaker.usable(["bad", "good"])) == (number < 2)
    assert breaker.bad_nodes() == {"bad": "crashed: Xid 79"}
    broken = [breaker.failed(failure("crashed", "Xid 79", "good"), f"new {n}") for n in range(3)]
    reason = "no node is left on which runs succeed, the last one good: (crashed) Xid 79"
    assert broken == [None, None, reason]


def test_failures_that_follow_a_setting_or_are_amid_successes_leave_a_node_alone() -> None:
    breaker, nodes = CircuitBreaker(5), ["a", "b"]
    breaker.usable(nodes)
    for _ in range(3):
        assert breaker.failed(failure("crashed", "KeyError", "a"), "trial 0") is None
    assert breaker.usable(nodes) == {"b"}
    assert breaker.failed(failure("crashed", "ValueError", "b"), "trial 0") is None
    assert breaker.usable(nodes) == {"a", "b"}
    breaker = CircuitBreaker(5)
    breaker.usable(nodes)
    for number in range(6):
        breaker.failed(failure("crashed", f"cause {'abcdef'[number]}", "a"), f"trial {number}")
        breaker.succeeded("ray:a:1" if number % 2 else "ray:b:1")
    assert breaker.bad_nodes() == {}


@pytest.mark.parametrize("limit", [0, 5])
def test_a_node_that_can_serve_nothing_is_left_out_at_once_and_costs_no_attempt(limit: int) -> None:
    unfit = Failure("crashed", "does not share", node="bad", unfit=True)
    assert RetryPolicy(Retries(crashed=0)).decide("d", unfit, CONFIG) == Retry(halve=False)
    breaker = CircuitBreaker(limit)
    breaker.usable(["bad", "good"])
    assert breaker.failed(unfit, "s") is None
    assert breaker.usable(["bad", "good"]) == {"good"}
    assert "no node is left" in str(breaker.failed(replace(unfit, node="good"), "s"))


@pytest.mark.parametrize(
    ("breaker", "queued"), [(4, []), (5, ["killed"])], ids=["at an end", "before a retry"]
)
def test_a_sweep_that_only_fails_is_given_up_and_can_go_on(
    toy: ToySweep, breaker: int, queued: list[str]
) -> None:
    weights = {"algorithm.kl_weight": {"values": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}}
    toy.plan({f"{w}/0": [CRASH] * 2 for w in weights["algorithm.kl_weight"]["values"]})
    ended = toy.run(parameters=weights, breaker=breaker, **ALONE)
    reason = f"{breaker} runs in a row failed for one cause (crashed): KeyError: 'weights'"
    assert (ended.state, ended.broken) == ("failed", reason)
    assert any(line.startswith("The sweep was stopped: ") for line in toy.lines)
    assert [t.state for t in toy.ledger().trials()][:2] == ["failed"] * 2
    assert [run.state for run in toy.tracked().values()] == ["failed"] * 2 + queued
    assert toy.tracker.runs[RunKey("toy")].state == "failed"
    toy.plan({})
    assert toy.run(parameters=weights, breaker=breaker, **ALONE).state == "done"
    assert [t.state for t in toy.ledger().trials()] == ["complete"] * 6

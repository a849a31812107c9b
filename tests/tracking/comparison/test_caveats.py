"""Rows that were measured under different facts are told apart by what differs, readably."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from carft_sweep.tracking.comparison import caveats
from carft_sweep.tracking.comparison.compare import compare
from carft_sweep.tracking.comparison.runs import Arm, RunRecord, group
from tests.tracking.made_up import arm, metrics, run, zero_shot

SQUARE = "Transform(size=32, mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0), interpolation='bicubic')"
LARGE = SQUARE.replace("32", "224")
FACTS: dict[str, object] = {
    "data": "d1" * 32,
    "model": "e1" * 32,
    "transform": SQUARE,
    "augmentation": "Augmentation(crop='area', area=(0.9, 1.0), flip=0.0)",
    "budget": "10 epochs",
    "precision": "fp32",
    "device": "cpu",
    "revision": "c1" * 32,
    "versions": {"torch": "2.9.0", "open_clip_torch": "3.2.0"},
}


def mixed_facts(arms: Sequence[Arm]) -> tuple[str, ...]:
    return tuple(caveats.mixed_facts(arms))


def said(changes: dict[str, Any], **kept: Any) -> tuple[str, ...]:
    """Of CAR-FT whose facts differ from fine-tuning's by `changes`."""
    changed = {name: value for name, value in {**FACTS, **changes}.items() if value is not None}
    runs = arm("fine_tune", [0.6] * 2, [0.3] * 2, facts={**FACTS, **kept})
    runs += arm("car_ft", [0.6] * 2, [0.3] * 2, trial=0, facts={**changed, **kept})
    arms = group([zero_shot(facts={**FACTS, "budget": None, "augmentation": None}), *runs])
    return mixed_facts(arms)


@pytest.mark.parametrize(
    ("fact", "value", "named", "was", "now"),
    [
        ("data", "d2" * 32, "data", "d1d1d1d1d1d1", "d2d2d2d2d2d2"),
        ("transform", LARGE, "image transforms", "size=32", "size=224"),
        ("precision", "bf16", "precisions", "fp32", "bf16"),
        ("revision", "c2" * 32, "versions of the code", "c1c1c1c1c1c1", "c2c2c2c2c2c2"),
    ],
)
def test_a_difference_is_named_with_its_values_and_rows(
    fact: str, value: str, named: str, was: str, now: str
) -> None:
    assert said({}) == ()
    assert said({fact: value}) == (
        f"mixed {named}, these rows are not comparable: {was} in zero_shot, fine_tune; "
        f"{now} in car_ft",
    )


def test_a_budget_is_compared_among_those_that_train() -> None:
    assert said({"budget": "20 epochs"}) == (
        "mixed training budgets, these rows are not comparable: 10 epochs in fine_tune; "
        "20 epochs in car_ft",
    )
    one = [zero_shot(facts={"budget": "0"}), run("a", 0, metrics(0.6, 0.3), facts=FACTS)]
    assert mixed_facts(group(one)) == ()


def test_another_version_of_a_package_may_give_other_numbers() -> None:
    assert said({"versions": {"torch": "2.10.0", "open_clip_torch": "3.2.0"}}) == (
        "mixed versions of torch, which may give other numbers: 2.9.0 in zero_shot, fine_tune; "
        "2.10.0 in car_ft",
    )
    assert said({"versions": {"torch": "2.9.0"}}) == ()
    assert said({"versions": "unreadable"}) == ()


def test_an_algorithms_own_code_is_compared_with_itself_only() -> None:
    assert said({"own_code": "a2" * 32}) == ()
    runs = [
        run("car_ft", 0, metrics(0.6, 0.3), trial=trial, params={"lr": trial}, facts=facts)
        for trial, facts in enumerate(
            ({**FACTS, "own_code": "a1" * 32}, {**FACTS, "own_code": "a2" * 32})
        )
    ]
    assert mixed_facts(group(runs)) == (
        "mixed versions of car_ft, these rows are not comparable: a1a1a1a1a1a1 in car_ft lr=0; "
        "a2a2a2a2a2a2 in car_ft lr=1",
    )


def by_seed(algorithm: str, *digests: str, trial: int | None = None, split: int = 0) -> list[Any]:
    return [
        run(
            algorithm,
            seed,
            metrics(0.6, 0.3),
            trial=trial,
            facts={"data": digest, "split": seed + split},
        )
        for seed, digest in enumerate(digests)
    ]


def test_data_that_differ_by_seed_alone_are_mixed_only_where_the_split_does_not_follow_it() -> None:
    own = [*by_seed("fine_tune", "a", "b"), *by_seed("car_ft", "a", "b", trial=0)]
    assert mixed_facts(group(own)) == ()
    fixed = [*by_seed("fine_tune", "a", "b", split=7), *by_seed("car_ft", "a", "b", trial=0)]
    assert any(text.startswith("mixed data") for text in mixed_facts(group(fixed)))
    other = [*by_seed("fine_tune", "a", "b"), *by_seed("car_ft", "a", "c", trial=0)]
    assert mixed_facts(group(other)) == (
        "mixed data, these rows are not comparable: b in fine_tune; c in car_ft",
    )


def test_data_are_named_by_family_version_and_the_beginning_of_their_digest() -> None:
    named = {"family": "icon_shift v2", "data": "a1b2c3" + "0" * 58}
    runs = [zero_shot(facts=named), *arm("fine_tune", [0.6] * 2, [0.3] * 2, facts=named)]
    assert caveats.datasets(runs) == ("icon_shift v2 a1b2c3",)
    assert caveats.datasets([run("fine_tune", 0, facts=named)]) == (), "nothing was measured"
    assert caveats.datasets([zero_shot()]) == ()


def test_data_that_differ_are_all_named_and_those_of_a_mean_over_tasks_too() -> None:
    def on(family: str | None, digest: str, seed: int) -> RunRecord:
        facts = {"data": digest * 32} | ({} if family is None else {"family": family})
        return run("fine_tune", seed, metrics(0.6, 0.3), facts=facts)

    by_seed = [on("pacs v1", f"{seed}f", seed) for seed in range(5)]
    assert caveats.datasets(by_seed) == ("pacs v1 0f0f0f, 1f1f1f, 2f2f2f, 2 more",)
    parts = {"dtd": on("dtd v1", "1a", 0), "eurosat": on("eurosat v3", "2b", 0)}
    both = run("fine_tune", 0, metrics(0.6, 0.3), parts=parts, facts={"data": "3c" * 32})
    assert caveats.datasets([both]) == ("dtd v1 1a1a1a", "eurosat v3 2b2b2b")
    assert caveats.datasets([on(None, "4d", 0)]) == ("data 4d4d4d",)


def test_a_seed_that_diverged_is_named_and_a_spread_is_not() -> None:
    oods = [0.35, 0.352, 0.349, 0.351, 0.15]
    runs = [
        *arm("fine_tune", [0.6, 0.61, 0.6, 0.59, 0.6], oods),
        *arm("car_ft", [0.6] * 5, [0.4] * 5),
    ]
    named = [text for text in compare(runs, sweep="s").warnings if "diverged" in text]
    assert named == [
        "seed 4 of fine_tune lies -20.0 pp off the median of its seeds in ood/mean/top1: a run "
        "that diverged hides differences"
    ]

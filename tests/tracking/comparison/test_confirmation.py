"""Chosen settings are judged on their fresh seeds when all of these are there, and not before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.tracking.made_up import KL, arm, bent, kl_sweep, metrics, run, zero_shot
from tracking.comparison.compare import Comparison, compare
from tracking.comparison.runs import RunRecord
from tracking.comparison.spec import ComparisonSpec
from tracking.report.formats import to_json

FRESH = (5, 6, 7, 8, 9)
WOBBLE = (0.0, 0.003, -0.002, 0.001, 0.004)


def fresh(
    algorithm: str, test: float, ood: float, seeds: Sequence[int] = FRESH, **more: Any
) -> list[RunRecord]:
    return [
        run(
            algorithm,
            seed,
            metrics(test + w, ood + w / 3),
            role="confirmation",
            merges=bent(test + w, ood + w / 3),
            **more,
        )
        for seed, w in zip(seeds, WOBBLE, strict=False)
    ]


CHOSEN: dict[str, Any] = {"params": {KL: 1.0}}
CONFIRMED = [*fresh("fine_tune", 0.65, 0.34), *fresh("car_ft", 0.65, 0.341, **CHOSEN)]


def compared(more: Sequence[RunRecord], seeds: tuple[int, ...] | None = FRESH) -> Comparison:
    return compare([*kl_sweep(), *more], ComparisonSpec(confirm_seeds=seeds), sweep="s")


def test_without_fresh_seeds_nothing_is_said_of_them() -> None:
    found = compare(kl_sweep(), sweep="s")
    assert found.fresh_seeds == ()
    assert "fresh" not in found.verdict
    assert to_json(found)["fresh_seeds"] == ()


@pytest.mark.parametrize("seeds", [FRESH, None], ids=["asked", "those that occur"])
def test_the_fresh_runs_alone_are_judged(seeds: tuple[int, ...] | None) -> None:
    lucky, honest = compare(kl_sweep(), sweep="s"), compared(CONFIRMED, seeds)
    assert lucky.verdicts[0].outcome == "better"
    finding = honest.verdicts[0]
    assert (finding.outcome, finding.pair.seeds) == ("no_difference", FRESH)
    assert finding.pair.ood is not None
    assert finding.pair.ood.mean == pytest.approx(0.001)
    assert honest.fresh_seeds == FRESH
    assert "car_ft kl_weight=1 " in honest.sentences[0]
    assert "over 5 fresh seeds" in honest.sentences[0]
    assert "(confirmed)" not in honest.verdict
    assert honest.sentences[-1] == (
        "The settings were chosen on seeds 0 to 4 and judged on seeds 5 to 9, which no choice has "
        "seen."
    )


def test_the_whole_sweep_stays_and_fresh_rows_are_marked() -> None:
    before, after = compare(kl_sweep(), sweep="s"), compared(CONFIRMED)
    tuned = [row for row in after.rows if not row.arm.confirms]
    assert to_json(replace(after, rows=tuple(tuned)))["rows"] == to_json(before)["rows"]
    assert after.selected == before.selected
    assert after.seeds == before.seeds
    assert after.rivals == before.rivals
    assert after.budgets == before.budgets
    rows = [row for row in after.rows if row.arm.confirms]
    assert all(row.marks == ("confirmed",) for row in rows)
    assert [row.arm.label for row in rows if row.arm.merge is None] == [
        "car_ft kl_weight=1 (confirmed)",
        "fine_tune (confirmed)",
    ]
    assert not any(row.selected for row in rows)


def test_the_alpha_is_the_one_chosen_on_the_other_seeds() -> None:
    found = compared(CONFIRMED)
    alphas = {row.arm.label: row.arm.merge for row in found.rows if row.chosen and row.arm.merge}
    assert alphas["fine_tune (confirmed) + wise_ft@0.75"] == "wise_ft@0.75"
    assert "fine_tune + wise_ft@0.75" in alphas
    merged = found.verdicts[0].merged["wise_ft"]
    assert merged.seeds == FRESH
    assert {curve.label for curve in found.curves} == {
        "fine_tune (confirmed)",
        "car_ft kl_weight=1 (confirmed)",
    }


@pytest.mark.parametrize(
    ("more", "done"),
    [
        ([], 0),
        (fresh("car_ft", 0.65, 0.341, **CHOSEN), 5),
        (CONFIRMED[:-1], 9),
        ([*CONFIRMED[:-1], run("car_ft", 9, role="confirmation", **CHOSEN)], 9),
        ([*CONFIRMED[:5], *fresh("car_ft", 0.65, 0.341, params={KL: 3.0})], 5),
    ],
    ids=["none", "one algorithm", "a seed less", "a failed seed", "another setting"],
)
def test_as_long_as_one_is_lacking_the_seeds_of_the_choice_are_judged(
    more: list[RunRecord], done: int
) -> None:
    found = compared(more)
    assert found.fresh_seeds == ()
    assert found.verdicts[0].pair.seeds == (0, 1, 2, 3, 4)
    assert found.sentences[:-1] == compare(kl_sweep(), sweep="s").sentences
    assert found.sentences[-1] == (
        f"Not confirmed yet: {done} of 10 runs on seeds 5 to 9 are done, so this is judged on the "
        "seeds that the settings were chosen on."
    )


def test_zero_shot_needs_no_confirmation_as_a_reference() -> None:
    runs = [zero_shot(ood=0.3), *arm("car_ft", [0.6] * 2, [0.35, 0.36], trial=0)]
    found = compare(
        [*runs, *fresh("car_ft", 0.6, 0.35)],
        ComparisonSpec(reference="zero_shot", confirm_seeds=FRESH),
        sweep="s",
    )
    assert found.verdicts[0].pair.seeds == FRESH
    assert "over 5 fresh seeds" in found.verdict


def test_a_sweep_of_one_algorithm_tells_its_gain_on_fresh_seeds() -> None:
    runs = [zero_shot(), *arm("car_ft", [0.6] * 2, [0.35, 0.36], trial=0)]
    found = compare(
        [*runs, *fresh("car_ft", 0.6, 0.4)], ComparisonSpec(confirm_seeds=FRESH), sweep="s"
    )
    assert "Against zero-shot its OOD mean is +2.04 pp" in found.verdict
    assert "compare car_ft with" in found.verdict


def test_few_fresh_seeds_are_too_few() -> None:
    runs = [*fresh("fine_tune", 0.65, 0.34, (7, 9)), *fresh("car_ft", 0.65, 0.35, (7, 9), **CHOSEN)]
    found = compared(runs, (7, 9))
    assert found.verdict.startswith("Inconclusive: 2 common fresh seeds, 5 required. ")
    assert "judged on seeds 7, 9," in found.verdict

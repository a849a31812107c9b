"""Each varied field has a sentence: what OOD and ID do, how sure, and which value is selected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import pytest

from carft_sweep.tracking.comparison.compare import Comparison, compare
from carft_sweep.tracking.comparison.effects import Effect
from carft_sweep.tracking.comparison.runs import RunRecord, Scalar
from carft_sweep.tracking.comparison.sentences import with_interval
from carft_sweep.tracking.comparison.spec import ComparisonSpec
from carft_sweep.tracking.comparison.statistics import ALPHA, Estimate, PairedTest
from tests.tracking.made_up import KL, metrics, run, zero_shot

LR = "optim.lr"
WORDS = "prompts.contexts"
WOBBLE = [0.0, 0.004, -0.003, 0.002, -0.001]


def sweep(
    points: Sequence[dict[str, Scalar]],
    accuracies: Callable[[dict[str, Scalar]], tuple[float, float]],
    seeds: int = 5,
    noise: float = 0.001,
) -> Comparison:
    """CAR-FT at each point: (ID, OOD), common seeds apart by WOBBLE, and noise of its own."""
    rng = np.random.default_rng(0)
    runs: list[RunRecord] = [zero_shot()]
    for trial, point in enumerate(points):
        test, ood = accuracies(point)
        for seed in range(seeds):
            a, b = rng.normal(0, noise, 2)
            measured = metrics(test + WOBBLE[seed] + a, ood + WOBBLE[seed] + b)
            runs.append(run("car_ft", seed, measured, trial=trial, params=point))
    return compare(runs, sweep="s")


def over(*weights: float) -> list[dict[str, Scalar]]:
    return [{KL: weight} for weight in weights]


def only(comparison: Comparison) -> Effect:
    (effect,) = comparison.answer.effects
    return effect


def line(comparison: Comparison) -> str:
    return comparison.answer.lines[-1]


def test_the_lowest_value_is_compared_with_the_highest_paired_by_seed() -> None:
    comparison = sweep(over(10.0, 0.3, 1.0), lambda it: (0.6, 0.38 + 0.002 * float(it[KL] or 0)))
    effect = only(comparison)
    assert [level.value for level in effect.levels] == [0.3, 1.0, 10.0]
    runs = {row.arm.label: row.arm for row in comparison.rows}
    values = [runs[f"car_ft kl_weight={it}"].values("ood/mean/top1") for it in ("10", "0.3")]
    expected = [values[0][seed] - values[1][seed] for seed in range(5)]
    assert effect.difference.differences == pytest.approx(expected)
    assert effect.interval == pytest.approx(Estimate(tuple(expected)).ci95)
    assert line(comparison).startswith("kl_weight 0.3 to 10: OOD mean rises from 38.")
    assert "; ID test is unchanged within 0.5 pp, " in line(comparison)
    assert with_interval(effect.difference.mean, effect.interval) in line(comparison)
    assert "]; on these test images, over 5 seeds; " in line(comparison)
    assert " is selected by id/val/top1." in line(comparison)


def test_a_fall_of_id_is_said_and_the_selected_end_is_called_so() -> None:
    comparison = sweep(
        over(0.3, 3.0),
        lambda it: (0.65 - 0.01 * float(it[KL] or 0), 0.38 + 0.002 * float(it[KL] or 0)),
    )
    assert "; ID test falls from 64.8 to 62.0, -2.80 pp [" in line(comparison)
    assert line(comparison).endswith("; 0.3, the smallest, is selected by id/val/top1.")


def test_of_a_grid_the_other_fields_are_averaged() -> None:
    points: list[dict[str, Scalar]] = [
        {KL: weight, LR: lr} for weight, lr in product((0.1, 1.0), (1e-5, 1e-4, 1e-3))
    ]
    comparison = sweep(points, lambda it: (0.6, 0.38 + 0.02 * (it[KL] == 1.0)))
    by_name = {effect.parameter: effect for effect in comparison.answer.effects}
    assert {name: it.settings for name, it in by_name.items()} == {KL: 3, LR: 2}
    assert by_name[KL].difference.mean == pytest.approx(0.02, abs=0.002)
    lines = [text for text in comparison.answer.lines if text.startswith("kl_weight 0.1 to 1: ")]
    assert "over 5 seeds, means over 3 settings of the other fields; " in lines[0]


def test_of_categories_the_best_is_compared_with_the_worst_at_a_stricter_level() -> None:
    points: list[dict[str, Scalar]] = [{WORDS: word} for word in ("openai", "icons", "none")]
    heights = {"openai": 0.38, "icons": 0.40, "none": 0.37}
    comparison = sweep(points, lambda it: (0.6, heights[str(it[WORDS])]))
    effect = only(comparison)
    assert [level.value for level in effect.levels] == ["none", "openai", "icons"]
    assert effect.interval == PairedTest(effect.difference.differences).interval(1 - ALPHA / 3)
    assert line(comparison).startswith(
        "contexts: OOD mean is highest with icons (40.0) and lowest with none (37.1), +2.97 pp ["
    )
    assert "] (interval of 98.33 %); " in line(comparison)


@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_few_seeds_claim_nothing(seeds: int) -> None:
    comparison = sweep(over(0.1, 1.0), lambda it: (0.6, 0.3 + 0.1 * float(it[KL] or 0)), seeds)
    text = line(comparison)
    assert text.startswith("kl_weight 0.1 to 1: OOD mean goes from ")
    assert f", over {seeds} seed{'' if seeds == 1 else 's'}; a claim needs 5 seeds; " in text
    assert ("[" in text) == (seeds >= 3)


def random_points(count: int) -> list[dict[str, Scalar]]:
    rng = np.random.default_rng(1)
    return [
        {KL: float(10**weight), LR: float(10**rate), WORDS: word}
        for weight, rate, word in zip(
            rng.uniform(-1, 1, count),
            rng.uniform(-5, -3, count),
            rng.choice(["openai", "icons"], count),
            strict=True,
        )
    ]


def test_fields_that_never_vary_alone_have_no_effect() -> None:
    comparison = sweep(random_points(12), lambda it: (0.6, 0.3 + 0.001 * float(it[KL] or 0)))
    assert comparison.answer.effects == ()
    for name in ("contexts", "kl_weight", "lr"):
        (sentence,) = (t for t in comparison.statistics if t.startswith("No comparison of "))
        assert name in sentence.partition(":")[0]


@pytest.mark.parametrize("longer", [0, 1])
def test_settings_are_compared_on_the_seeds_that_all_have(longer: int) -> None:
    runs = [
        run(
            "car_ft",
            seed,
            metrics(0.6, 0.3 + weight / 10 + seed**2 / 100),
            trial=trial,
            params={KL: weight},
        )
        for trial, weight in enumerate((1.0, 3.0))
        for seed in range(6 if trial == longer else 5)
    ]
    effect = only(compare(runs, ComparisonSpec(seeds=tuple(range(5))), sweep="s"))
    assert [level.endpoint for level in effect.levels] == pytest.approx([0.46, 0.66])


def test_a_setting_that_lacks_a_seed_is_left_out() -> None:
    runs: list[RunRecord] = []
    for trial, weight in enumerate((0.1, 1.0, 3.0)):
        for seed, wobble in enumerate(WOBBLE):
            measured = None if (weight, seed) == (3.0, 2) else metrics(0.6 + wobble, 0.4 + wobble)
            runs.append(run("car_ft", seed, measured, trial=trial, params={KL: weight}))
    effect = only(compare(runs, sweep="s"))
    assert [level.value for level in effect.levels] == [0.1, 1.0]

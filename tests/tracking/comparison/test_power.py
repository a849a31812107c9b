"""Whether a comparison finds what `Power` says that it finds, as often as it says."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from statsmodels.stats.power import TTestPower

from carft_sweep.tracking.comparison.power import MOST_SEEDS, POWER, UNIT_SPREAD, Power
from carft_sweep.tracking.comparison.statistics import ImageError, PairedTest

DRAWS = 4000
SLACK = 4 * math.sqrt(POWER * (1 - POWER) / DRAWS)
"""Four standard errors of a share of `DRAWS`: 2.5 points."""
OF_SEEDS = 0.0055
"""Standard deviation over seeds of the paired OOD differences in the shipped sweep."""


def of_images(error: float, freedom: int = 99) -> ImageError:
    """Return the variance of a standard error over drawings."""
    return ImageError(error**2, freedom, units=737, images=2204)


def share_found(power: Power, difference: float, seeds: int, seed: int) -> float:
    """Test measured differences with this true one, and return in how many draws it is found."""
    rng = np.random.default_rng(seed)
    over_seeds = power.of_seeds * rng.normal(size=(DRAWS, seeds))
    images = power.images
    error = 0.0 if images is None else math.sqrt(images.variance)
    over_images = error * rng.normal(size=(DRAWS, 1))
    scale = np.ones(DRAWS) if images is None else rng.chisquare(images.freedom, DRAWS)
    count = 0
    for values, chi in zip(difference + over_images + over_seeds, scale, strict=True):
        seen = images and images._replace(variance=images.variance * chi / images.freedom)
        interval = PairedTest(tuple(values.tolist()), images=seen).interval(power.level)
        count += interval is not None and interval.low > 0
    return count / DRAWS


WORLDS = {
    "five seeds, these images": (Power(OF_SEEDS, None), 5),
    "ten seeds, these images": (Power(OF_SEEDS, None), 10),
    "three seeds": (Power(OF_SEEDS, None), 3),
    "five seeds, Holm over four arms": (Power(OF_SEEDS, None, 1 - 0.05 / 4), 5),
    "images as in the shipped sweep": (Power(OF_SEEDS, of_images(0.005)), 5),
    "few images": (Power(OF_SEEDS, of_images(0.02, 11)), 5),
    "nearly no error of images": (Power(OF_SEEDS, of_images(0.0005)), 5),
    "images and Holm": (Power(OF_SEEDS, of_images(0.005), 1 - 0.05 / 4), 20),
}


@pytest.mark.parametrize(("power", "seeds"), WORLDS.values(), ids=WORLDS)
def test_the_smallest_difference_is_found_in_four_of_five_cases(power: Power, seeds: int) -> None:
    share = share_found(power, power.smallest_difference(seeds), seeds, seed=seeds)
    assert abs(share - POWER) < SLACK


@pytest.mark.parametrize("name", [name for name, (power, _) in WORLDS.items() if not power.images])
def test_without_images_it_is_the_power_of_a_paired_t_test(name: str) -> None:
    power, seeds = WORLDS[name]
    effect = TTestPower().solve_power(
        nobs=seeds, alpha=(1 - power.level) / 2, power=POWER, alternative="larger"
    )
    assert power.smallest_difference(seeds) == pytest.approx(effect * OF_SEEDS, rel=1e-5)


@pytest.mark.parametrize(
    ("power", "difference"),
    [
        (Power(OF_SEEDS, None), 0.005),
        (Power(OF_SEEDS, of_images(0.003)), 0.01),
        (Power(OF_SEEDS, of_images(0.0005), 1 - 0.05 / 4), 0.006),
    ],
    ids=["these images", "images", "images and Holm"],
)
def test_so_many_seeds_find_a_difference_in_four_of_five_cases_and_one_fewer_does_not(
    power: Power, difference: float
) -> None:
    seeds = power.seeds_for(difference, first=5)
    assert seeds is not None
    assert seeds > 5
    assert power.smallest_difference(seeds) <= difference < power.smallest_difference(seeds - 1)
    assert share_found(power, difference, seeds, seed=1) > POWER - SLACK
    assert share_found(power, difference, seeds - 1, seed=2) < POWER + SLACK
    assert power.seeds_for(difference, first=seeds + 3) == seeds + 3


def test_no_number_of_seeds_makes_up_for_too_few_images() -> None:
    power = Power(OF_SEEDS, of_images(0.005))
    assert power.seeds_for(0.01, first=5) is None
    share = share_found(power, 0.01, MOST_SEEDS, seed=1)
    assert share < 0.6
    assert share_found(power, 0.01, 20, seed=2) > share - 0.1


def test_the_expected_error_over_images_is_that_of_units_that_vary_by_themselves() -> None:
    alone = Power.expected([[str(n) for n in range(400)]], of_seeds=0.01)
    assert alone.images is not None
    assert alone.images.variance == pytest.approx(UNIT_SPREAD**2 / 400)
    # Six views of a drawing are no more than one, and a second shift of other drawings halves it.
    views = Power.expected([[str(n // 6) for n in range(2_400)]], of_seeds=0.01)
    other = [[str(n) for n in range(400)], [str(n) for n in range(400, 800)]]
    both = Power.expected(other, of_seeds=0.01)
    assert views.images is not None
    assert both.images is not None
    assert views.images.variance == pytest.approx(alone.images.variance)
    assert both.images.variance == pytest.approx(alone.images.variance / 2)


def test_the_chance_of_the_smallest_difference_is_eighty_percent() -> None:
    power = Power.expected([[str(n) for n in range(400)]], of_seeds=0.005)
    assert power.chance(power.smallest_difference(7), 7) == pytest.approx(0.8, abs=1e-6)
    # What is tested lies below the true difference.
    lower = replace(power, slack=0.002)
    assert lower.smallest_difference(7) == pytest.approx(power.smallest_difference(7) + 0.002)
    assert lower.chance(0.012, 7) == pytest.approx(power.chance(0.01, 7))


def test_the_errors_of_measured_differences_are_their_own() -> None:
    values = (0.01, 0.013, 0.008, 0.012, 0.011)
    power = Power.of(PairedTest(values, images=of_images(0.003)), 0.99)
    assert power is not None
    assert power.of_seeds == pytest.approx(np.std(values, ddof=1))
    assert (power.images, power.level) == (of_images(0.003), 0.99)

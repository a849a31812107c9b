"""Intervals, tests and power agree with published examples, other people's code and simulation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from carft_sweep.tracking.comparison import statistics
from carft_sweep.tracking.comparison.power import MOST_SEEDS, POWER, UNIT_SPREAD, Power
from carft_sweep.tracking.comparison.statistics import Estimate, ImageError, Interval, PairedTest
from tests.tracking.made_up import known

holm = statistics.holm
# Cushny and Peebles' sleep data, on which Student showed his t in 1908.
SLEEP = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
SLEEP_OTHER = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]


def paired(first: Sequence[float], second: Sequence[float]) -> PairedTest:
    return PairedTest(tuple(own - other for own, other in zip(first, second, strict=True)))


accuracy = st.floats(0, 1).map(lambda value: round(value, 6))
accuracies = st.lists(accuracy, min_size=3, max_size=12)


def test_students_own_data_gives_students_t() -> None:
    result = paired(SLEEP, SLEEP_OTHER)
    assert (len(result.differences), result.mean) == (10, pytest.approx(1.58))
    assert result.p == pytest.approx(0.00283289, abs=1e-8)
    assert result.ci95 == pytest.approx((0.7001142, 2.4598858), abs=1e-6)


@given(accuracies)
def test_intervals_are_those_of_scipy(values: list[float]) -> None:
    interval = known(Estimate(tuple(values)).ci95)
    error = float(np.std(values, ddof=1) / math.sqrt(len(values)))
    if error < 1e-9:
        assert interval.low == pytest.approx(interval.high, abs=1e-9)
        return
    expected = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=error)
    assert interval == pytest.approx(expected, abs=1e-9)
    for bound in (0.0, 0.4):
        one_sided = stats.ttest_1samp(values, bound, alternative="greater")
        assert PairedTest(tuple(values)).p_above(bound) == pytest.approx(one_sided.pvalue, abs=1e-9)


def test_an_interval_needs_three_values_and_a_mean_one_of_each_seed() -> None:
    for values in ((), (0.5,), (0.5, 0.6), (0.5, 0.6, 0.7, None)):
        assert Estimate(values).ci95 is None
    assert Estimate((0.5, None, 0.6)).mean is Estimate(()).mean is None
    whole = Estimate((0.5, 0.6, 0.7))
    assert whole.mean == pytest.approx(0.6)
    assert whole.half_width == pytest.approx(4.302653 * 0.1 / math.sqrt(3), abs=1e-6)


@given(st.lists(st.tuples(accuracy, accuracy), min_size=1, max_size=8))
def test_a_paired_difference_turns_its_sign_with_its_sides(pairs: list[tuple]) -> None:
    first, second = zip(*pairs, strict=True)
    forward, backward = paired(first, second), paired(second, first)
    assert forward.mean == -backward.mean
    assert forward.differences == tuple(-d for d in backward.differences)
    assert (forward.p, forward.p_above(0.0)) == (backward.p, backward.p_below(0.0))
    turned = forward.ci95 and Interval(-forward.ci95.high, -forward.ci95.low)
    assert backward.ci95 == turned


@pytest.mark.parametrize(("step", "spreads"), [(0.0, True), (0.009, True), (0.01, False)])
def test_differences_spread_if_they_do_by_more_than_one_image(step: float, spreads: bool) -> None:
    result = PairedTest((0.02, 0.03, 0.02, 0.025), step)
    assert result.spreads == spreads
    assert (result.p is not None) == (result.ci95 is not None) == spreads


@pytest.mark.parametrize("width", [0.5e-12, 0.99e-12, 1.01e-12, 1.5e-12, 1.99e-12, 2.5e-12])
def test_differences_near_float_rounding_have_an_error_exactly_if_they_spread(width: float) -> None:
    result = PairedTest((0.0, width, width / 2))
    assert result.spreads == (width > 1e-12)
    assert (result.error.size > 0) == result.spreads
    assert (result.p is not None) == (result.ci95 is not None) == result.spreads


def test_holms_adjustment_is_the_textbooks() -> None:
    # The example of the encyclopaedias, and R's p.adjust(c(.01, .04, .03, .005), "holm").
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert (holm([]), holm([0.2]), holm([0.02, None, 0.01])) == ((), (0.2,), (0.04, None, 0.03))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_other_peoples_and_lies_between_the_raw_and_bonferronis(raw: list[float]) -> None:
    rejected, adjusted, *_ = multipletests(raw, alpha=0.05, method="holm")
    assert holm(raw) == pytest.approx(adjusted, abs=1e-12)
    assert [known(q) < 0.05 for q in holm(raw)] == [*rejected]
    pairs = [(p, known(q)) for p, q in zip(raw, holm(raw), strict=True)]
    assert all(p <= q <= min(1.0, len(raw) * p) for p, q in pairs)
    assert [q for _, q in sorted(pairs)] == sorted(q for _, q in pairs)


images = st.builds(
    lambda se, freedom: ImageError(se**2, freedom, freedom + 1, freedom + 1),
    st.floats(1e-4, 0.5),
    st.integers(1, 2_000),
)
spread = st.lists(st.integers(-400, 400), min_size=3, max_size=10).filter(
    lambda values: max(values) > min(values)
)
tests = st.builds(
    lambda values, images: PairedTest(tuple(v / 1_000 for v in values), images=images),
    spread,
    st.none() | images,
)
levels = st.floats(0.5, 0.9999)


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=9), st.lists(st.floats(-1, 1), min_size=3))
def test_seeds_and_images_together_are_welchs_test(seeds: list[float], images: list[float]) -> None:
    # Two independent means: the degrees of freedom of their difference are Satterthwaite's too.
    assume(np.std(seeds) > 1e-3 and np.std(images) > 1e-3)
    count, mean, error = len(images), float(np.mean(images)), float(stats.sem(images))
    of_images = ImageError(error**2, count - 1, count, count)
    test = PairedTest(tuple(value - mean for value in seeds), images=of_images)
    welch = stats.ttest_ind(seeds, images, equal_var=False)
    assert test.error.freedom == pytest.approx(welch.df)
    assert test.p == pytest.approx(welch.pvalue, abs=1e-9)
    assert test.ci95 == pytest.approx(tuple(welch.confidence_interval(0.95)), abs=1e-9)


def test_seeds_and_images_together_are_the_sum_by_hand() -> None:
    # s = 0.01 over 4 seeds: 0.005 over seeds, and 0.012 over images, so 0.013 in all.
    half = 0.01 * math.sqrt(3 / 2)
    values = (0.02 - half, 0.02, 0.02, 0.02 + half)
    test = PairedTest(values, images=ImageError(0.012**2, 99, 100, 100))
    freedom = 0.013**4 / (0.005**4 / 3 + 0.012**4 / 99)
    assert (test.error.size, test.error.freedom) == pytest.approx((0.013, freedom))
    assert test.p == pytest.approx(2 * stats.t.sf(0.02 / 0.013, freedom))


@given(spread, images)
def test_images_only_add_to_the_error_and_their_freedom_is_between(
    values: list[int], of_images: ImageError
) -> None:
    alone = PairedTest(tuple(value / 1_000 for value in values))
    both = replace(alone, images=of_images)
    assert both.error.size >= alone.error.size
    least = min(alone.error.freedom, of_images.freedom)
    assert least - 1e-9 <= both.error.freedom <= alone.error.freedom + of_images.freedom + 1e-9
    none = replace(alone, images=of_images._replace(variance=0.0))
    assert (none.error.size, none.p) == (alone.error.size, pytest.approx(alone.p))


@given(tests, st.floats(-0.5, 0.5))
def test_one_sided_ps_are_tails_of_students_distribution(test: PairedTest, bound: float) -> None:
    own = stats.t(test.error.freedom, loc=test.mean, scale=test.error.size)
    ps = (test.p_above(bound), test.p_below(bound), test.p)
    tails = (own.cdf(bound), own.sf(bound), 2 * min(own.cdf(0), own.sf(0)))
    assert ps == pytest.approx(tails, abs=1e-9)


@given(tests, levels, st.floats(-0.3, 0.3))
def test_an_interval_is_all_that_a_one_sided_test_does_not_reject(
    test: PairedTest, level: float, bound: float
) -> None:
    interval, tail = known(test.interval(level)), (1 - level) / 2
    above, below = known(test.p_above(bound)), known(test.p_below(bound))
    assume(min(abs(above - tail), abs(below - tail)) > 1e-9)
    assert (interval.low > bound) == (above < tail)
    assert (interval.high < bound) == (below < tail)


@given(st.lists(tests, min_size=1, max_size=5))
@example([PairedTest((0.1, 0.11, 0.12)), PairedTest((0.02, 0.021, 0.019))])
def test_the_interval_that_decides_excludes_0_as_the_adjusted_p(compared: list[PairedTest]) -> None:
    ps = [known(test.p) for test in compared]
    for test, p, adjusted in zip(compared, ps, map(known, holm(ps)), strict=True):
        assume(abs(adjusted - 0.05) > 1e-6)
        level = statistics.deciding_level(p, adjusted, len(compared))
        assert 0.95 - 1e-12 <= level <= 1 - 0.05 / len(compared) + 1e-12
        interval = known(test.interval(level))
        assert (interval.low > 0 or interval.high < 0) == (adjusted < 0.05)


def test_the_level_that_decides_is_bonferronis_of_what_the_p_was_multiplied_by() -> None:
    for p, adjusted, count, times in (
        (0.01, 0.03, 3, 3),
        (0.02, 0.03, 3, 1.5),
        (0.02, 0.02, 1, 1),
        # Where nothing is left of a p, and where there is none, it is that of all.
        *((0.5, 1.0, 4, 4), (0.0, 0.0, 4, 4), (None, None, 4, 4)),
    ):
        assert statistics.deciding_level(p, adjusted, count) == pytest.approx(1 - 0.05 / times)


DRAWS = 4000
SLACK = 4 * math.sqrt(POWER * (1 - POWER) / DRAWS)
"""Four standard errors of a share of `DRAWS`: 2.5 points."""
OF_SEEDS = 0.0055
"""Standard deviation over seeds of the paired OOD differences in the shipped sweep."""


def of_images(error: float, freedom: int = 99) -> ImageError:
    """A standard error over drawings."""
    return ImageError(error**2, freedom, units=737, images=2204)


def share_found(power: Power, difference: float, seeds: int, seed: int) -> float:
    """Test measured differences with this true one, and return in how many draws it is found."""
    rng, images = np.random.default_rng(seed), power.images
    over_seeds = power.of_seeds * rng.normal(size=(DRAWS, seeds))
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
    one_sided = {"alpha": (1 - power.level) / 2, "alternative": "larger"}
    effect = TTestPower().solve_power(nobs=seeds, power=POWER, **one_sided)
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
    seeds = known(power.seeds_for(difference, first=5))
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


def test_errors_of_measured_differences_are_their_own_and_the_expected_of_units_that_vary() -> None:
    first = [str(n) for n in range(400)]
    alone = UNIT_SPREAD**2 / 400
    # Six views of a drawing are no more than one, and a second shift of other drawings halves it.
    views, other = [str(n // 6) for n in range(2_400)], [f"other {name}" for name in first]
    for units, variance in (([first], alone), ([views], alone), ([first, other], alone / 2)):
        error = known(Power.expected(units, of_seeds=0.01).images)
        assert error.variance == pytest.approx(variance)
    values = (0.01, 0.013, 0.008, 0.012, 0.011)
    power = known(Power.of(PairedTest(values, images=of_images(0.003)), 0.99))
    assert power.of_seeds == pytest.approx(np.std(values, ddof=1))
    assert (power.images, power.level) == (of_images(0.003), 0.99)


def test_the_chance_of_the_smallest_difference_is_eighty_percent() -> None:
    power = Power.expected([[str(n) for n in range(400)]], of_seeds=0.005)
    assert power.chance(power.smallest_difference(7), 7) == pytest.approx(0.8, abs=1e-6)
    # What is tested lies below the true difference.
    lower = replace(power, slack=0.002)
    assert lower.smallest_difference(7) == pytest.approx(power.smallest_difference(7) + 0.002)
    assert lower.chance(0.012, 7) == pytest.approx(power.chance(0.01, 7))

"""What lies between the measured points of a WiSE-FT curve: bounds from above and from below."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from carft_sweep.tracking.comparison.wise_ft_curve import (
    curve_gain,
    curve_sag,
    highest_on_chords,
    ood_bound,
    ood_floor,
)

Numbers = NDArray[np.float64]
ALPHAS = np.linspace(0, 1, 6)
IDS = 0.4 + 0.1 * ALPHAS
INSIDE = np.linspace(0.401, 0.499, 57)


def bent(by: float) -> Callable[[Numbers], Numbers]:
    """Return a parabola over ID, bent upwards by a positive number."""
    return lambda ids: 0.35 + by * (ids - 0.4) * (0.5 - ids)


@pytest.mark.parametrize("by", [8.0, 1.0, 0.0, -1.0, -8.0])
def test_a_curve_that_is_bent_one_way_lies_between_its_bounds(by: float) -> None:
    curve = bent(by)
    low, high = (bound(IDS, curve(IDS), INSIDE) for bound in (ood_floor, ood_bound))
    assert np.all(low <= curve(INSIDE) + 1e-12)
    assert np.all(high >= curve(INSIDE) - 1e-12)


def test_the_lower_bound_is_the_upper_one_of_the_mirrored_curve() -> None:
    rng = np.random.default_rng(1)
    oods = 0.35 + 0.01 * rng.normal(size=(50, 6))
    ids = np.sort(0.4 + 0.1 * rng.random((50, 6)), axis=-1)
    at = ids[:, :1] + (ids[:, -1:] - ids[:, :1]) * np.linspace(0.01, 0.99, 20)
    assert ood_floor(ids, oods, at) == pytest.approx(-ood_bound(ids, -oods, at))


def test_nothing_bounds_two_points_and_one_point_is_itself() -> None:
    ends = np.array([0.4, 0.5])
    assert np.isnan(ood_floor(ends, ends, np.array([0.45]))).all()
    assert np.isnan(ood_bound(ends, ends, np.array([0.45]))).all()
    only = np.array([0.45])
    assert ood_floor(only, np.array([0.3]), only) == pytest.approx([0.3])
    assert np.isnan(curve_sag(ends, ends, IDS))
    assert curve_sag(only, np.array([0.3]), IDS) == curve_sag(only + 1, np.array([0.3]), IDS) == 0


def test_a_curve_that_is_bent_downwards_may_lie_below_its_chords_and_no_other() -> None:
    assert curve_sag(IDS, bent(4.0)(IDS), IDS) == pytest.approx(0, abs=1e-12)
    assert curve_sag(IDS, bent(0.0)(IDS), IDS) == pytest.approx(0, abs=1e-12)
    true_sag = (highest_on_chords(IDS, bent(-4.0)(IDS), INSIDE) - bent(-4.0)(INSIDE)).mean()
    assert true_sag < curve_sag(IDS, bent(-4.0)(IDS), IDS) < 6 * true_sag


@pytest.mark.parametrize("by", [8.0, 0.0, -8.0])
@pytest.mark.parametrize("lengths", [(1.0, 0.6), (0.6, 1.0), (1.0, 1.0)])
def test_no_part_of_a_curve_gains_over_another_part_of_the_same(
    by: float, lengths: tuple[float, float]
) -> None:
    (ids, oods), (other_ids, other_oods) = (
        (0.4 + (IDS - 0.4) * length, bent(by)(0.4 + (IDS - 0.4) * length)) for length in lengths
    )
    sag = curve_sag(ids, oods, other_ids)
    assert curve_gain(ids, oods, other_ids, other_oods) - sag <= 1e-12
    gains_by_chords = curve_gain(ids, oods, other_ids, other_oods) > 1e-6
    assert gains_by_chords == (by < 0 and lengths == (1.0, 0.6)), "which is why the sag is taken"

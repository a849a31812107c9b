"""Exponents follow from three sizes, and are told and drawn."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from benchmarks.growth import Series, draw, exponent, table


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_exponent_does_not_depend_on_what_any_size_costs(power: float) -> None:
    for fixed in (0.0, 3.0):
        costs = [fixed + 0.5 * size**power for size in (10, 100, 1000)]
        assert exponent(costs, least=0.05, share=0.05) == pytest.approx(power)


def test_what_does_not_grow_has_exponent_zero_and_noise_has_none() -> None:
    assert exponent([5.0, 5.2, 5.1], least=0.05, share=0.05) == 0
    assert exponent([5.0, 5.1, 8.0], least=0.05, share=0.05) is None
    assert exponent([0.1, 0.12, 0.4], least=0.05, share=0.05) is None


def test_series_are_told_and_drawn() -> None:
    sizes = (200, 2000, 20000)
    series = [
        Series("images", "train", sizes, (0.5, 1.4, 10.4), (500, 500, 600)),
        Series("trials", "list", (100, 1000, 10000), (0.3, 0.3, 0.3), (40, 50, 150)),
    ]
    lines = table(series)
    train = next(line for line in lines if "`train`" in line)
    assert train.split("|")[1:-1] == [
        *(" `train` at 200, 2,000, 20,000 ", " 0.50, 1.40, 10.40 ", " 1.00 "),
        *(" 500, 500, 600 ", "  "),
    ]
    words = {element.text for element in ElementTree.fromstring(draw(series)).iter()}
    assert {"train", "list", "processor seconds", "memory, MB"} <= words

"""Values lie where their axis says, and round numbers are labelled."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracking.charts.parameters import Axis, of_numbers, of_parameter, round_values
from tracking.evidence.parameters import Parameter, Scale

LOG = Axis("lr", "log", 1e-5, 1e-3)
SYMLOG = Axis("kl", "symlog", 0.0, 10.0, constant=0.1)
NAMES = of_parameter(Parameter("a.b", "b", ("x", "y", "z"), "categories"))


@pytest.mark.parametrize(
    ("axis", "value", "place"),
    [
        (LOG, 1e-5, 0.0),
        (LOG, 1e-4, 0.5),
        (LOG, 1e-3, 1.0),
        (SYMLOG, 0.0, 0.0),
        (SYMLOG, 0.1, round(math.log(2) / math.log(101), 4)),
        (of_numbers("ID test (%)", [40.0, 60.0]), 55.0, 0.75),
        (of_numbers("same", [3.0, 3.0]), 3.0, 0.5),
        (NAMES, "x", 1 / 6),
        (NAMES, "z", 5 / 6),
        (NAMES, "other", None),
        (LOG, "text", None),
        (LOG, None, None),
    ],
)
def test_a_value_has_its_place(axis: Axis, value: float | str, place: float | None) -> None:
    assert axis.position(value) == (None if place is None else pytest.approx(place))


@pytest.mark.parametrize(
    ("scale", "low", "high", "values"),
    [
        ("linear", 0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ("linear", 61.3, 64.9, [62.0, 63.0, 64.0]),
        ("linear", 5.0, 5.0, [5.0]),
        ("log", 1e-6, 1e-3, [1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3]),
        ("log", 1.0, 10.0, [1.0, 2.0, 5.0, 10.0]),
        ("log", 1e-8, 1.0, [1e-8, 1e-6, 1e-4, 1e-2, 1.0]),
        ("log", 6.0, 9.0, [6.0, 9.0]),
        ("symlog", 0.0, 10.0, [0.0, 0.1, 0.3, 1.0, 3.0, 10.0]),
    ],
)
def test_round_numbers_are_labelled(
    scale: Scale, low: float, high: float, values: list[float]
) -> None:
    assert round_values(scale, low, high, 0.1) == pytest.approx(values)


def test_what_was_tried_is_labelled_where_it_is_little() -> None:
    few = of_parameter(Parameter("a", "a", (1e-4, 3e-4), "linear"))
    assert few.ticks() == [(0.0, "0.0001"), (1.0, "0.0003")]
    many = of_parameter(Parameter("a", "a", tuple(map(float, range(11))), "linear"))
    assert [text for _, text in many.ticks()] == ["0", "2", "4", "6", "8", "10"]


@given(st.sampled_from(["linear", "log"]), st.floats(1e-6, 1e3), st.floats(1.01, 1e9))
def test_ticks_are_few_and_on_their_axis(scale: Scale, low: float, factor: float) -> None:
    found = round_values(scale, low, low * factor, 1.0)
    assert 1 <= len(found) <= 9
    assert found == sorted(found)
    assert low * (1 - 1e-6) <= found[0]
    assert found[-1] <= low * factor * (1 + 1e-6)

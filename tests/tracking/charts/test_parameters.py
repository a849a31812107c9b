"""A parameter has the axis on which its values lie evenly."""

from __future__ import annotations

import random

import pytest

from carft_sweep.tracking.charts.parameters import Parameter, Scale, scale_of, varied_parameters
from carft_sweep.tracking.comparison.compare import compare
from carft_sweep.tracking.comparison.runs import Scalar
from tests.tracking.made_up import arm, zero_shot

UNIFORM = random.Random(0)
FEW, MANY = (0.1, 1.0, 10.0), tuple(1e-6 * 1.5**n for n in range(18))


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([0.1, 0.3, 1.0, 3.0], "log"),
        ([1e-5, 1e-3], "log"),
        ([3e-5, 3e-4], "log"),
        ([1, 2, 4, 8], "log"),
        ([5, 10, 20], "log"),
        ([0.0, 0.1, 1.0, 10.0], "symlog"),
        ([0.1, 0.2, 0.3], "linear"),
        ([0.1 * i for i in range(1, 12)], "linear"),
        ([0, 1, 2], "linear"),
        ([0, 0.1], "linear"),
        ([1, 2], "linear"),
        ([-1.0, 10.0, 1000.0], "linear"),
        ([UNIFORM.uniform(0, 0.3) for _ in range(200)], "linear"),
        ([10 ** UNIFORM.uniform(-5, -2) for _ in range(200)], "log"),
        ([0.0, *(10 ** UNIFORM.uniform(-5, -2) for _ in range(200))], "symlog"),
        (["a", "b"], "categories"),
        ([True, False], "categories"),
        ([None, 1.0], "categories"),
        ([1.0, float("inf")], "categories"),
    ],
)
def test_the_scale_follows_the_values(values: list[Scalar], scale: Scale) -> None:
    assert scale_of(values) == scale


def test_what_one_value_has_does_not_vary_and_equal_ends_keep_their_names() -> None:
    runs = [zero_shot()]
    for trial, value in enumerate((3, 1, 2)):
        params: dict[str, Scalar] = {
            "a.lr": value,
            "b.lr": value,
            "c.same": 1,
            "d.name": "xyz"[trial],
        }
        runs += arm("car_ft", [0.6], [0.3], trial=trial, params=params)
    parameters = varied_parameters(compare(runs, sweep="s").rows)
    assert [(item.name, item.title) for item in parameters] == [
        ("a.lr", "a.lr"),
        ("b.lr", "b.lr"),
        ("d.name", "name"),
    ]
    assert parameters[0].values == (1, 2, 3)
    assert parameters[0].axis()["axis"]["values"] == [1.0, 2.0, 3.0]
    assert parameters[2].values == ("x", "y", "z")
    assert not parameters[2].numeric


def test_few_values_have_a_tick_each_and_many_those_of_vega() -> None:
    axes = [
        Parameter("a", "a", values, "linear").axis()["axis"].to_dict() for values in (FEW, MANY)
    ]
    assert [axis.get("values") for axis in axes] == [[*FEW], None]


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ((1.579993e-5, 2.3e-4, 1.0123e-3), [2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3]),
        ((1.5e-5, 1.0123e-2), [1e-4, 1e-3, 1e-2]),
        ((0.127737, 0.225144, 3.85337), [0.2, 0.5, 1.0, 2.0]),
    ],
)
def test_values_that_were_drawn_have_ticks_at_decades(
    values: tuple[float, ...], ticks: list[float]
) -> None:
    axis = Parameter("optim.lr", "lr", values, "log").axis()["axis"].to_dict()
    assert axis["values"] == ticks

"""Axes, layout, names and units of charts; colours are seen on white and on dark pages."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from typing import Any

import altair as alt
import numpy as np
import pytest
import vl_convert
from numpy.typing import NDArray

from carft_sweep.tracking.charts.base import fitted, panels, single, titled
from carft_sweep.tracking.charts.palette import _COLOURS, NEUTRAL, colour_of, legend_of_methods
from carft_sweep.tracking.charts.parameters import Parameter, Scale, scale_of, varied_parameters
from carft_sweep.tracking.comparison.compare import compare
from carft_sweep.tracking.comparison.runs import Scalar
from tests.tracking.made_up import arm, zero_shot

UNIFORM = random.Random(0)
FEW, MANY = (0.1, 1.0, 10.0), tuple(1e-6 * 1.5**n for n in range(18))
WHITE, DARK = "#ffffff", "#14171a"
KNOWN = ("zero_shot", "fine_tune", "car_ft")


@pytest.mark.parametrize(
    ("scale", "of_values"),
    [
        ("log", [[0.1, 0.3, 1.0, 3.0], [1e-5, 1e-3], [3e-5, 3e-4], [1, 2, 4, 8], [5, 10, 20]]),
        ("log", [[10 ** UNIFORM.uniform(-5, -2) for _ in range(200)]]),
        ("symlog", [[0.0, 0.1, 1.0, 10.0]]),
        ("symlog", [[0.0, *(10 ** UNIFORM.uniform(-5, -2) for _ in range(200))]]),
        ("linear", [[0.1, 0.2, 0.3], [0.1 * i for i in range(1, 12)], [0, 1, 2], [0, 0.1], [1, 2]]),
        ("linear", [[-1.0, 10.0, 1000.0], [UNIFORM.uniform(0, 0.3) for _ in range(200)]]),
        ("categories", [["a", "b"], [True, False], [None, 1.0], [1.0, float("inf")]]),
    ],
)
def test_the_scale_follows_the_values(scale: Scale, of_values: list[list[Scalar]]) -> None:
    for values in of_values:
        assert scale_of(values) == scale, values


def test_what_one_value_has_does_not_vary_and_equal_ends_keep_their_names() -> None:
    runs = [zero_shot()]
    for trial, value in enumerate((3, 1, 2)):
        params: dict[str, Scalar] = {"a.lr": value, "b.lr": value, "c.same": 1}
        params["d.name"] = "xyz"[trial]
        runs += arm("car_ft", [0.6], [0.3], trial=trial, params=params)
    first, second, name = varied_parameters(compare(runs, sweep="s").rows)
    assert [item.title for item in (first, second, name)] == ["a.lr", "b.lr", "name"]
    assert first.values == (1, 2, 3)
    assert first.axis()["axis"]["values"] == [1.0, 2.0, 3.0]
    assert (name.values, name.numeric) == (("x", "y", "z"), False)


@pytest.mark.parametrize(
    ("scale", "values", "ticks"),
    [
        ("linear", FEW, [*FEW]),
        ("linear", MANY, None),  # those of Vega
        ("log", (1.579993e-5, 2.3e-4, 1.0123e-3), [2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3]),
        ("log", (1.5e-5, 1.0123e-2), [1e-4, 1e-3, 1e-2]),
        ("log", (0.127737, 0.225144, 3.85337), [0.2, 0.5, 1.0, 2.0]),
    ],
)
def test_few_values_have_a_tick_each_and_drawn_ones_have_ticks_at_decades(
    scale: Scale, values: tuple[float, ...], ticks: list[float] | None
) -> None:
    axis = Parameter("optim.lr", "lr", values, scale).axis()["axis"].to_dict()
    assert axis.get("values") == ticks


def test_panels_fill_the_width_and_a_single_chart_takes_its_place_with_its_axes() -> None:
    points = [alt.Chart().mark_point()]
    three = panels(points * 3, "three", rows=[], margin=60, least=300).to_dict()
    for width, columns, each in ((320, 1, 260), (599, 1, 539), (600, 2, 240), (1100, 2, 490)):
        spec = fitted(three, width)
        assert spec["columns"] == columns
        assert [panel["width"] for panel in spec["concat"]] == [each] * 3
    spec = single(points, 200, "one", [{"x": 1}]).to_dict()
    assert "width" not in spec
    assert fitted(spec, 500)["width"] == 500
    assert fitted(spec, 500)["autosize"] == {"type": "fit-x", "contains": "padding"}
    assert [*spec["datasets"].values()] == [({"x": 1},)]


def test_an_axis_says_what_it_shows() -> None:
    for metric, title in (
        ("id/val/top1", "ID val top-1 (%)"),
        ("ood/mean/top1", "OOD mean top-1 (%)"),
        ("ood/outline/macro_f1", "outline macro-F1 (%)"),
        ("id/test_r/benchmark", "ID test r benchmark accuracy (%)"),
    ):
        assert titled(metric) == title


def linear(colour: str) -> NDArray[np.float64]:
    """RGB in [0, 1], proportional to light."""
    values = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(colour: str, page: str) -> float:
    """Of WCAG 2: 1 to 21."""
    lights = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) + 0.05 for c in (colour, page))
    return lights[1] / lights[0]


def test_a_mark_stands_out_on_white_and_on_a_dark_page() -> None:
    """WCAG 2.2, 1.4.11: at least 3 to 1."""
    for colour in (*(colour_of(name, KNOWN) for name in KNOWN), *_COLOURS):
        assert min(contrast(colour, page) for page in (WHITE, DARK)) >= 3, colour


def test_own_algorithms_have_colours_and_symbols_of_their_own() -> None:
    algorithms = ("zero_shot", "fine_tune", "mine", "car_ft", "yours", "theirs")
    styles = legend_of_methods({name: (name, False) for name in algorithms}, algorithms).styles
    assert len({style.colour for style in styles.values()}) == len(algorithms)
    assert len({style.symbol for style in styles.values()}) == len(algorithms)
    assert styles["zero_shot"].colour == NEUTRAL


def written(names: Iterable[str], *channels: Any) -> list[str]:
    """The texts of the picture of points of these methods."""
    data = alt.InlineData(values=[{"method": name} for name in names])
    svg = vl_convert.vegalite_to_svg(alt.Chart(data).mark_point().encode(*channels).to_dict())
    return re.findall("<text[^>]*>([^<]*)</text>", svg)


def test_long_names_in_a_legend_keep_their_ends_and_a_crowded_one_names_each_method_once() -> None:
    names = ["car_ft " + "x=1 " * 20, "car_ft " + "x=1 " * 20 + "+ wise_ft@0.5"]
    legend = legend_of_methods(dict.fromkeys(names, ("car_ft", False)), KNOWN)
    first, second = (text for text in written(names, legend.colour()) if "car_ft" in text)
    assert all(text.startswith("car_ft x=1 ") and "…" in text for text in (first, second))
    assert second.endswith("x=1 + wise_ft@0.5")
    methods = [f"mine_{number}" for number in range(20)]
    series = {f"{name}{end}": (name, bool(end)) for name in methods for end in ("", " + wise_ft")}
    crowded = written(series, *legend_of_methods(series, methods).symbols())
    assert [text for text in crowded if "mine" in text] == methods

"""Colours are seen on white and on dark pages."""

from __future__ import annotations

import re

import altair as alt
import numpy as np
import pytest
import vl_convert
from numpy.typing import NDArray

from carft_sweep.tracking.charts.palette import _COLOURS, NEUTRAL, colour_of, legend_of_methods

WHITE, DARK = "#ffffff", "#14171a"
KNOWN = ("zero_shot", "fine_tune", "car_ft")


def linear(colour: str) -> NDArray[np.float64]:
    """RGB in [0, 1], proportional to light."""
    values = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """Of WCAG 2: 1 to 21."""
    lights = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) + 0.05 for c in (one, other))
    return lights[1] / lights[0]


@pytest.mark.parametrize("colour", [*(colour_of(name, KNOWN) for name in KNOWN), *_COLOURS])
def test_a_mark_stands_out_on_white_and_on_a_dark_page(colour: str) -> None:
    """WCAG 2.2, 1.4.11: at least 3 to 1."""
    assert contrast(colour, WHITE) >= 3
    assert contrast(colour, DARK) >= 3


def test_own_algorithms_have_colours_and_symbols_of_their_own() -> None:
    algorithms = ("zero_shot", "fine_tune", "mine", "car_ft", "yours", "theirs")
    styles = legend_of_methods({name: (name, False) for name in algorithms}, algorithms).styles
    assert len({style.colour for style in styles.values()}) == len(algorithms)
    assert len({style.symbol for style in styles.values()}) == len(algorithms)
    assert styles["zero_shot"].colour == NEUTRAL


def test_long_names_in_a_legend_keep_their_beginning_and_their_end() -> None:
    names = ["car_ft " + "x=1 " * 20, "car_ft " + "x=1 " * 20 + "+ wise_ft@0.5"]
    legend = legend_of_methods(dict.fromkeys(names, ("car_ft", False)), KNOWN)
    data = alt.InlineData(values=[{"method": name} for name in names])
    chart = alt.Chart(data).mark_point().encode(legend.colour())
    svg = vl_convert.vegalite_to_svg(chart.to_dict())
    shown = [text for text in re.findall("<text[^>]*>([^<]*)</text>", svg) if "car_ft" in text]
    assert len(shown) == 2
    assert all(text.startswith("car_ft x=1 ") and "…" in text for text in shown)
    assert shown[1].endswith("x=1 + wise_ft@0.5")


def test_a_crowded_legend_names_each_method_once() -> None:
    methods = [f"mine_{number}" for number in range(20)]
    series = {f"{name}{end}": (name, bool(end)) for name in methods for end in ("", " + wise_ft")}
    legend = legend_of_methods(series, methods)
    data = alt.InlineData(values=[{"method": name} for name in series])
    svg = vl_convert.vegalite_to_svg(
        alt.Chart(data).mark_point().encode(*legend.symbols()).to_dict()
    )
    assert re.findall("<text[^>]*>([^<]*mine[^<]*)</text>", svg) == methods

"""Colours are seen on white and on dark pages, and told apart with any colour vision."""

from __future__ import annotations

import re
from itertools import combinations

import altair as alt
import numpy as np
import pytest
import vl_convert
from numpy.typing import NDArray

from carft_sweep.tracking.charts.palette import (
    _COLOURS,
    NEUTRAL,
    colour_of,
    legend_of_methods,
)

WHITE, DARK = "#ffffff", "#14171a"
KNOWN = ("zero_shot", "fine_tune", "car_ft")
# Machado, Oliveira, Fernandes, IEEE TVCG 15 (2009): full deuteranopia and protanopia.
DEUTAN = np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]])
PROTAN = np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]])


def linear(colour: str) -> NDArray[np.float64]:
    """RGB in [0, 1], proportional to light."""
    values = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """Of WCAG 2: 1 to 21."""
    lights = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) + 0.05 for c in (one, other))
    return lights[1] / lights[0]


def lab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """CIE L*a*b* of linear RGB."""
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    x, y, z = np.cbrt(to_xyz @ rgb.clip(0, 1) / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("colour", [*(colour_of(name, KNOWN) for name in KNOWN), *_COLOURS])
def test_a_mark_stands_out_on_white_and_on_a_dark_page(colour: str) -> None:
    """WCAG 2.2, 1.4.11: at least 3 to 1."""
    assert contrast(colour, WHITE) >= 3
    assert contrast(colour, DARK) >= 3


@pytest.mark.parametrize("seen", [np.eye(3), DEUTAN, PROTAN], ids=["full", "deutan", "protan"])
def test_the_known_algorithms_are_told_apart_by_any_eye(seen: NDArray[np.float64]) -> None:
    """A difference of 2.3 is just noticeable; these are thin lines."""
    for one, two in combinations(KNOWN, 2):
        colours = (colour_of(name, KNOWN) for name in (one, two))
        apart = np.linalg.norm(np.subtract(*(lab(seen @ linear(c)) for c in colours)))
        assert apart > 20, (one, two)


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

"""Panels stand in as many columns as there is room for."""

from __future__ import annotations

import altair as alt
import pytest

from tracking.charts.base import NARROWEST, fitted, panels, single

PANELS = panels([alt.Chart().mark_point()] * 3, "three", most=2, margin=60, least=300).to_dict()


@pytest.mark.parametrize(
    ("width", "columns", "each"), [(320, 1, 260), (599, 1, 539), (600, 2, 240), (1100, 2, 490)]
)
def test_panels_fill_the_width(width: int, columns: int, each: int) -> None:
    spec = fitted(PANELS, width)
    assert spec["columns"] == columns
    assert [panel["width"] for panel in spec["concat"]] == [each] * 3


def test_panels_that_nobody_fits_stand_in_a_column_for_a_phone() -> None:
    assert PANELS["columns"] == 1
    assert {panel["width"] for panel in PANELS["concat"]} == {NARROWEST}


def test_a_single_chart_takes_the_width_of_its_place_with_its_axes() -> None:
    spec = single([alt.Chart().mark_point()], 200, "one", [{"x": 1}]).to_dict()
    assert spec["width"] == "container"
    assert fitted(spec, 500)["width"] == 500
    assert fitted(spec, 500)["autosize"] == {"type": "fit-x", "contains": "padding"}
    assert spec["datasets"] == {"rows": [{"x": 1}]}

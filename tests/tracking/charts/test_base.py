"""Layout, names and units of charts."""

from __future__ import annotations

import altair as alt
import pytest

from carft_sweep.tracking.charts.base import fitted, panels, single, titled

PANELS = panels([alt.Chart().mark_point()] * 3, "three", rows=[], margin=60, least=300).to_dict()


@pytest.mark.parametrize(
    ("width", "columns", "each"), [(320, 1, 260), (599, 1, 539), (600, 2, 240), (1100, 2, 490)]
)
def test_panels_fill_the_width(width: int, columns: int, each: int) -> None:
    spec = fitted(PANELS, width)
    assert spec["columns"] == columns
    assert [panel["width"] for panel in spec["concat"]] == [each] * 3


def test_a_single_chart_takes_the_width_of_its_place_with_its_axes() -> None:
    spec = single([alt.Chart().mark_point()], 200, "one", [{"x": 1}]).to_dict()
    assert "width" not in spec
    assert fitted(spec, 500)["width"] == 500
    assert fitted(spec, 500)["autosize"] == {"type": "fit-x", "contains": "padding"}
    assert [*spec["datasets"].values()] == [({"x": 1},)]


@pytest.mark.parametrize(
    ("metric", "title"),
    [
        ("id/val/top1", "ID val top-1 (%)"),
        ("ood/mean/top1", "OOD mean top-1 (%)"),
        ("ood/outline/macro_f1", "outline macro-F1 (%)"),
        ("id/test_r/benchmark", "ID test r benchmark accuracy (%)"),
    ],
)
def test_an_axis_says_what_it_shows(metric: str, title: str) -> None:
    assert titled(metric) == title

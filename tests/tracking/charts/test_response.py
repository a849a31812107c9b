"""The response to each varied parameter."""

from __future__ import annotations

import pytest

from carft_sweep.tracking.charts.data import ChartData
from carft_sweep.tracking.charts.palette import colour_of
from carft_sweep.tracking.comparison.compare import compare
from tests.tracking.charts.drawn import channels, data_of, nodes, spec_of
from tests.tracking.made_up import KL, arm


def test_the_response_is_a_line_on_a_log_axis_where_one_parameter_varies(plain: ChartData) -> None:
    spec = spec_of("response", plain)
    rows = data_of(spec, "kl_weight", "OOD mean top-1")
    assert sorted(row["kl_weight"] for row in rows) == [0.1, 0.3, 1.0, 3.0]
    assert all("OOD mean top-1 low" in row for row in rows)
    x = channels(spec, "x")[0]
    assert x["scale"]["type"] == "log"
    assert x["axis"]["values"] == [0.1, 0.3, 1.0, 3.0]
    assert any(node.get("type") == "line" for node in nodes(spec))
    assert len(spec["concat"]) == 2
    levels = [row for row in data_of(spec, "setting", "ID test top-1") if "kl_weight" not in row]
    assert {row["setting"]: row["ID test top-1"] for row in levels} == {
        "zero_shot": pytest.approx(55),
        "fine_tune": pytest.approx(65.04),
    }


@pytest.mark.parametrize(("settings", "intervals"), [(60, 60), (61, 0)])
def test_many_settings_have_no_intervals(settings: int, intervals: int) -> None:
    ids, oods = [0.6, 0.61, 0.62], [0.3, 0.31, 0.33]
    runs = [
        one
        for trial in range(settings)
        for one in arm("car_ft", ids, oods, trial=trial, params={KL: 1.0 + trial})
    ]
    spec = spec_of("response", ChartData(compare(runs, sweep="many")))
    points = [row for rows in spec["datasets"].values() for row in rows]
    assert sum("OOD mean top-1 low" in point for point in points) == intervals


def test_words_and_line_of_zero_shot_and_the_reference_have_their_colours_and_own_ends(
    plain: ChartData,
) -> None:
    """Where both are equally accurate, their names stand apart."""
    algorithms = plain.algorithms
    for panel in spec_of("response", plain)["concat"]:
        colours = [
            (node["mark"]["type"], node["mark"].get("align"), node["encoding"]["color"]["value"])
            for node in panel["layer"]
            if "value" in node["encoding"].get("color", {})
        ]
        assert colours == [
            (mark, align if mark == "text" else None, colour_of(name, algorithms))
            for name, align in (("zero_shot", "left"), ("fine_tune", "right"))
            for mark in ("rule", "text")
        ]

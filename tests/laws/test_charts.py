"""What holds for every chart of the report. A new one is tested by being registered."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import pytest
import vl_convert

from carft_sweep.tracking.charts import CHARTS
from carft_sweep.tracking.charts.base import fitted
from carft_sweep.tracking.charts.data import ChartData
from carft_sweep.tracking.charts.palette import colour_of
from carft_sweep.tracking.comparison.compare import compare
from carft_sweep.tracking.comparison.runs import RunRecord
from tests.tracking.charted import full, grid_runs, searched
from tests.tracking.charts.drawn import Spec, nodes, spec_of
from tests.tracking.made_up import kl_sweep, metrics, run, zero_shot

BUILT_IN: tuple[str, ...] = ("id_ood", "response", "shifts", "context")
SVG = "{http://www.w3.org/2000/svg}"
PHONE, DESKTOP = 340, 1060
"""Pixels that a page leaves to a chart."""
each_chart = pytest.mark.parametrize("name", CHARTS)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> ChartData:
    return full(tmp_path_factory.mktemp("charted"))


@pytest.fixture(scope="module")
def specs(everything: ChartData) -> dict[str, Spec]:
    """Of every chart, checked against the schema."""
    return {name: spec_of(name, everything) for name in CHARTS}


def of(*runs: RunRecord) -> ChartData:
    return ChartData(compare(runs, sweep="small"))


def test_the_shipped_charts_are_there_in_the_order_of_the_page() -> None:
    assert tuple(CHARTS) == BUILT_IN
    assert all(name == chart.name for name, chart in CHARTS.items())
    folded = [chart.folded for chart in CHARTS.values()]
    assert folded == sorted(folded), "what is open comes first"
    assert all(chart.title and chart.about.endswith(".") for chart in CHARTS.values())
    # Another algorithm may be the reference.
    assert not any("fine-tuning" in chart.about for chart in CHARTS.values())


@each_chart
def test_a_chart_compiles_without_a_warning_and_says_what_it_is(
    name: str, everything: ChartData, capfd: pytest.CaptureFixture[str]
) -> None:
    for data in (everything, searched(30), of(*kl_sweep()), of(*kl_sweep(1))):
        picture = CHARTS[name].draw(data)
        if picture is not None:
            spec = picture.to_dict(validate=False)
            assert spec["description"]
            assert warnings(fitted(spec, DESKTOP), capfd) == ""


def test_a_legend_that_only_one_layer_disables_is_warned_of(
    capfd: pytest.CaptureFixture[str],
) -> None:
    shown: Spec = {"field": "a", "type": "nominal", "legend": {}}
    colours = (shown, shown | {"legend": None})
    layers = [{"mark": "point", "encoding": {"color": colour}} for colour in colours]
    assert 'legend property "disable"' in warnings({"data": {"values": []}, "layer": layers}, capfd)


def warnings(spec: Spec, capfd: pytest.CaptureFixture[str]) -> str:
    vl_convert.vegalite_to_vega(spec, show_warnings=True)
    return "".join(capfd.readouterr())


@each_chart
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_a_chart_is_drawn_and_fits_its_place(name: str, width: int, specs: dict[str, Spec]) -> None:
    svg = ElementTree.fromstring(vl_convert.vegalite_to_svg(fitted(specs[name], width)))
    assert len(list(svg.iter(f"{SVG}path"))) > 2
    assert width * 0.6 < float(svg.attrib["width"]) <= width + 10


@each_chart
def test_a_chart_of_little_is_none_or_whole_and_none_needs_the_folders_of_runs(name: str) -> None:
    no_number = run("car_ft", 0, {"id/val/top1": float("nan")}, trial=0)
    for runs in ([], [run("car_ft", 0, None, trial=0)], [no_number]):
        assert CHARTS[name].draw(of(*runs)) is None
    for runs in (
        [zero_shot()],
        [run("car_ft", 0, metrics(0.6, None), trial=0)],
        [run("car_ft", 0, metrics(0.6, 0.3), trial=0), zero_shot()],
        [run("fine_tune", 0, metrics(0.6, 0.3)), run("car_ft", 1, metrics(0.6, 0.3), trial=0)],
    ):
        picture = CHARTS[name].draw(of(*runs))
        if picture is not None:
            vl_convert.vegalite_to_svg(fitted(picture.to_dict(), DESKTOP))
    assert CHARTS[name].draw(of(*grid_runs())) is not None


@each_chart
def test_the_data_are_standard_json_the_same_each_time_and_colours_of_text_are_the_pages(
    name: str, everything: ChartData, specs: dict[str, Spec]
) -> None:
    spec, picture = specs[name], CHARTS[name].draw(everything)
    assert picture is not None
    assert json.dumps(spec, allow_nan=False) == json.dumps(picture.to_dict(validate=False))
    assert spec["background"] == "transparent"
    for node in nodes(spec):
        assert not {"labelColor", "titleColor", "gridColor", "domainColor", "tickColor"} & set(node)
        assert node.get("type") != "text" or "color" not in node


@each_chart
def test_an_algorithm_has_one_colour_in_every_chart(
    name: str, everything: ChartData, specs: dict[str, Spec]
) -> None:
    colours: list[tuple[str, str]] = []
    for channel in (node.get(c) for node in nodes(specs[name]) for c in ("color", "fill")):
        scale = channel.get("scale", {}) if isinstance(channel, dict) else {}
        domain = scale.get("domain", [])
        if domain and all(isinstance(text, str) for text in domain):
            colours += zip(domain, scale["range"], strict=True)
    for text, colour in colours:
        known = colour_of(text.split()[0], everything.algorithms)
        assert colour in (known, "transparent"), text  # Merged ones are hollow.
    assert colours


def test_two_thousand_runs_are_drawn_in_megabytes() -> None:
    data = searched(2_000)
    drawn = [picture for chart in CHARTS.values() if (picture := chart.draw(data)) is not None]
    assert sum(len(json.dumps(picture.to_dict(validate=False))) for picture in drawn) < 4_000_000

"""The chart of ID against OOD: points, front, curves and distances."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations, product
from typing import Any

import pytest
import vl_convert
from hypothesis import given
from hypothesis import strategies as st

from carft_sweep.tracking.charts.data import ChartData
from carft_sweep.tracking.charts.labels import Label, Offset
from carft_sweep.tracking.charts.tradeoff import _Range, pareto_front
from carft_sweep.tracking.comparison.compare import compare
from tests.tracking.charted import searched
from tests.tracking.charts.drawn import Spec, channels, data_of, nodes, spec_of
from tests.tracking.made_up import kl_sweep, metrics

fractions = st.integers(0, 6).map(lambda n: n / 6)


points = st.lists(st.tuples(fractions, fractions), max_size=12)


@given(points)
def test_on_the_front_is_exactly_what_no_other_beats(points: list[tuple[float, float]]) -> None:
    beaten = {
        (x, y) for x, y in points if any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)
    }
    assert pareto_front(points) == set(points) - beaten


def test_every_model_is_there_once_and_the_front_is_of_all_of_them(plain: ChartData) -> None:
    rows = data_of(spec_of("id_ood", plain), "ID test", "OOD mean", "on show")
    labels = [row["setting"] for row in rows]
    assert len(labels) == len(set(labels))
    # Six settings, and three points of the curves of fine-tuning and the chosen CAR-FT.
    assert len(labels) == 6 + 2 * 3
    best = {(row["ID test"], row["OOD mean"]) for row in rows if row["front"]}
    assert best == pareto_front((row["ID test"], row["OOD mean"]) for row in rows)
    assert {row["setting"] for row in rows if row["on show"]} == {
        row.arm.label for row in plain.shown
    }


def test_every_setting_stands_at_its_means(plain: ChartData) -> None:
    rows = data_of(spec_of("id_ood", plain), "ID test", "OOD mean", "on show")
    by_label = {row["setting"]: row for row in rows}
    for row in plain.settings:
        model = by_label[row.arm.label]
        for field, metric in (("ID test", "id/test/top1"), ("OOD mean", "ood/mean/top1")):
            mean = row.metric(metric).mean
            assert mean is not None
            assert model[field] == pytest.approx(100 * mean, abs=1e-3)
    shown = by_label["fine_tune"]
    ci95 = plain.settings[1].metric("id/test/top1").ci95
    assert ci95 is not None
    assert (shown["ID test low"], shown["ID test high"]) == pytest.approx(
        (100 * ci95.low, 100 * ci95.high), abs=1e-3
    )
    assert "ID test low" not in by_label["car_ft kl_weight=0.1"]


def test_each_seed_of_what_is_on_show_is_a_dot_inside_the_axes(plain: ChartData) -> None:
    spec = spec_of("id_ood", plain)
    fields = ("ID test of a seed", "OOD mean of a seed")
    rows = data_of(spec, *fields)
    tuned = next(row for row in plain.shown if row.arm.label == "fine_tune")
    for field, metric in zip(fields, ("id/test/top1", "ood/mean/top1"), strict=True):
        own = [row[field] for row in rows if row["setting"] == "fine_tune"]
        expected = [100 * (value or 0) for value in tuned.metric(metric).values]
        assert own == pytest.approx(expected, abs=1e-3)
    assert {row["setting"] for row in rows} == {
        row.arm.label for row in plain.shown if row.arm.has_seeds
    }
    for axis, field in zip(("x", "y"), fields, strict=True):
        ((low, high),) = {
            tuple(it["scale"]["domain"]) for it in channels(spec, axis) if it["field"] == field
        }
        assert all(low < row[field] < high for row in rows)


@pytest.mark.parametrize("name", ["id_ood", "shifts"])
def test_merged_models_are_hollow_in_the_legend_too(name: str, plain: ChartData) -> None:
    svg = vl_convert.vegalite_to_svg(spec_of(name, plain))
    symbols = re.findall(r'mark-symbol role-legend-symbol".*?</g>', svg)
    labels = re.findall(r'mark-text role-legend-label".*?>([^<]+)</text>', svg)
    hollow = ['fill="' not in symbol for symbol in symbols]
    assert labels
    assert hollow == ["wise_ft" in label for label in labels]


def test_the_distance_is_the_one_of_the_verdict(everything: ChartData) -> None:
    rows = data_of(spec_of("id_ood", everything), "distance")
    distances = {row["setting"]: row["distance"] for row in rows}
    by_label = {row.arm.label: row for row in everything.shown}
    for it in everything.comparison.verdicts:
        assert by_label[it.pair.candidate.label].above_curve == it.above_curve
    expected = {
        label: row.above_curve.mean
        for label, row in by_label.items()
        if row.above_curve is not None and row.above_curve.mean is not None
    }
    assert expected
    assert distances == pytest.approx(
        {label: 100 * distance for label, distance in expected.items()}, abs=1e-3
    )


def test_of_a_method_beyond_the_curve_no_distance_is_drawn(plain: ChartData) -> None:
    rows = data_of(spec_of("id_ood", plain), "distance")
    assert [row["setting"] for row in rows] == ["car_ft kl_weight=1 + wise_ft@0.75"]
    row = next(row for row in plain.comparison.rows if row.arm.label == rows[0]["setting"])
    assert row.above_curve is not None
    assert row.above_curve.mean is not None
    assert rows[0]["distance"] == pytest.approx(100 * row.above_curve.mean, abs=1e-3)
    assert rows[0]["curve"] == pytest.approx(rows[0]["OOD mean"] - rows[0]["distance"], abs=1e-2)


def test_the_curves_carry_their_alphas(plain: ChartData) -> None:
    rows = data_of(spec_of("id_ood", plain), "curve", "alpha")
    assert [row["alpha"] for row in rows if row["curve"] == "fine_tune"] == [0, 0.25, 0.5, 0.75, 1]


def words_of(spec: Spec, width: int = 640) -> list[dict[str, Any]]:
    """Return the words for a plot of this width, with their places."""
    (words,) = (
        node["data"]["values"]
        for node in nodes(spec)
        if node.get("data", {}).get("name") == f"words-{width}"
    )
    rows: list[dict[str, Any]] = words
    return rows


def labels_of(spec: Spec, kind: str) -> list[str]:
    return [row["label"] for row in words_of(spec) if row["kind"] == kind]


def test_every_setting_is_named_beside_its_point_and_both_curves_have_their_alphas(
    plain: ChartData,
) -> None:
    spec = spec_of("id_ood", plain)
    assert labels_of(spec, "name") == ["zero_shot", "fine_tune", "car_ft kl_weight=1"]
    assert labels_of(spec, "setting") == ["kl_weight=0.1", "kl_weight=0.3", "kl_weight=3"]
    assert sorted(labels_of(spec, "alpha")) == sorted(2 * ["α 0.25", "α 0.5", "α 0.75"])
    assert len(labels_of(spec, "distance")) == 1
    drawn = svg_texts(spec)
    for row in words_of(spec):
        assert drawn.count(row["label"]) >= 2, "a halo and the words"
    for rows in spec["datasets"].values():
        assert not any("dx" in row for row in rows), "no place of a word is a number to read"


def test_of_several_parameters_the_values_stand_there_and_their_names_above(
    everything: ChartData,
) -> None:
    spec = spec_of("id_ood", everything)
    assert spec["title"]["text"] == "Beside small symbols: kl_weight, lr"
    texts = labels_of(spec, "setting")
    assert "10, 0.0001" in texts
    assert "lr=1e-05" in texts
    assert not [text for text in texts if text.startswith("kl_weight=")]


def test_a_merge_without_a_curve_is_named_too() -> None:
    runs = [
        replace(record, merges={"logits": metrics(0.63, 0.37)}) if record.trains else record
        for record in kl_sweep()
    ]
    spec = spec_of("id_ood", ChartData(compare(runs, sweep="s")))
    assert labels_of(spec, "merge") == ["+ logits", "+ logits"]
    assert labels_of(spec, "alpha") == []


def test_of_hundreds_of_settings_only_what_is_on_show_is_named() -> None:
    spec = spec_of("id_ood", searched(60))
    assert "title" not in spec
    assert labels_of(spec, "setting") == []
    assert "zero_shot" in labels_of(spec, "name")


def test_words_overlap_neither_each_other_nor_a_symbol(
    plain: ChartData, everything: ChartData
) -> None:
    for data, width in product((plain, everything), (640, 290)):
        spec = spec_of("id_ood", data)
        x, y = (domain(spec, name) for name in ("ID test", "OOD mean"))
        boxes = []
        for row in words_of(spec, width):
            place = share(row["ID test"], x) * width, 420 * (1 - share(row["OOD mean"], y))
            offset = Offset(row["dx"], row["dy"], row["align"])
            boxes.append(offset.box(Label(row["label"], *place)))
            assert 0 <= boxes[-1].left <= boxes[-1].right <= width
        for one, other in combinations(boxes, 2):
            apart_x = one.right <= other.left + 0.01 or other.right <= one.left + 0.01
            apart_y = one.bottom <= other.top + 0.01 or other.bottom <= one.top + 0.01
            assert apart_x or apart_y


def test_a_narrow_plot_names_only_what_stands_for_an_algorithm(plain: ChartData) -> None:
    spec = {**spec_of("id_ood", plain), "width": 300}
    words = [row["label"] for row in words_of(spec, 290)]
    assert words == [*labels_of(spec, "name"), *labels_of(spec, "distance")]
    svg = vl_convert.vegalite_to_svg(spec)
    hidden = re.findall(r'<text[^>]* opacity="0"[^>]*>([^<]*)</text>', svg)
    assert len([text for text in hidden if text.startswith("kl_weight")]) == svg.count(">kl_weight")
    assert hidden.count("fine_tune") == 2, "the words of a wide plot"


def test_ticks_are_whole_points_where_they_are_few(plain: ChartData) -> None:
    spec = spec_of("id_ood", plain)
    x = [channel["axis"]["values"] for channel in channels(spec, "x") if "axis" in channel]
    assert x[0] == [55, 56, 57, 58, 59, 60, 61, 62, 63, 64, 65, 66]
    assert _Range(57.8, 58.1).ticks == [57.8, 57.9, 58.0, 58.1]
    assert _Range(40.0, 63.0).ticks == [40, 42, 44, 46, 48, 50, 52, 54, 56, 58, 60, 62]
    assert _Range(0.0, 100.0).ticks == list(range(0, 101, 10))
    assert _Range.of([50.0]) == (49.0, 51.0)


def domain(spec: Spec, field: str) -> list[float]:
    """Return the ends of an axis."""
    every = [c for name in ("x", "y") for c in channels(spec, name) if c["field"] == field]
    ends: list[float] = next(c["scale"]["domain"] for c in every if "domain" in c.get("scale", {}))
    return ends


def share(value: float, ends: list[float]) -> float:
    return (value - ends[0]) / (ends[1] - ends[0])


def svg_texts(spec: Spec) -> list[str]:
    """Return the words of a drawn chart."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", vl_convert.vegalite_to_svg(spec))

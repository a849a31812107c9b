"""The chart of ID against OOD: points, front, curves and distances."""

from __future__ import annotations

import re

import pytest
import vl_convert
from hypothesis import given
from hypothesis import strategies as st

from tests.tracking.charts.drawn import Spec, data_of, nodes, spec_of
from tracking.charts.data import ChartData
from tracking.charts.tradeoff import pareto_front

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


def test_only_the_curve_of_the_reference_has_its_alphas_beside_it(everything: ChartData) -> None:
    spec = spec_of("id_ood", everything)
    rows = data_of(spec, "curve", "alpha")
    assert len({row["curve"] for row in rows}) == 2
    text = next(node for node in nodes(spec) if "text" in node and "alpha" in str(node["text"]))
    drawn = svg_texts(spec)
    assert text["text"]["field"] == "alpha"
    assert [word for word in drawn if word in ("0.25", "0.5", "0.75")] == ["0.25", "0.5", "0.75"]


def svg_texts(spec: Spec) -> list[str]:
    """Return the words of a drawn chart."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", vl_convert.vegalite_to_svg(spec))

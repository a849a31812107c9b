"""The chart of ID against OOD: points, curves and distances."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import vl_convert

from carft_sweep.tracking.charts.data import ChartData
from carft_sweep.tracking.comparison.compare import compare
from tests.tracking.charted import searched
from tests.tracking.charts.drawn import Spec, data_of, nodes, spec_of
from tests.tracking.made_up import KL, kl_sweep, metrics, run

SVG = "{http://www.w3.org/2000/svg}"
AXIS = 50
"""Pixels of the upright axis and its words, at least."""


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


def test_the_curves_carry_their_alphas(plain: ChartData) -> None:
    rows = data_of(spec_of("id_ood", plain), "setting", "alpha")
    assert [row["alpha"] for row in rows if row["setting"] == "fine_tune"] == [
        0,
        0.25,
        0.5,
        0.75,
        1,
    ]


SHADED = "OOD mean of the reference"


def test_shaded_is_what_lies_between_the_curves_over_the_id_that_both_reach(
    plain: ChartData,
) -> None:
    rows = data_of(spec_of("id_ood", plain), SHADED)
    reference, candidate = (
        [(100 * point.id, 100 * point.ood) for point in curve.points]
        for label in ("fine_tune", "car_ft kl_weight=1")
        for curve in plain.comparison.curves
        if curve.label == label
    )
    ends = [min(row["ID test"] for row in rows), max(row["ID test"] for row in rows)]
    assert ends == pytest.approx(
        [max(reference[0][0], candidate[0][0]), min(reference[-1][0], candidate[-1][0])], abs=1e-3
    )
    for row in rows:
        for points, field in ((candidate, "OOD mean"), (reference, SHADED)):
            ids, heights = (np.array(values) for values in zip(*points, strict=True))
            expected = np.interp(row["ID test"], ids, heights)
            assert row[field] == pytest.approx(expected, abs=1e-2)


def words_of(spec: Spec) -> dict[str, dict[str, Any]]:
    """Return the rows of the words that stand beside points, by word."""
    found = [node["data"] for node in nodes(spec) if node.get("data", {}).get("name") == "words"]
    assert all(data == found[0] for data in found), "the halo is not behind its word"
    return {row["words"]: row for row in found[0]["values"]}


def test_named_are_the_selected_setting_the_reference_zero_shot_and_the_references_alphas(
    plain: ChartData, everything: ChartData
) -> None:
    alphas = {"α 0.25", "α 0.5", "α 0.75"}
    spec = spec_of("id_ood", plain)
    assert words_of(spec).keys() == {"zero_shot", "fine_tune", "car_ft kl_weight=1"} | alphas
    assert words_of(spec_of("id_ood", everything)).keys() == alphas | {
        *("zero_shot", "fine_tune lr=0.0001", "car_ft kl_weight=0 lr=0.001")
    }
    found = words_of(spec_of("id_ood", searched(60)))
    assert {"zero_shot", "fine_tune"} < found.keys()
    for rows in spec["datasets"].values():
        assert not any("words" in row for row in rows), "no word is a number to read"


def test_names_of_points_that_are_close_stand_above_and_below(
    plain: ChartData, everything: ChartData
) -> None:
    close = words_of(spec_of("id_ood", everything))
    assert close["fine_tune lr=0.0001"]["below"] == -13
    assert close["car_ft kl_weight=0 lr=0.001"]["below"] == 13
    apart = words_of(spec_of("id_ood", plain))
    assert {row["below"] for row in apart.values() if row["is_name"]} == {-13}


def test_a_setting_far_from_all_algorithms_does_not_press_them_together() -> None:
    poor = run("car_ft", 0, metrics(0.2, 0.1), trial=9, params={KL: 300.0})
    spec = spec_of("id_ood", ChartData(compare([*kl_sweep(), poor], sweep="kl_weight")))
    svg = vl_convert.vegalite_to_svg(spec)
    ticks = [float(tick) for tick in re.findall(r"<text[^>]*>(\d\d(?:\.\d)?)</text>", svg)]
    assert ticks
    assert min(ticks) > 30
    assert any(row["ID test"] == 20 for row in data_of(spec, "ID test", "on show"))

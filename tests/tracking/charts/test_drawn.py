"""What the charts show: ID against OOD, the response, differences by split, the context probe."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import vl_convert

from carft_sweep.tracking.charts import CHARTS
from carft_sweep.tracking.charts.data import ChartData
from carft_sweep.tracking.charts.palette import colour_of
from carft_sweep.tracking.comparison.compare import compare
from carft_sweep.tracking.comparison.statistics import PairedTest
from tests.tracking.charted import full, grid_runs, searched
from tests.tracking.charts.drawn import Spec, channels, data_of, nodes, spec_of
from tests.tracking.made_up import KL, arm, kl_sweep, known, metrics, run, zero_shot


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> ChartData:
    """Of a sweep of which every chart has something to show."""
    return full(tmp_path_factory.mktemp("charted"))


@pytest.fixture(scope="module")
def plain() -> ChartData:
    """One parameter on a grid, five seeds, no folders."""
    return ChartData(compare(kl_sweep(), sweep="kl_weight"))


def test_every_setting_stands_at_its_means_and_curves_carry_their_alphas(plain: ChartData) -> None:
    spec = spec_of("id_ood", plain)
    by_label = {row["setting"]: row for row in data_of(spec, "ID test", "OOD mean", "on show")}
    for row in plain.settings:
        model = by_label[row.arm.label]
        for field, metric in (("ID test", "id/test/top1"), ("OOD mean", "ood/mean/top1")):
            assert model[field] == pytest.approx(100 * known(row.metric(metric).mean), abs=1e-3)
    shown, ci95 = by_label["fine_tune"], known(plain.settings[1].metric("id/test/top1").ci95)
    ends = (shown["ID test low"], shown["ID test high"])
    assert ends == pytest.approx((100 * ci95.low, 100 * ci95.high), abs=1e-3)
    assert "ID test low" not in by_label["car_ft kl_weight=0.1"]
    rows = data_of(spec, "setting", "alpha")
    alphas = [row["alpha"] for row in rows if row["setting"] == "fine_tune"]
    assert alphas == [0, 0.25, 0.5, 0.75, 1]


def test_shaded_is_what_lies_between_the_curves_over_the_id_of_both(plain: ChartData) -> None:
    shaded = "OOD mean of the reference"
    rows = data_of(spec_of("id_ood", plain), shaded)
    curves = {curve.arm.label: curve.points for curve in plain.comparison.curves}
    reference, candidate = (
        100 * np.array([(point.id, point.ood) for point in curves[label]]).T
        for label in ("fine_tune", "car_ft kl_weight=1")
    )
    reached = [row["ID test"] for row in rows]
    ends = max(reference[0][0], candidate[0][0]), min(reference[0][-1], candidate[0][-1])
    assert (min(reached), max(reached)) == pytest.approx(ends, abs=1e-3)
    for row in rows:
        for points, field in ((candidate, "OOD mean"), (reference, shaded)):
            assert row[field] == pytest.approx(np.interp(row["ID test"], *points), abs=1e-2)


def words_of(spec: Spec) -> dict[str, dict[str, Any]]:
    """Return the rows of the words that stand beside points, by word."""
    datasets = [node["data"] for node in nodes(spec) if node.get("data", {}).get("name") == "words"]
    assert all(data == datasets[0] for data in datasets), "the halo is not behind its word"
    return {row["words"]: row for row in datasets[0]["values"]}


def test_named_are_the_selected_setting_the_reference_zero_shot_and_the_references_alphas(
    plain: ChartData, everything: ChartData
) -> None:
    alphas, spec = {"α 0.25", "α 0.5", "α 0.75"}, spec_of("id_ood", plain)
    apart, close = words_of(spec), words_of(spec_of("id_ood", everything))
    assert apart.keys() == {"zero_shot", "fine_tune", "car_ft kl_weight=1"} | alphas
    names = "fine_tune lr=0.0001", "car_ft kl_weight=0 lr=0.001"
    assert close.keys() == {"zero_shot", *names} | alphas
    assert {"zero_shot", "fine_tune"} < words_of(spec_of("id_ood", searched(60))).keys()
    # No word is a number to read.
    assert not any("words" in row for rows in spec["datasets"].values() for row in rows)
    # Names of points that are close stand above and below.
    assert [close[name]["below"] for name in names] == [-13, 13]
    assert {row["below"] for row in apart.values() if row["is_name"]} == {-13}


def test_a_shift_has_its_paired_difference_and_each_of_few_seeds_a_dot(plain: ChartData) -> None:
    spec, place = spec_of("shifts", plain), ("car_ft kl_weight=1", "pixel")
    rows = data_of(spec, "difference", "split")
    by_place = {(row["setting"], row["split"]): row for row in rows}
    arms = {row.arm.label: row.arm.values("ood/pixel/top1") for row in plain.comparison.rows}
    sides = (arms[label].values() for label in ("car_ft kl_weight=1", "fine_tune"))
    test = PairedTest(tuple(ours - theirs for ours, theirs in zip(*sides, strict=True)))
    shown = [by_place[place][f"difference{of}"] for of in ("", " low", " high")]
    expected = [100 * value for value in (test.mean, *known(test.ci95))]
    assert (shown, by_place[place]["pairs"]) == (pytest.approx(expected, abs=1e-3), 5)
    order = list(dict.fromkeys(row["split"] for row in rows))
    assert order == ["ID test", "OOD mean", "flat_emoji", "outline", "pixel"]
    assert ("fine_tune", "pixel") not in by_place
    name = "difference of a seed"
    own = [row[name] for row in data_of(spec, name) if (row["setting"], row["split"]) == place]
    assert own == pytest.approx([100 * difference for difference in test.differences], abs=1e-3)


def test_the_context_probe_has_each_split_and_no_validation(everything: ChartData) -> None:
    rows = data_of(spec_of("context", everything), "split", "kl", "entropy")
    assert {row["split"] for row in rows} == {"ID test", "outline", "flat_emoji", "pixel"}
    probes = [row for row in rows if row["setting"] == "fine_tune lr=0.0001"]
    assert all(row["kl"] == pytest.approx(0.5 + 0.002 / 3, abs=1e-5) for row in probes)
    assert all(row["kl low"] < row["kl"] < row["kl high"] for row in probes)


def test_the_response_is_a_line_on_a_log_axis_and_zero_shot_and_the_reference_have_own_lines(
    plain: ChartData,
) -> None:
    spec = spec_of("response", plain)
    rows = data_of(spec, "kl_weight", "OOD mean top-1")
    assert sorted(row["kl_weight"] for row in rows) == [0.1, 0.3, 1.0, 3.0]
    assert all("OOD mean top-1 low" in row for row in rows)
    axis = channels(spec, "x")[0]
    assert (axis["scale"]["type"], axis["axis"]["values"]) == ("log", [0.1, 0.3, 1.0, 3.0])
    assert any(node.get("type") == "line" for node in nodes(spec))
    assert len(spec["concat"]) == 2
    levels = [row for row in data_of(spec, "setting", "ID test top-1") if "kl_weight" not in row]
    heights = {row["setting"]: row["ID test top-1"] for row in levels}
    assert heights == pytest.approx({"zero_shot": 55, "fine_tune": 65.04})
    # Where zero-shot and the reference are equally accurate, their names stand apart.
    for panel in spec["concat"]:
        colours = [
            (node["mark"]["type"], node["mark"].get("align"), node["encoding"]["color"]["value"])
            for node in panel["layer"]
            if "value" in node["encoding"].get("color", {})
        ]
        assert colours == [
            (mark, align if mark == "text" else None, colour_of(name, plain.algorithms))
            for name, align in (("zero_shot", "left"), ("fine_tune", "right"))
            for mark in ("rule", "text")
        ]


@pytest.mark.parametrize(("settings", "intervals"), [(60, 60), (61, 0)])
def test_many_settings_have_no_intervals(settings: int, intervals: int) -> None:
    ids, oods, runs = [0.6, 0.61, 0.62], [0.3, 0.31, 0.33], []
    for trial in range(settings):
        runs += arm("car_ft", ids, oods, trial=trial, params={KL: 1.0 + trial})
    spec = spec_of("response", ChartData(compare(runs, sweep="many")))
    points = [row for rows in spec["datasets"].values() for row in rows]
    assert sum("OOD mean top-1 low" in point for point in points) == intervals


def test_on_show_is_what_stands_for_each_algorithm_and_its_merges() -> None:
    data = ChartData(compare(grid_runs(), sweep="s"))
    best = ("fine_tune lr=0.0001", "car_ft kl_weight=0 lr=0.001")
    of_best = [f"{name}{of}" for name in best for of in ("", " + wise_ft@0.5", " + wise_ft@0.75")]
    assert [row.arm.label for row in data.shown] == ["zero_shot", *of_best, "flyp lr=0.0001"]
    assert data.reference is data.shown[1]
    assert data.zero_shot is data.shown[0]
    # Without candidates fine-tuning is the reference, and without it nobody.
    alone = ChartData(compare([zero_shot(), *arm("fine_tune", [0.6], [0.3])], sweep="s"))
    assert known(alone.reference).arm.label == "fine_tune"
    other = ChartData(compare([zero_shot(), *arm("car_ft", [0.6], [0.3], trial=0)], sweep="s"))
    assert other.reference is None
    assert CHARTS["shifts"].draw(other) is None


def test_confirmed_choices_are_shown_on_their_fresh_seeds() -> None:
    runs = kl_sweep(3)
    for record in kl_sweep(6):
        if record.seed is not None and record.seed >= 3 and record.params.get(KL, 1.0) == 1.0:
            changes = {"params": record.params, "merges": record.merges, "role": "confirmation"}
            runs.append(run(record.algorithm, record.seed, record.metrics, **changes))
    data = ChartData(compare(runs, sweep="confirmed"))
    shown = [row for row in data.shown if row.arm.trains and row.arm.merge is None]
    labels = {"fine_tune (confirmed)", "car_ft kl_weight=1 (confirmed)"}
    assert {row.arm.label for row in shown} == labels
    assert {run.seed for row in shown for run in row.arm.done} == {3, 4, 5}
    assert data_of(spec_of("shifts", data), "difference")
    assert len(data.settings) == 6


def test_a_setting_far_from_all_algorithms_does_not_press_them_together() -> None:
    poor = run("car_ft", 0, metrics(0.2, 0.1), trial=9, params={KL: 300.0})
    spec = spec_of("id_ood", ChartData(compare([*kl_sweep(), poor], sweep="kl_weight")))
    svg = vl_convert.vegalite_to_svg(spec)
    ticks = [float(tick) for tick in re.findall(r"<text[^>]*>(\d\d(?:\.\d)?)</text>", svg)]
    assert min(ticks, default=0) > 30
    assert any(row["ID test"] == 20 for row in data_of(spec, "ID test", "on show"))

"""Each chart shows the numbers that it should."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
import vl_convert

from tests.tracking.charted import CLASS_NAMES, IMPORTANCE, LR, grid_runs, searched
from tests.tracking.charts.drawn import channels, data_of, nodes, spec_of
from tests.tracking.made_up import KL, arm, kl_sweep, metrics, run, zero_shot
from tracking.charts import CHARTS, parallel, response
from tracking.charts import predictions as classes
from tracking.comparison.compare import Comparison, compare
from tracking.comparison.spec import ComparisonSpec, SelectionRule
from tracking.comparison.statistics import PairedTest
from tracking.comparison.wise_ft import ood_at
from tracking.evidence.data import Evidence, gather

SWEEP: Comparison = compare(kl_sweep(), sweep="kl_weight")


@pytest.fixture(scope="module")
def plain() -> Evidence:
    """One parameter on a grid, five seeds, no folders."""
    return gather(SWEEP)


def test_every_setting_stands_at_its_means(plain: Evidence) -> None:
    rows = data_of(spec_of("id_ood", plain), "ID test", "OOD mean", "on show")
    by_label = {row["setting"]: row for row in rows}
    for row in plain.settings:
        told = by_label[row.arm.label]
        for field, metric in (("ID test", "id/test/top1"), ("OOD mean", "ood/mean/top1")):
            mean = row.metric(metric).mean
            assert mean is not None
            assert told[field] == pytest.approx(100 * mean, abs=1e-3)
    shown = by_label["fine_tune"]
    ci95 = plain.settings[1].metric("id/test/top1").ci95
    assert ci95 is not None
    assert (shown["ID test low"], shown["ID test high"]) == pytest.approx(
        (100 * ci95.low, 100 * ci95.high), abs=1e-3
    )
    assert "ID test low" not in by_label["car_ft kl_weight=0.1"]


def test_the_distance_is_the_one_of_the_verdict(everything: Evidence) -> None:
    rows = data_of(spec_of("id_ood", everything), "distance")
    told = {row["setting"]: row["distance"] for row in rows}
    found = {f.pair.candidate.label: f.above_mean_curve for f in everything.comparison.verdicts}
    known = {label: distance for label, distance in found.items() if distance is not None}
    assert known
    assert {label: told[label] for label in known} == pytest.approx(
        {label: 100 * distance for label, distance in known.items()}, abs=1e-3
    )
    outside = set(found) - set(known)
    assert not outside & set(told)


def test_of_a_method_beyond_the_curve_no_distance_is_drawn(plain: Evidence) -> None:
    rows = data_of(spec_of("id_ood", plain), "distance")
    assert [row["setting"] for row in rows] == ["car_ft kl_weight=1 + wise_ft@0.75"]
    curve = next(curve for curve in SWEEP.curves if curve.label == "fine_tune")
    height = ood_at(curve, rows[0]["ID test"] / 100)
    assert height is not None
    assert rows[0]["curve"] == pytest.approx(100 * height, abs=0.02)


def test_the_curves_carry_their_alphas(plain: Evidence) -> None:
    rows = data_of(spec_of("id_ood", plain), "curve", "alpha")
    assert [row["alpha"] for row in rows if row["curve"] == "fine_tune"] == [0, 0.25, 0.5, 0.75, 1]


def test_numbers_along_curves_that_coincide_stand_once_and_apart(everything: Evidence) -> None:
    rows = data_of(spec_of("id_ood", everything), "curve", "alpha")
    told = {(row["curve"], row["alpha"]): row["above"] for row in rows if "above" in row}
    assert told == {("fine_tune lr=0.0001", alpha): True for alpha in (0.25, 0.5, 0.75)}


def test_the_response_is_a_line_on_a_log_axis_where_one_parameter_varies(plain: Evidence) -> None:
    spec = spec_of("response", plain)
    rows = data_of(spec, "kl_weight")
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


@pytest.mark.parametrize("alike", [3, 40])
@pytest.mark.parametrize(
    "values",
    [[1e-5, 1e-4, 1e-3], [0.0, 0.1, 1.0, 10.0], [1.0, 2.0, 3.0], ["frozen", "train"]],
    ids=["log", "symlog", "linear", "categories"],
)
def test_settings_with_the_same_value_are_drawn_side_by_side(
    values: list[float | str], alike: int
) -> None:
    every = [value for value in values for _ in range(alike)]
    runs = [
        run("car_ft", 0, metrics(0.6, None), trial=n, params={LR: value, KL: n})
        for n, value in enumerate(every)
    ]
    spec = spec_of("response", gather(compare(runs, sweep="alike")))
    of_lr = next(panel for panel in spec["concat"] if channels(panel, "x")[0]["title"] == "lr")
    places = drawn_at(vl_convert.vegalite_to_svg({**spec, "concat": [of_lr]}))
    assert len(places) == len(set(places)) == len(values) * alike
    groups = [sorted(places)[n : n + alike] for n in range(0, len(places), alike)]
    middles = [sum(group) / alike for group in groups]
    nearest = min(two - one for one, two in pairwise(middles))
    for group in groups:
        assert group[-1] - group[0] < 0.8 * nearest
        steps = [two - one for one, two in pairwise(group)]
        assert max(steps) < 2 * min(steps)


def drawn_at(svg: str) -> list[float]:
    """How far to the right the symbols of a chart stand."""
    marks, _ = svg.split('class="mark-group role-legend"')
    return [float(x) for x in re.findall(r'translate\(([-.\de]+),[-.\de]+\)" d="M[^"]*A', marks)]


def test_what_is_read_aloud_of_a_symbol_is_its_setting_and_not_its_place(
    everything: Evidence,
) -> None:
    svg = vl_convert.vegalite_to_svg(spec_of("response", everything))
    read = re.findall(r'<path aria-label="([^"]*)"', svg)
    assert any(
        text.startswith("car_ft kl_weight=0 lr=0.001, ID test top-1 (%): 65.") for text in read
    )
    assert not any("place" in text for text in read)


def without_mean(lost: str) -> Evidence:
    """Three settings, of each of which one seed has no finite number of this metric."""
    runs = [zero_shot()]
    for trial in range(3):
        for seed in range(3):
            measured = metrics(0.6 + trial / 100, 0.35) | ({lost: math.nan} if seed == 0 else {})
            runs.append(run("car_ft", seed, measured, trial=trial, params={KL: 10.0**trial}))
    return gather(compare(runs, sweep="holes"))


def test_an_accuracy_of_which_no_setting_has_a_mean_has_no_panel() -> None:
    shown = spec_of("response", without_mean("ood/mean/top1"))
    assert {channel["title"] for channel in channels(shown, "y") if channel.get("title")} == {
        "ID test top-1 (%)"
    }


def test_of_many_parameters_the_most_important_ones_have_panels() -> None:
    spec = spec_of("response", searched(30))
    titles = [x["title"] for x in channels(spec, "x")]
    assert list(dict.fromkeys(titles))[:2] == ["lr", "kl_weight"]
    assert len(spec["concat"]) == 2 * response.MOST
    assert not any(node.get("type") == "line" for node in nodes(spec))


def test_a_grid_is_a_heat_map_of_means_and_the_selected_cell_is_marked(
    everything: Evidence,
) -> None:
    spec = spec_of("map", everything)
    rows = data_of(spec, "kl_weight", "lr")
    assert len(rows) == 12
    assert any(node.get("type") == "rect" for node in nodes(spec))
    selected = [row for row in rows if row.get("selected")]
    assert everything.selected is not None
    params = everything.selected.arm.params
    assert [(row["kl_weight"], row["lr"]) for row in selected] == [(params[KL], params[LR])]
    ours = next(row for row in everything.settings if row.arm.params == params)
    assert selected[0]["ID val top-1"] == pytest.approx(100 * (ours.value or 0), abs=1e-3)


def test_a_cell_is_the_mean_over_the_other_parameters() -> None:
    runs = [
        run("car_ft", 0, metrics(0.5 + i / 100, 0.3), trial=i, params={KL: a, LR: b, "x": c})
        for i, (a, b, c) in enumerate([(1, 1, 0), (1, 1, 1), (1, 2, 0), (2, 1, 0), (2, 2, 1)])
    ]
    spec = spec_of("map", gather(compare(runs, sweep="three")))
    cells = {(row["kl_weight"], row["lr"]): row for row in data_of(spec, "kl_weight", "lr")}
    assert cells[1.0, 1.0]["ID val top-1"] == pytest.approx(50.5)
    assert cells[1.0, 1.0]["settings"] == 2
    assert cells[2.0, 2.0]["ID val top-1"] == pytest.approx(54)


def test_a_search_is_a_scatter() -> None:
    spec = spec_of("map", searched(30))
    assert not any(node.get("type") == "rect" for node in nodes(spec))
    assert len(data_of(spec, "lr", "kl_weight")) == 30


def test_what_is_selected_through_a_merge_is_shown_as_such() -> None:
    rule = SelectionRule(merge="wise_ft@0.5")
    evidence = gather(compare(grid_runs(1), ComparisonSpec(rule=rule), sweep="merged"))
    field = "ID val top-1, wise_ft@0.5"
    rows = data_of(spec_of("map", evidence), field)
    chosen = next(row for row in rows if row.get("selected"))
    assert evidence.comparison.selected is not None
    assert chosen[field] == pytest.approx(100 * evidence.comparison.selected.value, abs=1e-3)


def test_a_trial_is_a_line_through_its_places(everything: Evidence) -> None:
    spec = spec_of("parallel", everything)
    rows = data_of(spec, "number", "OOD mean (%)")
    assert len(rows) == 13
    first = next(row for row in rows if row["setting"] == "car_ft kl_weight=0 lr=1e-05")
    assert (first["0"], first["1"]) == (0.0, 0.0)
    last = next(row for row in rows if row["setting"] == "car_ft kl_weight=10 lr=0.001")
    assert (last["0"], last["1"]) == (1.0, 1.0)
    best = max(rows, key=lambda row: row["OOD mean (%)"])
    assert best["4"] == 1.0
    flyp = next(row for row in rows if row["setting"].startswith("flyp"))
    assert "0" not in flyp
    assert [row["setting"] for row in rows if row.get("selected")] == [
        everything.selected.arm.label if everything.selected else None
    ]


@pytest.mark.parametrize(("trials", "drawn"), [(4, False), (5, True)])
def test_one_parameter_wants_five_trials(trials: int, drawn: bool) -> None:
    runs = [
        run("car_ft", 0, metrics(0.6 + t / 100, 0.3 + t / 100), trial=t, params={KL: t})
        for t in range(trials)
    ]
    evidence = gather(compare(runs, sweep="few"))
    assert (parallel.draw(evidence) is not None) == drawn


def test_importance_is_in_percent_with_the_largest_first(everything: Evidence) -> None:
    spec = spec_of("importance", everything)
    assert len(spec["concat"]) == len(IMPORTANCE)
    rows = data_of(spec, "parameter", "share")
    assert rows == [
        {"parameter": "kl_weight", "share": 70.0},
        {"parameter": "lr", "share": 30.0},
    ]


def test_learning_is_the_mean_and_range_over_seeds(everything: Evidence) -> None:
    spec = spec_of("learning", everything)
    rows = [
        row
        for row in data_of(spec, "epoch", "mean", "standing")
        if row["setting"] == "fine_tune lr=0.0001" and row["mean"] < 2
    ]
    assert [(row["epoch"], row["mean"], row["low"], row["high"]) for row in rows] == [
        (1, 1.8, 1.8, 1.8),
        (2, 1.2, 1.2, 1.2),
        (3, pytest.approx(1.01), 1.0, 1.02),
    ]
    standing = {row["setting"]: row["standing"] for row in data_of(spec, "epoch", "standing")}
    assert sorted(standing.values()) == ["best"] * 9 + ["pruned"] + ["shown"] * 3


def test_a_shift_has_the_paired_difference_in_points(plain: Evidence) -> None:
    rows = data_of(spec_of("shifts", plain), "difference", "split")
    found = {(row["setting"], row["split"]): row for row in rows}
    ours, theirs = (
        next(row.arm for row in SWEEP.rows if row.arm.label == label)
        for label in ("car_ft kl_weight=1", "fine_tune")
    )
    metric = "ood/pixel/top1"
    sides = (ours.by_seed(metric).values(), theirs.by_seed(metric).values())
    known = PairedTest(tuple(one - two for one, two in zip(*sides, strict=True)))
    assert known.ci95 is not None
    told = found["car_ft kl_weight=1", "pixel"]
    assert told["difference"] == pytest.approx(100 * known.mean, abs=1e-3)
    assert told["difference low"] == pytest.approx(100 * known.ci95.low, abs=1e-3)
    assert told["pairs"] == 5
    order = list(dict.fromkeys(row["split"] for row in rows))
    assert order == ["ID test", "flat_emoji", "outline", "pixel", "OOD mean"]
    assert ("fine_tune", "pixel") not in found


def test_two_seeds_give_differences_without_intervals() -> None:
    runs = [
        *arm("fine_tune", [0.6, 0.62], [0.3, 0.3]),
        *arm("car_ft", [0.6] * 2, [0.4] * 2, trial=0),
    ]
    rows = data_of(spec_of("shifts", gather(compare(runs, sweep="two"))), "difference")
    assert {row["difference"] for row in rows if row["split"] == "OOD mean"} == {10.0}
    assert not any("difference low" in row for row in rows)


def test_classes_are_the_extremes_by_name(everything: Evidence) -> None:
    rows = data_of(spec_of("classes", everything), "class", "difference")
    mean = [row for row in rows if row["split"] == "OOD mean" and "difference low" in row]
    assert len(mean) == 2 * classes.MOST
    ranked = [row["difference"] for row in sorted(mean, key=lambda row: row["rank"])]
    assert ranked == sorted(ranked, reverse=True)
    assert {row["class"] for row in rows} <= set(CLASS_NAMES)
    assert {row["split"] for row in rows} == {
        "OOD mean",
        "ID test",
        "flat_emoji",
        "outline",
        "pixel",
    }
    lead = everything.selected
    assert lead is not None
    assert {row["setting"] for row in mean} == {lead.arm.label}


def test_calibration_has_the_ece_in_its_legend(everything: Evidence) -> None:
    rows = data_of(spec_of("calibration", everything), "setting and ECE", "accuracy")
    (part,) = (
        part
        for part in everything.reliability
        if part.where == "id/test" and part.row.arm.label == "zero_shot"
    )
    named = f"zero_shot, ECE {100 * part.ece:.1f} %"
    ours = [row for row in rows if row["setting and ECE"] == named]
    assert sum(row["share"] for row in ours) == pytest.approx(100, abs=0.05)
    assert sum(row["images"] for row in ours) == 120


def test_the_context_probe_has_each_split_and_no_validation(everything: Evidence) -> None:
    rows = data_of(spec_of("context", everything), "split", "kl", "entropy")
    assert {row["split"] for row in rows} == {"ID test", "outline", "flat_emoji", "pixel"}
    ours = [row for row in rows if row["setting"] == "fine_tune lr=0.0001"]
    assert all(row["kl"] == pytest.approx(0.5 + 0.002 / 3, abs=1e-5) for row in ours)
    assert all(row["kl low"] < row["kl"] < row["kl high"] for row in ours)


def test_cost_has_seconds_throughput_and_how_runs_ended(everything: Evidence) -> None:
    spec = spec_of("cost", everything)
    rows = data_of(spec, "training per run (s)", "images per second")
    assert {(row["training per run (s)"], row["images per second"]) for row in rows} == {
        (10.5, 102.0)
    }
    counts = {(row["algorithm"], row["state"]): row["runs"] for row in data_of(spec, "state")}
    assert counts == {
        ("fine_tune", "done"): 6,
        ("car_ft", "done"): 35,
        ("car_ft", "failed"): 1,
        ("car_ft", "pruned"): 1,
        ("flyp", "done"): 3,
    }
    paler = channels(spec, "opacity")[0]["scale"]
    # Of a scale between two ends, Vega would not take each value as it stands.
    assert (paler["type"], paler["range"]) == ("ordinal", [1.0, 0.7, 0.4])


def test_without_shifts_id_alone_is_shown() -> None:
    runs = [
        run("car_ft", 0, metrics(0.6 + t / 100, None), trial=t, params={KL: 10.0**t, LR: t % 2})
        for t in range(4)
    ]
    evidence = gather(compare([zero_shot(ood=None), *runs], sweep="no shifts"))
    assert CHARTS["id_ood"].draw(evidence) is None
    assert len(spec_of("response", evidence)["concat"]) == 2
    assert len(spec_of("map", evidence)["concat"]) == 1
    axes = data_of(spec_of("parallel", evidence), "axis", "label")
    assert {row["axis"] for row in axes} == {"0", "1", "2", "3"}


def test_confirmed_choices_are_shown_on_their_fresh_seeds() -> None:
    runs = kl_sweep(3)
    for record in kl_sweep(6):
        if record.seed is not None and record.seed >= 3 and record.params.get(KL, 1.0) == 1.0:
            told = {"params": record.params, "merges": record.merges, "role": "confirmation"}
            runs.append(run(record.algorithm, record.seed, record.metrics, **told))
    comparison = compare(runs, sweep="confirmed")
    evidence = gather(comparison)
    shown = [row for row in evidence.on_show if row.arm.trains and row.arm.merge is None]
    assert {row.arm.label for row in shown} == {
        "fine_tune (confirmed)",
        "car_ft kl_weight=1 (confirmed)",
    }
    assert {run.seed for row in shown for run in row.arm.done} == {3, 4, 5}
    assert data_of(spec_of("shifts", evidence), "difference")
    assert len(evidence.settings) == 6

"""What is measured beside the shifts, as a second part of a domain, is in no mean over them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.tracking.kept import SPLITS, with_folder
from tests.tracking.made_up import arm, zero_shot
from tracking.charts.data import ChartData
from tracking.charts.predictions import all_class_differences, reliability
from tracking.comparison.compare import compare
from tracking.comparison.predictions import intervals, pick, read_predictions
from tracking.comparison.runs import RunRecord, group

OUTSIDE = {"outside_means": ["ood/pixel"]}
WITHIN = SPLITS["ood/outline"] + SPLITS["ood/flat_emoji"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[RunRecord]:
    home = tmp_path_factory.mktemp("outside")
    made = [
        zero_shot(),
        *arm("fine_tune", [0.6] * 2, [0.3] * 2),
        *arm("car_ft", [0.6] * 2, [0.4] * 2, trial=0),
    ]
    return [with_folder(replace(run, facts=OUTSIDE), home) for run in made]


@pytest.fixture(scope="module")
def data(runs: list[RunRecord]) -> ChartData:
    return ChartData(compare(runs, sweep="s"))


def test_a_run_that_tells_nothing_has_every_shift_in_its_means() -> None:
    assert zero_shot().outside_means == frozenset()
    assert zero_shot(facts=OUTSIDE).outside_means == {"ood/pixel"}


def test_the_interval_of_the_mean_is_over_the_shifts_alone(runs: list[RunRecord]) -> None:
    hits = read_predictions(runs[-2:], None)
    assert hits is not None
    own = hits.split != "ood/pixel"
    bare = hits.only(own)
    with_all = intervals(replace(hits, outside=frozenset()))
    # Other drawings are drawn beside it, so the two are not equal to the last digit.
    assert intervals(hits)["ood/mean/top1"] == pytest.approx(
        intervals(bare)["ood/mean/top1"], abs=0.02
    )
    assert intervals(hits)["ood/mean/top1"] != with_all["ood/mean/top1"]
    assert "ood/pixel/top1" in intervals(hits)


def test_charts_of_the_mean_are_over_the_shifts_alone(data: ChartData) -> None:
    rows = [row for row in data.shown if row.n]
    mean = [reliability(row, [*data.tallies(row).values()], "ood/mean")[1] for row in rows]
    assert {sum(part["images"] for part in bins) for bins in mean} == {WITHIN, 2 * WITHIN}
    classes = [found for found in all_class_differences(data) if found.split == "ood/mean"]
    assert {int(found.images.sum()) for found in classes} == {WITHIN}
    assert "ood/pixel" in {found.split for found in all_class_differences(data)}


def test_the_gallery_shows_the_test_and_the_shifts(runs: list[RunRecord]) -> None:
    first, fine_tune, car_ft = group(runs)
    found = pick(car_ft, fine_tune, first.done[0], (0, 1))
    assert found is not None
    assert {row.split for row in found.counts} == {"id/test", "ood/outline", "ood/flat_emoji"}
    assert "ood/pixel" not in {picture.split for picture in found.pictures}

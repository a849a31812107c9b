"""Intervals over images come from the kept predictions, drawing whole units."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from scipy import stats

from tests.tracking.made_up import metrics, run
from tracking.comparison.compare import compare
from tracking.comparison.predictions import (
    intervals,
    predictions_path,
    read_predictions,
)
from tracking.comparison.runs import RunRecord
from tracking.errors import TrackingError
from tracking.report.formats import markdown, to_csv
from tracking.report.table import OVER_IMAGES
from tracking.report.terminal import terminal


def keep(
    folder: Path,
    hits: Sequence[Sequence[int]],
    *,
    splits: Sequence[str] = ("id/test", "ood/a", "ood/b"),
    merge: str | None = None,
    views: int = 1,
    backwards: bool = False,
) -> None:
    """Write predictions: per split one hit or miss per drawing, each with `views` views."""
    rows = [
        {
            "split": split,
            "id": f"{split}-{unit}-{view}",
            "unit": f"{'test' if 'test' in split else 'shift'}-{unit}",
            "label": 3,
            "prediction": 3 if hit else 5,
        }
        for split, ours in zip(splits, hits, strict=True)
        for unit, hit in enumerate(ours)
        for view in range(views)
    ]
    path = predictions_path(folder, merge)
    path.parent.mkdir(parents=True)
    parquet.write_table(pa.Table.from_pylist(rows[::-1] if backwards else rows), path)


def kept_run(folder: Path, seed: int = 0, algorithm: str = "fine_tune") -> RunRecord:
    trial = None if algorithm == "fine_tune" else 0
    return run(algorithm, seed, metrics(0.6, 0.3), trial=trial, folder=folder)


RNG = np.random.default_rng(0)
HITS = [(RNG.random(100) < share).astype(int).tolist() for share in (0.7, 0.4, 0.2)]


def test_hits_are_read_in_one_order_whatever_the_files(tmp_path: Path) -> None:
    keep(tmp_path / "a", HITS)
    keep(tmp_path / "b", HITS, backwards=True)
    a, b = (read_predictions([kept_run(tmp_path / name)], None) for name in "ab")
    assert a is not None
    assert b is not None
    assert a.same_items(b)
    np.testing.assert_array_equal(a.share, b.share)
    assert a.share.sum() == sum(map(sum, HITS))


def test_intervals_lie_around_the_accuracies(tmp_path: Path) -> None:
    keep(tmp_path, HITS)
    hits = read_predictions([kept_run(tmp_path)], None)
    assert hits is not None
    found = intervals(hits)
    test, ood = sum(HITS[0]) / 100, (sum(HITS[1]) + sum(HITS[2])) / 200
    assert found["id/test/top1"].low < test < found["id/test/top1"].high
    assert found["ood/mean/top1"].low < ood < found["ood/mean/top1"].high
    half = 1.96 * math.sqrt(test * (1 - test) / 100)
    low, high = found["id/test/top1"]
    assert (high - low) / 2 == pytest.approx(half, rel=0.12)


def test_more_views_of_the_same_drawings_do_not_narrow_the_interval(tmp_path: Path) -> None:
    keep(tmp_path / "one", HITS)
    keep(tmp_path / "six", HITS, views=6)
    one, six = (read_predictions([kept_run(tmp_path / name)], None) for name in ("one", "six"))
    assert one is not None
    assert six is not None
    narrow, wide = intervals(six)["ood/mean/top1"], intervals(one)["ood/mean/top1"]
    assert narrow == pytest.approx(wide, abs=1e-9)


def test_a_paired_difference_is_surer_than_two_intervals(tmp_path: Path) -> None:
    better = [[max(hit, int(unit % 10 == 0)) for unit, hit in enumerate(ours)] for ours in HITS]
    keep(tmp_path / "a", HITS)
    keep(tmp_path / "b", better)
    a, b = (read_predictions([kept_run(tmp_path / name)], None) for name in "ab")
    assert a is not None
    assert b is not None
    paired, alone = intervals(b, minus=a)["ood/mean/top1"], intervals(a)["ood/mean/top1"]
    assert paired.low > 0
    assert paired.high - paired.low < 0.75 * (alone.high - alone.low)


def test_without_predictions_or_with_other_images_there_is_no_interval(tmp_path: Path) -> None:
    keep(tmp_path / "a", HITS)
    keep(tmp_path / "b", [ours[:50] for ours in HITS])
    a, b = kept_run(tmp_path / "a"), kept_run(tmp_path / "b", 1)
    assert read_predictions([a, b], None) is None
    assert read_predictions([a], "wise_ft@0.5") is None
    assert read_predictions([a, run("fine_tune", 1, metrics(0.6, 0.3))], None) is None
    assert read_predictions([], None) is None
    one, other = read_predictions([a], None), read_predictions([b], None)
    assert one is not None
    assert other is not None
    assert intervals(one, minus=other) == {}


@pytest.mark.parametrize("content", [b"torn", None])
def test_a_file_that_holds_no_predictions_is_named(tmp_path: Path, content: bytes | None) -> None:
    keep(tmp_path, HITS)
    path = predictions_path(tmp_path, None)
    if content is None:
        parquet.write_table(pa.table({"id": ["a"]}), path)
    else:
        path.write_bytes(content)
    with pytest.raises(TrackingError, match=rf"{path} holds no predictions .*remove the folder"):
        read_predictions([kept_run(tmp_path)], None)


def test_what_has_no_interval_though_asked_is_said(tmp_path: Path) -> None:
    keep(tmp_path, HITS)
    runs = [kept_run(tmp_path), run("car_ft", 0, metrics(0.6, 0.3), trial=0)]
    said = "no interval over images for car_ft: a run keeps no predictions"
    assert any(said in text for text in compare(runs, sweep="s", with_images=True).warnings)
    assert not any(said in text for text in compare(runs, sweep="s").warnings)


def test_a_comparison_has_them_when_asked(tmp_path: Path) -> None:
    runs = []
    for seed in range(5):
        for algorithm in ("fine_tune", "car_ft"):
            folder = tmp_path / f"{algorithm}-{seed}"
            keep(folder, HITS if algorithm == "fine_tune" else [HITS[0], [1] * 100, HITS[2]])
            runs.append(kept_run(folder, seed, algorithm))
    plain = compare(runs, sweep="s")
    assert all(not row.ci95_images for row in plain.rows)
    asked = compare(runs, sweep="s", with_images=True)
    splits = {"id/test/top1", "ood/a/top1", "ood/b/top1", "ood/mean/top1"}
    assert all(set(row.ci95_images) == splits for row in asked.rows)
    assert set(asked.verdicts[0].ci95_images) == splits
    assert asked.verdicts[0].ci95_images["id/test/top1"] == (0, 0)
    over_images = asked.verdicts[0].ci95_images["ood/mean/top1"]
    assert 0 < over_images.low < (100 - sum(HITS[1])) / 200 < over_images.high
    assert "Over images instead of seeds" in asked.verdict
    for text in (terminal(asked, width=60), markdown(asked)):
        assert OVER_IMAGES.split(" (")[0] in text
        assert len(re.findall(r"\d+\.\d to \d+\.\d", text)) == 2 * 2  # ID and OOD of both
    assert OVER_IMAGES not in terminal(plain) + markdown(plain)
    row = next(csv.DictReader(io.StringIO(to_csv(asked))))
    low, high = (float(row[f"ood/mean/top1 images_{end}"]) for end in ("low", "high"))
    assert (low, high) == pytest.approx(asked.rows[0].ci95_images["ood/mean/top1"])
    assert "images_low" not in to_csv(plain)
    assert compare([*runs, run("flyp", 0, metrics(0.6, 0.3))], sweep="s", with_images=True).rows


def test_a_family_without_shifts_or_without_a_test_has_the_interval_it_can(tmp_path: Path) -> None:
    keep(tmp_path / "test", HITS[:1], splits=("id/test",))
    keep(tmp_path / "shift", HITS[:1], splits=("ood/a",))
    keep(tmp_path / "val", HITS[:1], splits=("id/val",))
    found = {}
    for name in ("test", "shift", "val"):
        hits = read_predictions([kept_run(tmp_path / name)], None)
        assert hits is not None
        found[name] = set(intervals(hits))
    assert found == {
        "test": {"id/test/top1"},
        "shift": {"ood/a/top1", "ood/mean/top1"},
        "val": {"id/val/top1"},
    }


def test_each_split_has_the_interval_it_would_have_alone(tmp_path: Path) -> None:
    splits = ("id/val", "id/test", "ood/a")
    keep(tmp_path / "all", HITS, splits=splits)
    together = read_predictions([kept_run(tmp_path / "all")], None)
    assert together is not None
    found = intervals(together)
    for split, hits in zip(splits, HITS, strict=True):
        low, high = found[f"{split}/top1"]
        share = sum(hits) / 100
        exact = stats.binom.ppf([0.025, 0.975], 100, share) / 100
        assert (low, high) == pytest.approx(exact, abs=0.011)

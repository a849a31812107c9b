"""Comparisons as pandas frames."""

from __future__ import annotations

import pandas as pd
import pytest

from tests.tracking.made_up import KL, kl_sweep, run
from tracking.comparison.compare import Comparison, compare
from tracking.report.formats import rows_frame, runs_frame

OOD = "ood/mean/top1"


@pytest.fixture(scope="module")
def found() -> Comparison:
    return compare([*kl_sweep(), run("car_ft", 9, None, trial=0, params={KL: 0.1})], sweep="kl")


def test_there_is_a_line_for_each_row_with_its_means_and_varied_fields(found: Comparison) -> None:
    frame = rows_frame(found)
    assert list(frame["setting"]) == [row.arm.label for row in found.rows]
    for row, (_, line) in zip(found.rows, frame.iterrows(), strict=True):
        assert line[OOD] == row.metric(OOD).mean
        assert line["selected"] == row.selected
    unmerged = frame[frame["merge"].isna() & (frame["algorithm"] == "car_ft")]
    assert list(unmerged[KL]) == [0.1, 0.3, 1.0, 3.0]
    assert frame[frame["algorithm"] == "fine_tune"][KL].isna().all()


def test_intervals_stand_beside_their_means(found: Comparison) -> None:
    frame = rows_frame(found, intervals=True)
    names = list(frame.columns)
    at = names.index(OOD)
    assert names[at : at + 3] == [OOD, f"{OOD} low", f"{OOD} high"]
    tuned = frame[frame["setting"] == "fine_tune"].iloc[0]
    row = next(row for row in found.rows if row.arm.label == "fine_tune")
    ends = row.metric(OOD).ci95
    assert ends is not None
    assert (tuned[f"{OOD} low"], tuned[f"{OOD} high"]) == (ends.low, ends.high)
    zero_shot = frame[frame["algorithm"] == "zero_shot"].iloc[0]
    assert pd.isna(zero_shot[f"{OOD} low"])


def test_every_run_has_a_line_for_each_of_its_models_and_failed_ones_have_no_numbers(
    found: Comparison,
) -> None:
    frame = runs_frame(found)
    done = frame[frame["state"] == "done"]
    assert len(done[done["merge"].isna()]) == 1 + 5 * 5
    assert len(done[done["merge"] == "wise_ft@0.5"]) == 5 * 5
    failed = frame[frame["state"] == "failed"]
    assert list(failed["seed"]) == [9]
    assert failed[OOD].isna().all()
    # The mean over runs is that of the table.
    of_runs = done[done["merge"].isna()].groupby("setting")[OOD].mean()
    of_rows = rows_frame(found).set_index("setting")[OOD]
    assert of_runs["fine_tune"] == pytest.approx(of_rows["fine_tune"])
    assert str(frame["seed"].dtype) == "Int64"


def test_metrics_come_last_and_in_the_order_of_tables(found: Comparison) -> None:
    names = list(rows_frame(found).columns)
    first = next(place for place, name in enumerate(names) if "/" in name)
    assert all("/" in name for name in names[first:])
    assert names[first] == "id/val/top1"
    assert names.index("id/test/top1") < names.index(OOD) < names.index("gap/top1")


def test_nothing_gives_an_empty_frame() -> None:
    empty = compare([], sweep="none")
    assert rows_frame(empty).empty
    assert runs_frame(empty).empty

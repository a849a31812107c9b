"""Images won and lost between two settings are what their predictions say, counted once more."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from carft_sweep.tracking.comparison.compare import Comparison, compare
from carft_sweep.tracking.comparison.flips import find_flips
from carft_sweep.tracking.comparison.predictions import predictions_path
from carft_sweep.tracking.comparison.runs import RunRecord
from carft_sweep.tracking.errors import TrackingError
from tests.tracking.kept import SPLITS, with_folder
from tests.tracking.made_up import kl_sweep

CAR_FT = "car_ft kl_weight=3"


def kept(home: Path, seeds: int = 5) -> Comparison:
    records = (it for it in kl_sweep(seeds) if it.params.get("algorithm.kl_weight") in (None, 3.0))
    return compare([with_folder(record, home) for record in records])


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return kept(tmp_path_factory.mktemp("home"))


def right(runs: Sequence[RunRecord], merge: str | None) -> pd.DataFrame:
    """By split and image, whether each of the runs has it right."""
    columns = []
    for run in runs:
        assert run.folder is not None
        frame = pd.read_parquet(predictions_path(run.folder, merge)).astype({"split": str})
        columns.append(
            (frame["label"] == frame["prediction"]).set_axis([frame["split"], frame["id"]])
        )
    return pd.concat(columns, axis=1)


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        ("fine_tune", CAR_FT),
        ("zero_shot", "fine_tune"),
        ("fine_tune + wise_ft@0.5", f"{CAR_FT} + wise_ft@0.25"),
    ],
)
def test_counts_are_those_of_the_majority_over_the_seeds(
    comparison: Comparison, reference: str, candidate: str
) -> None:
    arms = {row.arm.label: row.arm for row in comparison.rows}
    one, two = (right(arms[label].done, arms[label].merge) for label in (reference, candidate))
    before, after = (side.mean(axis=1) > 0.5 for side in (one, two))
    change = two.mean(axis=1) - one.mean(axis=1)
    seeds, splits = find_flips(comparison, reference, candidate)
    assert [*splits["split"]] == sorted({*SPLITS} - {"id/val"})
    for it in splits.itertuples():
        won, lost = (after & ~before)[it.split].sum(), (before & ~after)[it.split].sum()
        assert (it.images, it.won, it.lost, it.net) == (SPLITS[it.split], won, lost, won - lost)
        assert it.difference == pytest.approx(change[it.split].mean())
    assert seeds == (0, 1, 2, 3, 4)


def test_only_common_seeds_count(tmp_path: Path) -> None:
    records = [with_folder(it, tmp_path) for it in kl_sweep() if it.trial in (None, 3)]
    fewer = [it for it in records if it.algorithm != "fine_tune" or it.seed in (1, 3)]
    arms = {row.arm.label: row.arm for row in compare(fewer).rows}
    seeds, splits = find_flips(compare(fewer), "fine_tune", CAR_FT)
    assert seeds == (1, 3)
    common = [run for run in arms[CAR_FT].done if run.seed in (1, 3)]
    before, after = (
        right(runs, None).mean(axis=1) > 0.5 for runs in (arms["fine_tune"].done, common)
    )
    assert [*splits["won"]] == [(after & ~before)[split].sum() for split in splits["split"]]


def test_what_cannot_be_counted_is_told(tmp_path: Path) -> None:
    comparison = kept(tmp_path)

    def refused(reference: str, candidate: str, said: str, of: Comparison = comparison) -> None:
        with pytest.raises(TrackingError, match=re.escape(said)):
            find_flips(of, reference, candidate)

    refused("finetune", CAR_FT, "unknown setting 'finetune'; did you mean 'fine_tune'?")
    refused("fine_tune", f"{CAR_FT} + wise_ft@0.4", f"did you mean '{CAR_FT} + wise_ft@0.5'?")
    other = [
        replace(it, seed=it.seed + 5, digest=f"{it.digest}b")
        if it.algorithm == "fine_tune" and it.seed is not None
        else it
        for it in comparison.runs()
    ]
    refused("fine_tune", CAR_FT, "have no finished seed in common", compare(other))
    run = next(it for it in comparison.runs() if it.algorithm == "fine_tune")
    assert run.folder is not None
    shutil.rmtree(run.folder)
    refused("fine_tune", CAR_FT, "fine_tune keeps no predictions here (trial.keep.predictions)")

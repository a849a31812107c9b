"""The frame of predictions has a row for each image and model, and answers questions of images."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import carft_sweep
from carft_sweep import predictions
from carft_sweep.tracking.comparison.compare import Comparison, compare
from carft_sweep.tracking.comparison.predictions import predictions_path
from carft_sweep.tracking.comparison.runs import RunRecord
from carft_sweep.tracking.comparison.spec import ComparisonSpec
from carft_sweep.tracking.comparison.tasks import compare_tasks
from carft_sweep.tracking.errors import TrackingError
from carft_sweep.tracking.report import predictions as module
from tests.tracking.kept import SPLITS, keep_predictions, with_folder
from tests.tracking.made_up import KL, kl_sweep, known, metrics, run, zero_shot

IMAGES = sum(SPLITS.values())
NAMES = ("bell", "crane", "crane", "key")
Answers = Mapping[str, tuple[list[int], list[int]]]
"""By split: what is right, and what a model says."""


def answering(
    home: Path, algorithm: str, seed: int, answers: Answers, names: Sequence[str] = NAMES
) -> RunRecord:
    """A run with a folder that holds these predictions, of four classes and of a sure model."""
    logits = {
        split: (4.0 * np.eye(4)[predicted], np.array(labels))
        for split, (labels, predicted) in answers.items()
    }
    folder = home / f"{algorithm}-{seed}"
    keep_predictions(folder, None, logits, names)
    return run(algorithm, seed, metrics(0.6, 0.3), folder=folder)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    home = tmp_path_factory.mktemp("runs")
    return compare([with_folder(record, home) for record in kl_sweep(2)], sweep="kl_weight")


def test_each_image_of_each_model_has_a_row_and_what_is_asked_chooses(swept: Comparison) -> None:
    frame = predictions(swept)
    assert len(frame) == IMAGES * sum(1 + len(run.merges) for run in swept.runs())
    assert not frame.duplicated(["split", "image", "setting", "seed", "merge"]).any()
    assert {*frame["split"]} == {*SPLITS}
    zero = frame[frame["setting"] == "zero_shot"]
    assert zero[["seed", "merge"]].isna().all(axis=None)
    merged = frame[frame["merge"] == "wise_ft@0.25"]
    assert {*merged["alpha"]} == {0.25}
    assert {*merged["algorithm"]} == {"fine_tune", "car_ft"}
    only = predictions(swept, splits="outline", settings="fine_tune", merges=["unmerged"], seeds=1)
    assert len(only) == SPLITS["ood/outline"]
    assert predictions(swept, splits=["ood/outline"], settings="zero_shot")["shift"].nunique() == 1
    assert predictions(swept, splits="pixel", settings="car_ft")["setting"].nunique() == 4
    wise_ft = predictions(swept, splits="pixel", merges="wise_ft")
    assert {*wise_ft["alpha"]} == {0.25, 0.5, 0.75}
    with_seed = predictions(swept, seeds=[0], merges="unmerged")
    assert {*with_seed["setting"]} >= {"zero_shot", "fine_tune"}
    assert {*with_seed["seed"].dropna()} == {0}


def test_the_numbers_are_those_of_the_files_and_classes_without_a_name_have_theirs(
    tmp_path: Path,
) -> None:
    answers = {"id/test": ([0, 3], [0, 0]), "ood/outline": ([1, 2], [2, 2])}
    frame = predictions(compare([answering(tmp_path, "fine_tune", 7, answers)]))
    columns = ["split", "shift", "class", "predicted", "correct", "image"]
    lines = frame[columns].astype(object).where(frame[columns].notna(), None)
    assert lines.to_numpy().tolist() == [
        ["id/test", None, "bell", "bell", True, "id/test-0"],
        ["id/test", None, "key", "bell", False, "id/test-1"],
        ["ood/outline", "outline", "crane (1)", "crane (2)", False, "ood/outline-0"],
        ["ood/outline", "outline", "crane (2)", "crane (2)", True, "ood/outline-1"],
    ]
    assert {*frame["seed"]} == {7}
    sure = np.exp(4) / (np.exp(4) + 3)
    np.testing.assert_allclose(frame["confidence"], sure, rtol=1e-6)
    other_task = {"id/test": ([3], [1]), "retention/dtd": ([3], [1])}
    numbered = predictions(compare([answering(tmp_path, "fine_tune", 0, other_task)]))
    assert [*numbered["class"]] == ["key", "class 3"], "the other task has other classes"
    assert [*numbered["predicted"]] == ["crane (1)", "class 1"]
    unnamed = answering(tmp_path, "car_ft", 0, {"id/test": ([3], [0])}, NAMES[:1])
    assert [*predictions(compare([unnamed]))["class"]] == ["class 3"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"splits": "outlines"}, "unknown split 'outlines'; did you mean 'outline'?"),
        ({"settings": ["finetune"]}, "unknown setting 'finetune'; did you mean 'fine_tune'?"),
        ({"merges": "wise_ft@.5"}, "unknown merge 'wise_ft@.5'; did you mean 'wise_ft@0.5'?"),
        ({"seeds": 4}, "unknown seed '4'; Known: 0, 1."),
    ],
)
def test_a_name_that_is_not_there_is_answered_by_the_nearest(
    swept: Comparison, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrackingError, match=re.escape(message)):
        predictions(swept, **wrong)


def test_what_would_not_fit_is_not_read(swept: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ROWS", SPLITS["ood/outline"])
    monkeypatch.setattr(module, "_table", None)
    message = r"[\d,]+ predictions of 41 models are more than fit .* \(90\); choose some with spl"
    with pytest.raises(TrackingError, match=message):
        predictions(swept)
    monkeypatch.undo()
    monkeypatch.setattr(module, "MOST_ROWS", SPLITS["ood/outline"])
    assert len(predictions(swept, splits="outline", settings="zero_shot")) == 90


def test_runs_without_predictions_are_counted_and_without_any_it_is_said(tmp_path: Path) -> None:
    measured = run("fine_tune", 0, metrics(0.6, 0.3))
    with pytest.raises(TrackingError, match="no finished run of gone keeps predictions here"):
        predictions(compare([measured, zero_shot()], sweep="gone"))
    half = [with_folder(measured, tmp_path), zero_shot()]
    with pytest.warns(UserWarning, match="1 of 2 models of half keep no predictions here"):
        frame = predictions(compare(half, sweep="half"))
    assert {*frame["setting"]} == {"fine_tune"}
    predictions_path(tmp_path / measured.digest, None).write_text("no parquet")
    with pytest.raises(TrackingError, match="holds no predictions"):
        predictions(compare(half[:1], sweep="half"))


def test_of_several_tasks_each_row_says_of_which_it_is(tmp_path: Path) -> None:
    runs = []
    for task in ("dtd", "eurosat"):
        own: dict[str, Any] = {"params": {"data.family": task}, "digest": f"{task}-0", "trial": 0}
        runs.append(with_folder(run("fine_tune", 0, metrics(0.6, None), **own), tmp_path))
    frame = predictions(compare_tasks(runs, ComparisonSpec(tasks="data.family"), sweep="tasks"))
    assert dict(frame["data.family"].value_counts()) == {"dtd": IMAGES, "eurosat": IMAGES}


def test_the_example_says_which_images_a_method_gains_and_loses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = [0, 0, 1, 3]
    tuned = {"ood/outline": (labels, [0, 3, 1, 0]), "ood/pixel": (labels[:3], [3, 3, 1])}
    held = {"ood/outline": (labels, [0, 0, 2, 0]), "ood/pixel": (labels[:3], [0, 0, 1])}
    runs = []
    for seed in range(3):
        car_ft = answering(tmp_path, "car_ft", seed, held)
        runs.append(replace(car_ft, trial=0, params={KL: 1}))
        runs.append(answering(tmp_path, "fine_tune", seed, tuned))
    comparison = compare(runs, sweep="kl_weight")
    ours = partial(predictions, comparison)
    monkeypatch.setattr(carft_sweep, "predictions", lambda _, **chosen: ours(**chosen))
    block = known(re.search(r"```python\n(.*?)```", inspect.getdoc(predictions) or "", re.DOTALL))
    *lines, last = block[1].strip().splitlines()
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    table: pd.DataFrame = eval(last, names)
    counted = {key: (row["gained"], row["lost"]) for key, row in table.iterrows()}
    outline = {"bell": (1, 0), "crane (1)": (0, 1), "key": (0, 0)}
    pixel = {"bell": (2, 0), "crane (1)": (0, 0)}
    of_outline = {("outline", name): counts for name, counts in outline.items()}
    assert counted == of_outline | {("pixel", name): counts for name, counts in pixel.items()}

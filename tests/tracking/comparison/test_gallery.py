"""The gallery counts every image that zero-shot had right, and shows both kinds by a fixed rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tracking.made_up import metrics, run
from tracking.comparison.predictions import Answer, Counts, Gallery, pick, predictions_path
from tracking.comparison.runs import Arm, RunRecord, group

LABEL, WRONG = 3, 5
Said = Mapping[str, Sequence[int]]
"""Split to what is said of each of its images, in the order of their numbers."""


def kept(folder: Path, algorithm: str, seed: int | None, said: Said, **told: Any) -> RunRecord:
    """A run that keeps predictions; all images are of class 3, two views of each drawing."""
    views, backwards = told.get("views", 1), told.get("backwards", False)
    rows = [
        {
            "split": split,
            "id": f"{split}:{number // views}#{number % views}",
            "unit": f"{split}:{number // views}",
            "label": LABEL,
            "prediction": prediction,
        }
        for split, predictions in said.items()
        for number, prediction in enumerate(predictions)
    ]
    place = folder / f"{algorithm}-{seed}"
    path = predictions_path(place, None)
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows[::-1] if backwards else rows), path)
    trial = 0 if algorithm == "car_ft" else None
    return run(algorithm, seed, metrics(0.6, 0.3), trial=trial, folder=place)


def picked(zero_shot: RunRecord, *runs: RunRecord, **options: Any) -> Gallery | None:
    arms = {arm.algorithm: arm for arm in group(runs)}
    seeds = [run.seed for run in arms["car_ft"].runs]
    return pick(arms["car_ft"], arms["fine_tune"], zero_shot, seeds, **options)


def one_seed(folder: Path, zero_shot: Said, theirs: Said, ours: Said, **told: Any) -> Gallery:
    found = picked(
        kept(folder, "zero_shot", None, zero_shot, **told),
        kept(folder, "fine_tune", 0, theirs, **told),
        kept(folder, "car_ft", 0, ours, **told),
    )
    assert found is not None
    return found


def test_every_image_that_zero_shot_had_right_is_in_one_of_four_cells(tmp_path: Path) -> None:
    found = one_seed(
        tmp_path,
        {"id/test": [3, 3], "ood/a": [3, 3, 3, 3, 5], "id/val": [3]},
        {"id/test": [3, 5], "ood/a": [3, 5, 3, 5, 5], "id/val": [5]},
        {"id/test": [3, 3], "ood/a": [3, 3, 5, 5, 3], "id/val": [3]},
    )
    assert found.counts == (
        Counts("id/test", right=2, both=1, candidate=1, reference=0, neither=0),
        Counts("ood/a", right=4, both=1, candidate=1, reference=1, neither=1),
    )
    assert [(p.split, p.item, p.kept_by) for p in found.pictures] == [
        ("ood/a", "ood/a:1#0", "candidate"),
        ("ood/a", "ood/a:2#0", "reference"),
    ]


def test_most_runs_decide_and_half_of_them_lose_an_image(tmp_path: Path) -> None:
    ours, theirs = {0: [3, 3, 3], 1: [3, 3, 7]}, {0: [3, 5, 7], 1: [5, 5, 5]}
    found = picked(
        kept(tmp_path, "zero_shot", None, {"ood/a": [3, 3, 3]}),
        *(kept(tmp_path, "fine_tune", seed, {"ood/a": said}) for seed, said in theirs.items()),
        *(kept(tmp_path, "car_ft", seed, {"ood/a": said}) for seed, said in ours.items()),
    )
    assert found is not None
    (counts,) = found.counts
    assert (counts.candidate, counts.neither) == (2, 1)
    # First the image on which all runs of either side agree.
    assert [picture.item for picture in found.pictures] == ["ood/a:1#0", "ood/a:0#0"]
    clear, unclear = found.pictures
    assert clear.reference == Answer(right=0, of=2, wrong=5)
    assert unclear.reference == Answer(right=1, of=2, wrong=5)
    assert unclear.candidate == Answer(right=2, of=2, wrong=None)


def test_pictures_come_in_turn_from_every_shift_and_once_of_a_drawing(tmp_path: Path) -> None:
    right = {"ood/a": [3] * 8, "ood/b": [3] * 4, "id/test": [3] * 4}
    wrong = {split: [5] * len(said) for split, said in right.items()}
    found = one_seed(tmp_path, right, wrong, right, views=2)
    assert [picture.split for picture in found.pictures] == [
        *("ood/a", "ood/b", "ood/a", "ood/b", "ood/a", "ood/a")
    ]
    drawings = [picture.item.partition("#")[0] for picture in found.pictures]
    assert len(set(drawings)) == len(drawings)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(*[st.sampled_from([LABEL, WRONG])] * 3), min_size=1, max_size=30))
def test_cells_add_up_and_the_order_of_the_files_changes_nothing(
    tmp_path: Path, said: list[tuple[int, int, int]]
) -> None:
    splits = [
        {"ood/a": column[::2] or column, "ood/b": column} for column in zip(*said, strict=True)
    ]
    forward, backward = (
        one_seed(tmp_path, *splits, backwards=backwards) for backwards in (False, True)
    )
    assert forward == backward
    for counts in forward.counts:
        cells = (counts.both, counts.candidate, counts.reference, counts.neither)
        assert sum(cells) == counts.right
    shown = Counter(picture.kept_by for picture in forward.pictures)
    assert shown["candidate"] == min(12, sum(counts.candidate for counts in forward.counts))
    assert shown["reference"] == min(12, sum(counts.reference for counts in forward.counts))


def test_no_more_pictures_of_a_kind_than_asked_for(tmp_path: Path) -> None:
    right, wrong = {"ood/a": [3] * 9}, {"ood/a": [5] * 9}
    zero_shot = kept(tmp_path, "zero_shot", None, right)
    runs = kept(tmp_path, "fine_tune", 0, wrong), kept(tmp_path, "car_ft", 0, right)
    found = picked(zero_shot, *runs, each_way=4)
    assert found is not None
    assert len(found.pictures) == 4


def test_without_predictions_or_with_those_of_other_images_there_is_no_gallery(
    tmp_path: Path,
) -> None:
    said = {"ood/a": [3, 5]}
    zero_shot = kept(tmp_path, "zero_shot", None, said)
    ours = kept(tmp_path, "car_ft", 0, said)
    elsewhere = run("fine_tune", 0, metrics(0.6, 0.3), folder=tmp_path / "gone")
    nowhere = run("fine_tune", 0, metrics(0.6, 0.3))
    other = kept(tmp_path, "fine_tune", 0, {"ood/b": [3, 5]})
    for theirs in (elsewhere, nowhere, other):
        assert picked(zero_shot, theirs, ours) is None


def test_only_the_common_seeds_count(tmp_path: Path) -> None:
    arms: dict[str, Arm] = {
        arm.algorithm: arm
        for arm in group(
            [
                kept(tmp_path, "fine_tune", 0, {"ood/a": [5]}),
                kept(tmp_path, "car_ft", 0, {"ood/a": [3]}),
                kept(tmp_path, "car_ft", 1, {"ood/a": [5]}),
            ]
        )
    }
    zero_shot = kept(tmp_path, "zero_shot", None, {"ood/a": [3]})
    found = pick(arms["car_ft"], arms["fine_tune"], zero_shot, [0])
    assert found is not None
    assert found.pictures[0].candidate == Answer(right=1, of=1, wrong=None)

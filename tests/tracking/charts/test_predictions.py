"""Calibration and classes are counted from the predictions that runs keep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from carft_sweep.carft_core.metrics import ece
from carft_sweep.tracking.charts import CHARTS
from carft_sweep.tracking.charts.data import ChartData
from carft_sweep.tracking.charts.predictions import (
    FEWEST_IMAGES,
    MOST,
    all_class_differences,
    reliability,
)
from carft_sweep.tracking.comparison.compare import compare
from carft_sweep.tracking.comparison.predictions import BINS, predictions_path, read_tallies
from carft_sweep.tracking.comparison.runs import RunRecord
from tests.tracking.charted import CLASS_NAMES
from tests.tracking.charts.drawn import data_of, spec_of
from tests.tracking.kept import SPLITS, Logits, keep_predictions, logits
from tests.tracking.made_up import metrics, run, zero_shot

NAMED = "setting and ECE"
SHIFTS = [split for split in SPLITS if split.startswith("ood/")]


def kept(record: RunRecord, folder: Path, said: Logits) -> RunRecord:
    keep_predictions(folder, None, said)
    return replace(record, folder=folder)


def said_of(hits: dict[str, list[int]], labels: list[int]) -> Logits:
    """Logits of 3 classes: right where there is a 1, else the next class."""
    by_split = {}
    for split, right in hits.items():
        values = np.zeros((len(labels), 3))
        predicted = [
            label if hit else (label + 1) % 3 for label, hit in zip(labels, right, strict=True)
        ]
        values[np.arange(len(labels)), predicted] = 3.0
        by_split[split] = (values, np.array(labels))
    return by_split


def calibrated(data: ChartData, split: str) -> tuple[float, list[dict[str, float]]]:
    """Return ECE and bins of the first row on show."""
    row = data.shown[0]
    return reliability(row, [*data.tallies(row).values()], split)


def test_ece_is_the_metric_of_the_training_core(tmp_path: Path) -> None:
    every = [logits(0.5, seed) for seed in (1, 2)]
    runs = [
        kept(run("fine_tune", seed, metrics(0.6, 0.3)), tmp_path / str(seed), said)
        for seed, said in enumerate(every)
    ]
    data = ChartData(compare(runs, sweep="s"))

    def expected(split: str) -> float:
        parts = [(torch.tensor(said[split][0]), torch.tensor(said[split][1])) for said in every]
        return float(np.mean([ece(values, labels) for values, labels in parts]))

    assert calibrated(data, "id/test")[0] == pytest.approx(expected("id/test"), abs=1e-6)
    mean = np.mean([expected(split) for split in SHIFTS])
    assert calibrated(data, "ood/mean")[0] == pytest.approx(mean, abs=1e-6)


def test_a_bin_holds_its_upper_end_and_not_its_lower(tmp_path: Path) -> None:
    said = {"id/test": (np.zeros((30, 15)), np.arange(30) % 15)}  # confidence 1 / 15 everywhere
    record = kept(run("fine_tune", 0, metrics(0.6, 0.3)), tmp_path, said)
    data = ChartData(compare([record], sweep="s"))
    assert calibrated(data, "ood/mean") == (0.0, [])
    _, (only,) = calibrated(data, "id/test")
    # Float32 lies a hair above 1 / 15, and so does the metric's own bin of such a file.
    assert only["from"] in (0.0, 6.667)
    assert (only["images"], only["share"]) == (30, 100.0)
    assert only["accuracy"] == 6.667


def test_bins_are_of_all_images_and_shifts_count_the_same(tmp_path: Path) -> None:
    record = kept(run("fine_tune", 0, metrics(0.6, 0.3)), tmp_path, logits(0.6, 3))
    data = ChartData(compare([record], sweep="s"))
    for split, images in (("id/test", 120), ("ood/mean", sum(SPLITS[split] for split in SHIFTS))):
        _, bins = calibrated(data, split)
        assert len(bins) <= BINS
        assert sum(part["images"] for part in bins) == images
        assert sum(part["share"] for part in bins) == pytest.approx(100, abs=0.01)
        for part in bins:
            assert part["from"] <= part["confidence"] <= part["to"]
            assert 0 <= part["accuracy"] <= 100


def differences(tmp_path: Path) -> ChartData:
    """Two seeds of fine-tuning and CAR-FT, four images of classes 0, 0, 1, 2, and zero-shot."""
    labels = [0, 0, 1, 2]
    right = {
        "zero": ({"id/test": [1, 1, 1, 1], "ood/a": [1, 1, 1, 1], "ood/b": [0, 0, 0, 0]},) * 2,
        "ft": (
            {"id/test": [1, 1, 1, 0], "ood/a": [0, 0, 1, 0], "ood/b": [0, 1, 1, 0]},
            {"id/test": [1, 0, 1, 0], "ood/a": [0, 0, 1, 1], "ood/b": [0, 1, 0, 0]},
        ),
        "car": (
            {"id/test": [1, 1, 0, 0], "ood/a": [1, 1, 1, 0], "ood/b": [0, 0, 1, 1]},
            {"id/test": [1, 1, 0, 1], "ood/a": [0, 1, 1, 1], "ood/b": [0, 1, 0, 1]},
        ),
    }
    runs = [kept(zero_shot(), tmp_path / "zero", said_of(right["zero"][0], labels))]
    for seed in range(2):
        for name, algorithm, trial in (("ft", "fine_tune", None), ("car", "car_ft", 0)):
            record = run(algorithm, seed, metrics(0.6, 0.3), trial=trial)
            said = said_of(right[name][seed], labels)
            runs.append(kept(record, tmp_path / f"{name}{seed}", said))
    return ChartData(compare(runs, sweep="s"), class_names=["cat", "dog"])


def test_a_class_has_the_paired_difference_of_each_seed(tmp_path: Path) -> None:
    data = differences(tmp_path)
    by_place = {(part.row.arm.label, part.split): part for part in all_class_differences(data)}
    part = by_place["car_ft", "id/test"]
    assert part.values.tolist() == [[0.0, -1.0, 0.0], [0.5, -1.0, 1.0]]
    assert part.images.tolist() == [2, 1, 1]
    assert by_place["car_ft", "ood/a"].values.tolist() == [[1.0, 0.0, 0.0], [0.5, 0.0, 0.0]]
    mean = by_place["car_ft", "ood/mean"]
    assert mean.values.tolist() == [[0.25, 0.0, 0.5], [0.25, 0.0, 0.5]]
    assert mean.images.tolist() == [4, 2, 2]
    assert by_place["zero_shot", "id/test"].values.tolist() == [[0.0, 0.0, 1.0], [0.5, 0.0, 1.0]]
    assert [data.class_name(n) for n in range(3)] == ["cat", "dog", "class 2"]
    assert [part.split for part in all_class_differences(data)][:4] == [
        "ood/mean",
        "id/test",
        "ood/a",
        "ood/b",
    ]


def test_a_class_that_a_shift_lacks_is_the_mean_of_the_others(tmp_path: Path) -> None:
    def half(hits: list[int]) -> Logits:
        return {**said_of({"ood/a": hits}, [0, 1]), **said_of({"ood/b": hits[:1]}, [0])}

    runs = [
        kept(run("fine_tune", 0, metrics(0.6, 0.3)), tmp_path / "a", half([0, 0])),
        kept(run("car_ft", 0, metrics(0.6, 0.3), trial=0), tmp_path / "b", half([1, 1])),
    ]
    (mean, *_) = all_class_differences(ChartData(compare(runs, sweep="s")))
    assert mean.split == "ood/mean"
    np.testing.assert_array_equal(mean.values, [[1.0, 1.0, np.nan]])


def test_rows_that_saw_other_images_are_not_compared(tmp_path: Path) -> None:
    runs = [
        kept(
            run("fine_tune", 0, metrics(0.6, 0.3)), tmp_path / "a", said_of({"id/test": [1]}, [0])
        ),
        kept(
            run("car_ft", 0, metrics(0.6, 0.3), trial=0),
            tmp_path / "b",
            said_of({"id/test": [1, 1]}, [0, 1]),
        ),
    ]
    assert all_class_differences(ChartData(compare(runs, sweep="s"))) == []


@pytest.mark.parametrize("content", [None, b"", b"no parquet at all"])
def test_a_file_that_is_none_is_a_missing_one(tmp_path: Path, content: bytes | None) -> None:
    path = predictions_path(tmp_path, None)
    path.parent.mkdir(parents=True)
    if content is not None:
        path.write_bytes(content)
    assert read_tallies(path) is None
    record = replace(run("fine_tune", 0, metrics(0.6, 0.3)), folder=tmp_path)
    assert CHARTS["calibration"].draw(ChartData(compare([record], sweep="s"))) is None


def test_a_row_that_keeps_only_some_seeds_is_not_calibrated(tmp_path: Path) -> None:
    one = kept(run("fine_tune", 0, metrics(0.6, 0.3)), tmp_path, logits(0.5, 0))
    other = run("fine_tune", 1, metrics(0.6, 0.3))
    assert CHARTS["calibration"].draw(ChartData(compare([one, other], sweep="s"))) is None


def test_classes_are_the_extremes_by_name(everything: ChartData) -> None:
    rows = data_of(spec_of("classes", everything), "class", "difference")
    mean = [row for row in rows if row["split"] == "OOD mean" and "difference low" in row]
    assert len(mean) == 2 * MOST
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


def test_calibration_has_the_ece_in_its_legend(everything: ChartData) -> None:
    rows = [
        row
        for bins in spec_of("calibration", everything)["datasets"].values()
        for row in {(row.get(NAMED), row.get("from")): row for row in bins}.values()
    ]
    assert everything.shown[0].arm.label == "zero_shot"
    named = f"zero_shot, ECE {100 * calibrated(everything, 'id/test')[0]:.1f} %"
    bins = {row["from"]: row for row in rows if row.get(NAMED) == named}.values()
    assert sum(row["share"] for row in bins) == pytest.approx(100, abs=0.05)
    assert sum(row["images"] for row in bins) == 120


def test_a_bin_of_few_images_is_not_drawn_and_counts_among_the_shares(tmp_path: Path) -> None:
    """Two runs of 40 images: 36 of low confidence, and four that the model is sure of."""
    values = np.zeros((40, 3))
    values[36:, 0] = 9.0
    said = {"id/test": (values, np.zeros(40, dtype=int))}
    runs = [kept(run("fine_tune", s, metrics(0.6, 0.3)), tmp_path / str(s), said) for s in (0, 1)]
    spec = spec_of("calibration", ChartData(compare(runs, sweep="s")))
    diagram, shares = (
        rows for rows in spec["datasets"].values() if any("images" in row for row in rows)
    )
    assert [row["images"] for row in diagram] == [72]
    assert [row["images"] for row in shares] == [72, 8]
    assert FEWEST_IMAGES == 10


def test_of_few_images_there_is_no_diagram(tmp_path: Path) -> None:
    said = {"id/test": (np.zeros((9, 3)), np.zeros(9, dtype=int))}
    record = kept(run("fine_tune", 0, metrics(0.6, 0.3)), tmp_path, said)
    assert CHARTS["calibration"].draw(ChartData(compare([record], sweep="s"))) is None

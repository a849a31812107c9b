"""Kept predictions: which images are right, which two settings win and lose, what is refused."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from carft_sweep.tracking.comparison import predictions
from carft_sweep.tracking.comparison.compare import Comparison, compare
from carft_sweep.tracking.comparison.flips import find_flips
from carft_sweep.tracking.comparison.hits import read_hits
from carft_sweep.tracking.comparison.predictions import class_names, predictions_path, read_columns
from carft_sweep.tracking.comparison.runs import RunRecord
from carft_sweep.tracking.errors import TrackingError
from tests.tracking.kept import SPLITS, with_folder
from tests.tracking.made_up import KL, kl_sweep, known, metrics, run

CAR_FT = "car_ft kl_weight=3"


def keep(folder: Path, hits: Sequence[Sequence[int]]) -> None:
    """Write predictions: per split one hit or miss per image."""
    rows = [
        {"split": split, "id": f"{n}", "unit": f"{n}", "label": 3, "prediction": 3 if hit else 5}
        for split, own in zip(("id/test", "ood/a", "ood/b"), hits, strict=False)
        for n, hit in enumerate(own)
    ]
    path = predictions_path(folder, None)
    path.parent.mkdir(parents=True)
    parquet.write_table(pa.Table.from_pylist(rows), path)


def kept_run(folder: Path) -> RunRecord:
    return run("fine_tune", 0, metrics(0.6, 0.3), folder=folder)


OFFSETS = pa.array([0, 2], pa.int32()).buffers()[1]
BROKEN = pa.Array.from_buffers(pa.string(), 1, [None, OFFSETS, pa.py_buffer(b"\xff\xfe")])


def test_what_classes_are_called_stands_beside_the_predictions(tmp_path: Path) -> None:
    path, record = predictions_path(tmp_path, None), kept_run(tmp_path)
    path.parent.mkdir(parents=True)
    names = {'["cat", "hot dog"]': ("cat", "hot dog"), None: (), "{}": (), "[1]": ("1",)}
    for text, called in names.items():
        metadata = None if text is None else {"carft.class_names": text}
        schema = pa.schema([pa.field("label", pa.int32())], metadata=metadata)
        parquet.write_table(pa.table({"label": [0]}, schema=schema), path)
        assert class_names(record) == called
    assert class_names(replace(record, folder=None)) == ()
    assert class_names(replace(record, folder=tmp_path / "elsewhere")) == ()
    path.write_bytes(b"torn")
    with pytest.raises(TrackingError, match="holds no predictions"):
        class_names(record)


def test_they_are_read_without_pandas(tmp_path: Path) -> None:
    """Which takes 0.2 s of the end of every sweep."""
    folder = with_folder(run("fine_tune", 0, metrics(0.6, 0.3)), tmp_path).folder
    script = (
        "import sys; from pathlib import Path\n"
        "from carft_sweep.tracking.comparison.hits import read_hits\n"
        "from tests.tracking.made_up import run\n"
        "assert read_hits(run('fine_tune', 0, folder=Path(sys.argv[1])), None)\n"
        "assert 'pandas' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True)


def test_a_file_that_holds_no_predictions_is_named_and_a_link_is_not_followed(
    tmp_path: Path,
) -> None:
    keep(tmp_path, [[1, 0, 1, 1], [0, 1], [0, 0, 1]])
    path = predictions_path(tmp_path, None)
    other = pa.table({"id": ["a"]})
    for spoil in (lambda: path.write_bytes(b"torn"), lambda: parquet.write_table(other, path)):
        spoil()
        with pytest.raises(TrackingError, match=rf"{path} holds no pred.*remove the folder"):
            read_hits(kept_run(tmp_path), None)
    link = predictions_path(tmp_path / "home", None)
    link.parent.mkdir(parents=True)
    link.symlink_to(path)
    record = kept_run(tmp_path / "home")
    for reader in (class_names, lambda run: read_hits(run, None)):
        with pytest.raises(TrackingError, match="is a link, which is not followed"):
            reader(record)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("split", pa.array([1])),
        ("id", pa.nulls(1, pa.string())),
        ("unit", pa.array([b"u"])),
        ("label", pa.array(["0"])),
        ("prediction", pa.array([0.5])),
        ("prediction", pa.nulls(1, pa.int32())),
        ("id", BROKEN),
    ],
)
def test_a_column_of_another_type_and_a_text_that_is_none_are_named(
    tmp_path: Path, name: str, column: pa.Array
) -> None:
    path = tmp_path / "predictions.parquet"
    parquet.write_table(pa.table({name: column}), path)
    text = "UTF8" if column is BROKEN else f"column {name} "
    with pytest.raises(TrackingError, match=rf"predictions\.parquet holds no predictions .*{text}"):
        read_columns(path, [name])


def packed(folder: Path, **columns: pa.Array) -> Path:
    """Predictions of other columns than usual, in as few bytes as there can be."""
    path = predictions_path(folder, None)
    path.parent.mkdir(parents=True)
    count = len(next(iter(columns.values())))
    usual = {"split": "id/test", "id": "a", "unit": "a", "label": 3, "prediction": 3}
    rest = {name: pa.repeat(value, count) for name, value in usual.items()}
    parquet.write_table(pa.table(rest | columns), path, compression="zstd")
    return path


def test_a_small_file_of_many_rows_or_of_texts_that_take_more_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = packed(tmp_path / "many", label=pa.repeat(3, 1_000_000))
    assert path.stat().st_size < 1_000_000
    for name in ("id", "label"):
        with pytest.raises(TrackingError, match=r"no predictions \(1000000 rows of \d+ bytes"):
            read_columns(path, [name])
    for limit, most in (("BYTES", 1 << 20), ("CHARACTERS", 1 << 19)):
        monkeypatch.setattr(predictions, f"_MOST_{limit}", most)
    noise = pa.array(np.random.default_rng(0).random(1_000))  # a row of its own has its bytes
    path = packed(tmp_path / "long", id=pa.repeat("x" * 1_000, 1_000), noise=noise)
    with pytest.raises(TrackingError, match="column id has up to 1000000 characters"):
        read_columns(path, ["id"])
    zeros = pa.array([b"\0" * (1 << 19) + bytes([row]) for row in range(3)]).cast(pa.string())
    with pytest.raises(TrackingError, match=r"of \d+ bytes, unpacked"):
        read_columns(packed(tmp_path / "zeros", id=zeros), ["id"])


def compared(home: Path, seeds: int = 5) -> Comparison:
    records = (run for run in kl_sweep(seeds) if run.params.get(KL) in (None, 3.0))
    return compare([with_folder(record, home) for record in records])


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return compared(tmp_path_factory.mktemp("home"))


def right(runs: Sequence[RunRecord], merge: str | None) -> pd.DataFrame:
    """By split and image, whether each of the runs has it right."""
    columns = []
    for path in [predictions_path(known(own.folder), merge) for own in runs]:
        frame = pd.read_parquet(path).astype({"split": str})
        is_right = frame["label"] == frame["prediction"]
        columns.append(is_right.set_axis([frame["split"], frame["id"]]))
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
    base, ours = (right(arms[label].done, arms[label].merge) for label in (reference, candidate))
    before, after = (side.mean(axis=1) > 0.5 for side in (base, ours))
    change = ours.mean(axis=1) - base.mean(axis=1)
    seeds, splits = find_flips(comparison, reference, candidate)
    assert [*splits["split"]] == sorted({*SPLITS} - {"id/val"})
    for row in splits.itertuples():
        won, lost = (after & ~before)[row.split].sum(), (before & ~after)[row.split].sum()
        assert (row.won, row.lost, row.net) == (won, lost, won - lost)
        assert row.images == SPLITS[row.split]
        assert row.difference == pytest.approx(change[row.split].mean())
    assert seeds == (0, 1, 2, 3, 4)


def test_only_common_seeds_count(tmp_path: Path) -> None:
    records = [with_folder(run, tmp_path) for run in kl_sweep() if run.trial in (None, 3)]
    fewer = [run for run in records if run.algorithm != "fine_tune" or run.seed in (1, 3)]
    arms = {row.arm.label: row.arm for row in compare(fewer).rows}
    seeds, splits = find_flips(compare(fewer), "fine_tune", CAR_FT)
    assert seeds == (1, 3)
    common = [run for run in arms[CAR_FT].done if run.seed in (1, 3)]
    sides = arms["fine_tune"].done, common
    before, after = (right(runs, None).mean(axis=1) > 0.5 for runs in sides)
    assert [*splits["won"]] == [(after & ~before)[split].sum() for split in splits["split"]]


def test_what_cannot_be_counted_is_told(tmp_path: Path) -> None:
    comparison = compared(tmp_path)

    def refused(reference: str, candidate: str, message: str, of: Comparison = comparison) -> None:
        with pytest.raises(TrackingError, match=re.escape(message)):
            find_flips(of, reference, candidate)

    refused("finetune", CAR_FT, "unknown setting 'finetune'; did you mean 'fine_tune'?")
    refused("fine_tune", f"{CAR_FT} + wise_ft@0.4", f"did you mean '{CAR_FT} + wise_ft@0.5'?")
    tuned = [run for run in comparison.runs() if run.algorithm == "fine_tune"]
    rest = [run for run in comparison.runs() if run.algorithm != "fine_tune"]
    other = [replace(run, seed=known(run.seed) + 5, digest=f"{run.digest}b") for run in tuned]
    refused("fine_tune", CAR_FT, "have no finished seed in common", compare([*rest, *other]))
    shutil.rmtree(known(tuned[0].folder))
    refused("fine_tune", CAR_FT, "fine_tune keeps no predictions here (trial.keep.predictions)")

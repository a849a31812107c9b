"""Kept predictions: which images are right, and what is in no mean."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from carft_sweep.tracking.comparison.hits import read_hits
from carft_sweep.tracking.comparison.predictions import class_names, predictions_path, read_columns
from carft_sweep.tracking.comparison.runs import RunRecord
from carft_sweep.tracking.errors import TrackingError
from tests.tracking.kept import with_folder
from tests.tracking.made_up import metrics, run


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


def kept_run(folder: Path, seed: int = 0, algorithm: str = "fine_tune") -> RunRecord:
    trial = None if algorithm == "fine_tune" else 0
    return run(algorithm, seed, metrics(0.6, 0.3), trial=trial, folder=folder)


HITS = [[1, 0, 1, 1], [0, 1], [0, 0, 1]]


@pytest.mark.parametrize(
    ("kept", "names"),
    [('["cat", "hot dog"]', ("cat", "hot dog")), (None, ()), ("{}", ()), ("[1]", ("1",))],
)
def test_what_classes_are_called_stands_beside_the_predictions(
    tmp_path: Path, kept: str | None, names: tuple[str, ...]
) -> None:
    path = predictions_path(tmp_path, None)
    path.parent.mkdir(parents=True)
    metadata = None if kept is None else {"carft.class_names": kept}
    schema = pa.schema([pa.field("label", pa.int32())], metadata=metadata)
    parquet.write_table(pa.table({"label": [0]}, schema=schema), path)
    record = replace(run("car_ft", 0, metrics(0.6, 0.4)), folder=tmp_path)
    assert class_names(record) == names
    assert class_names(replace(record, folder=None)) == ()
    assert class_names(replace(record, folder=tmp_path / "elsewhere")) == ()
    path.write_bytes(b"torn")
    with pytest.raises(TrackingError, match="holds no predictions"):
        class_names(record)


def test_they_are_read_without_pandas(tmp_path: Path) -> None:
    """Which takes 0.2 s of the end of every sweep."""
    folder = with_folder(run("fine_tune", 0, metrics(0.6, 0.3)), tmp_path).folder
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from carft_sweep.tracking.comparison.hits import read_hits\n"
        "from tests.tracking.made_up import run\n"
        "assert read_hits(run('fine_tune', 0, folder=Path(sys.argv[1])), None)\n"
        "assert 'pandas' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True)


@pytest.mark.parametrize("content", [b"torn", None])
def test_a_file_that_holds_no_predictions_is_named(tmp_path: Path, content: bytes | None) -> None:
    keep(tmp_path, HITS)
    path = predictions_path(tmp_path, None)
    if content is None:
        parquet.write_table(pa.table({"id": ["a"]}), path)
    else:
        path.write_bytes(content)
    with pytest.raises(TrackingError, match=rf"{path} holds no predictions .*remove the folder"):
        read_hits(kept_run(tmp_path), None)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("split", pa.array([1])),
        ("id", pa.nulls(1, pa.string())),
        ("unit", pa.array([b"u"])),
        ("label", pa.array(["0"])),
        ("prediction", pa.array([0.5])),
        ("prediction", pa.nulls(1, pa.int32())),
    ],
)
def test_a_column_of_another_type_is_named(tmp_path: Path, name: str, column: pa.Array) -> None:
    path = tmp_path / "predictions.parquet"
    parquet.write_table(pa.table({name: column}), path)
    with pytest.raises(TrackingError, match=rf"predictions\.parquet .*column {name} "):
        read_columns(path, [name])


def test_a_text_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "predictions.parquet"
    offsets = pa.array([0, 2], pa.int32()).buffers()[1]
    broken = pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"\xff\xfe")])
    parquet.write_table(pa.table({"id": broken}), path)
    with pytest.raises(TrackingError, match=r"predictions\.parquet holds no predictions .*UTF8"):
        read_columns(path, ["id"])


def packed(folder: Path, **columns: pa.Array) -> Path:
    """Predictions of other columns than usual, in as few bytes as there can be."""
    path = predictions_path(folder, None)
    path.parent.mkdir(parents=True)
    count = len(next(iter(columns.values())))
    usual = {"split": "id/test", "id": "a", "unit": "a", "label": 3, "prediction": 3}
    rest = {name: pa.repeat(value, count) for name, value in usual.items()}
    parquet.write_table(pa.table(rest | columns), path, compression="zstd")
    return path


@pytest.mark.parametrize("name", ["id", "label"])
def test_a_small_file_with_many_rows_is_refused_before_it_is_read(
    tmp_path: Path, name: str
) -> None:
    path = packed(tmp_path, label=pa.repeat(3, 1_000_000))
    assert path.stat().st_size < 1_000_000
    with pytest.raises(TrackingError, match=r"no predictions \(1000000 rows of \d+ bytes"):
        read_columns(path, [name])


def test_texts_that_take_more_memory_than_their_file_are_refused(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    noise = pa.array(random.random(200_000))  # a row of its own has its bytes
    path = packed(tmp_path / "long", id=pa.repeat("x" * 1_000, 200_000), noise=noise)
    with pytest.raises(TrackingError, match="column id has up to 200000000 characters"):
        read_columns(path, ["id"])
    zeros = pa.array([b"\0" * (1 << 27) + bytes([row]) for row in range(3)]).cast(pa.string())
    with pytest.raises(TrackingError, match=r"of \d+ bytes, unpacked"):
        read_columns(packed(tmp_path / "zeros", id=zeros), ["id"])


def test_predictions_elsewhere_are_not_read(tmp_path: Path) -> None:
    keep(tmp_path / "elsewhere", HITS)
    path = predictions_path(tmp_path / "home", None)
    path.parent.mkdir(parents=True)
    path.symlink_to(predictions_path(tmp_path / "elsewhere", None))
    one = kept_run(tmp_path / "home")
    for reader in (class_names, lambda run: read_hits(run, None)):
        with pytest.raises(TrackingError, match="is a link, which is not followed"):
            reader(one)

"""The table in which predictions are kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from carft_sweep.carft_core.evaluation import predictions
from tests.carft_core.random_predictions import random_predictions, write_predictions


def rows(table: pa.Table, split: str) -> list[dict[str, object]]:
    return [row for row in table.to_pylist() if row["split"] == split]


def test_predictions_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    items = [random_predictions("id/test", 7), random_predictions("ood/sketch", 5)]
    path = tmp_path / "deep" / "predictions.parquet"
    write_predictions(path, items)
    table = pq.read_table(path)
    for item in items:
        p = torch.softmax(item.logits.double(), dim=1)
        got = rows(table, item.split)
        assert [row["id"] for row in got] == list(item.ids)
        assert [row["unit"] for row in got] == list(item.units)
        assert [row["label"] for row in got] == item.labels.tolist()
        assert [row["prediction"] for row in got] == item.logits.argmax(dim=1).tolist()
        assert [row["top5"] for row in got] == item.logits.topk(5).indices.tolist()
        assert [row["confidence"] for row in got] == pytest.approx(p.max(1).values.tolist())
        labelled = p[range(len(p)), item.labels].tolist()
        assert [row["p_label"] for row in got] == pytest.approx(labelled)
        assert [row["logits"] for row in got] == item.logits.half().tolist()


def test_the_table_has_the_documented_columns(tmp_path: Path) -> None:
    path = tmp_path / "predictions.parquet"
    write_predictions(path, [random_predictions()])
    schema = pq.read_schema(path)
    assert {field.name: str(field.type) for field in schema} == {
        "split": "dictionary<values=string, indices=int32, ordered=0>",
        "id": "string",
        "unit": "string",
        "label": "int32",
        "prediction": "int32",
        "p_label": "float",
        "confidence": "float",
        "top5": "list<element: int32>",
        "logits": "list<element: halffloat>",
    }
    assert schema.metadata[b"carft.predictions"] == b"1"


@pytest.mark.parametrize(("classes", "possible", "length"), [(3, None, 3), (9, 2, 2), (9, 7, 5)])
def test_top5_lists_only_classes_that_can_occur(
    tmp_path: Path, classes: int, possible: int | None, length: int
) -> None:
    write_predictions(tmp_path / "p.parquet", [random_predictions("ood/x", 4, classes, possible)])
    for row in rows(pq.read_table(tmp_path / "p.parquet"), "ood/x"):
        top = row["top5"]
        assert isinstance(top, list)
        assert len(set(top)) == length
        assert max(top) < (possible or classes)


def test_among_equal_logits_the_first_class_is_predicted(tmp_path: Path) -> None:
    item = random_predictions(items=1)
    item.logits[:] = 0.0
    write_predictions(tmp_path / "p.parquet", [item])
    (row,) = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert (row["prediction"], row["top5"]) == (0, [0, 1, 2, 3, 4])


@pytest.mark.parametrize(
    ("logits", "limit", "kept"),
    [("auto", 10**6, True), ("auto", 84, False), ("always", 0, True), ("never", 10**6, False)],
)
def test_logits_are_kept_as_asked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    logits: Literal["auto", "always", "never"],
    limit: int,
    kept: bool,
) -> None:
    """The split's logits take 7 · 6 · 2 = 84 bytes, and `auto` wants less than the limit."""
    monkeypatch.setattr(predictions, "LOGITS_LIMIT", limit)
    write_predictions(tmp_path / "p.parquet", [random_predictions()], logits)
    column = pq.read_table(tmp_path / "p.parquet")["logits"]
    assert column.null_count == (0 if kept else len(column))


def test_auto_keeps_the_logits_of_small_splits_beside_those_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictions, "LOGITS_LIMIT", 80)
    write_predictions(
        tmp_path / "p.parquet", [random_predictions(), random_predictions("ood/small", 2)]
    )
    table = pq.read_table(tmp_path / "p.parquet")
    assert all(row["logits"] is None for row in rows(table, "id/test"))
    assert all(row["logits"] is not None for row in rows(table, "ood/small"))


def test_logits_beyond_the_range_of_fp16_stay_finite(tmp_path: Path) -> None:
    item = random_predictions(items=1, possible=2)
    item.logits[0, :2] = torch.tensor([1e6, -1e6])
    write_predictions(tmp_path / "p.parquet", [item])
    (row,) = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert row["logits"] == [65504.0, -65504.0, *[-math.inf] * 4]


def test_the_same_predictions_give_the_same_bytes_and_leave_nothing_else(tmp_path: Path) -> None:
    items = [random_predictions(), random_predictions("ood/sketch", 5)]
    for name in ("one", "two"):
        write_predictions(tmp_path / name, items)
        write_predictions(tmp_path / name, items)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one", "two"]


def test_a_write_that_fails_leaves_the_old_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.parquet"
    write_predictions(path, [random_predictions()])
    before = path.read_bytes()

    def fail(writer: pq.ParquetWriter, table: object) -> None:
        del writer, table
        raise OSError("no space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", fail)
    with pytest.raises(OSError, match="no space left"):
        write_predictions(path, [random_predictions(items=3)])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]

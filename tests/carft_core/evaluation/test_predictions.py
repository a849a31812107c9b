"""The table in which predictions are kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from carft_sweep.carft_core.evaluation import predictions
from carft_sweep.carft_core.evaluation.predictions import Predictions
from tests.carft_core.random_predictions import random_predictions, write_predictions


def table(path: Path, items: Sequence[Predictions], **how: Any) -> pa.Table:
    """What is read of predictions that were written."""
    write_predictions(path / "deep" / "p.parquet", items, **how)
    return pq.read_table(path / "deep" / "p.parquet")


def rows(table: pa.Table, split: str) -> list[dict[str, object]]:
    return [row for row in table.to_pylist() if row["split"] == split]


def test_predictions_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    items = [random_predictions("id/test", 7), random_predictions("ood/sketch", 5)]
    read = table(tmp_path, items)
    for item in items:
        p = torch.softmax(item.logits.double(), dim=1)
        got = rows(read, item.split)
        assert [row["id"] for row in got] == list(item.ids)
        assert [row["unit"] for row in got] == list(item.units)
        assert [row["label"] for row in got] == item.labels.tolist()
        assert [row["prediction"] for row in got] == item.logits.argmax(dim=1).tolist()
        assert [row["top5"] for row in got] == item.logits.topk(5).indices.tolist()
        assert [row["confidence"] for row in got] == pytest.approx(p.max(1).values.tolist())
        labelled = p[range(len(p)), item.labels].tolist()
        assert [row["p_label"] for row in got] == pytest.approx(labelled)
        assert [row["logits"] for row in got] == item.logits.half().tolist()
    assert {field.name: str(field.type) for field in read.schema} == {
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
    assert read.schema.metadata[b"carft.predictions"] == b"1"


def test_top5_lists_only_classes_that_can_occur_and_of_equals_the_first(tmp_path: Path) -> None:
    for classes, possible, length in ((3, None, 3), (9, 2, 2), (9, 7, 5)):
        found = table(tmp_path, [random_predictions("ood/x", 4, classes, possible)])
        for top in found["top5"].to_pylist():
            assert len(set(top)) == length
            assert max(top) < (possible or classes)
    item = random_predictions(items=1)
    item.logits[:] = 0.0
    (row,) = table(tmp_path, [item]).to_pylist()
    assert (row["prediction"], row["top5"]) == (0, [0, 1, 2, 3, 4])


def test_logits_are_kept_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of 7 items take 7 · 6 · 2 = 84 bytes, and `auto` wants less than the limit."""
    items = [random_predictions(), random_predictions("ood/small", 2)]
    cases: list[tuple[str, int, int]] = [
        ("auto", 10**6, 9),
        ("auto", 84, 2),
        ("always", 0, 9),
        ("never", 10**6, 0),
    ]
    for logits, limit, kept in cases:
        monkeypatch.setattr(predictions, "LOGITS_LIMIT", limit)
        column = table(tmp_path, items, logits=logits)["logits"]
        assert column.slice(9 - kept).null_count == 0
        assert column.null_count == 9 - kept


def test_logits_beyond_the_range_of_fp16_stay_finite(tmp_path: Path) -> None:
    item = random_predictions(items=1, possible=2)
    item.logits[0, :2] = torch.tensor([1e6, -1e6])
    (row,) = table(tmp_path, [item]).to_pylist()
    assert row["logits"] == [65504.0, -65504.0, *[-math.inf] * 4]


def test_the_same_predictions_give_the_same_bytes_and_leave_nothing_else(tmp_path: Path) -> None:
    items = [random_predictions(), random_predictions("ood/sketch", 5)]
    for name in ("one", "two"):
        write_predictions(tmp_path / name, items)
        write_predictions(tmp_path / name, items)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one", "two"]


def test_a_failed_write_leaves_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.parquet"
    write_predictions(path, [random_predictions()])
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", fail)
    with pytest.raises(OSError, match="no space left"):
        write_predictions(path, [random_predictions(items=3)])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]

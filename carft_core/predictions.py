"""How predictions are kept: one parquet file for each evaluated model of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional as F

from carft_core.errors import RequestError
from carft_core.evaluate import Predictions
from carft_core.files import write_atomically

SCHEMA_VERSION = "1"
LOGITS_LIMIT = 50_000_000
"""Bytes of fp16 logits per split up to which `auto` keeps them."""
TOP = 5


def write_predictions(
    path: Path,
    predictions: Sequence[Predictions],
    logits: Literal["auto", "always", "never"] = "auto",
) -> None:
    """Keep predictions as parquet, atomically; the columns are described in docs/metrics.md.

    `logits` says whether full logits are kept beside them; `auto`: of splits below LOGITS_LIMIT.
    """
    kept = [
        logits == "always" or (logits == "auto" and 2 * item.logits.numel() < LOGITS_LIMIT)
        for item in predictions
    ]
    tables = [_table(item, keep) for item, keep in zip(predictions, kept, strict=True)]
    table = pa.concat_tables(tables) if tables else _SCHEMA.empty_table()
    if not any(kept):
        table = table.drop_columns("logits")
    write_atomically(path, lambda file: pq.write_table(table, file, compression="zstd"))


def read_predictions(path: Path) -> pa.Table:
    """The table that `write_predictions` wrote.

    Raises RequestError when the file is missing, not parquet, or not such a table.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise RequestError(f"there are no predictions at {path}") from None
    except pa.ArrowInvalid as error:
        raise RequestError(f"{path} is not a parquet file: {error}") from None
    version = (table.schema.metadata or {}).get(b"carft.predictions", b"none").decode()
    if version != SCHEMA_VERSION:
        raise RequestError(
            f"{path} does not hold predictions of version {SCHEMA_VERSION}, but {version}"
        )
    return table


_SCHEMA = pa.schema(
    [
        pa.field("split", pa.dictionary(pa.int32(), pa.string())),
        pa.field("id", pa.string()),
        pa.field("unit", pa.string()),
        pa.field("label", pa.int32()),
        pa.field("prediction", pa.int32()),
        pa.field("p_label", pa.float32()),
        pa.field("confidence", pa.float32()),
        pa.field("top5", pa.list_(pa.int32())),
        pa.field("logits", pa.list_(pa.float16())),
    ],
    metadata={"carft.predictions": SCHEMA_VERSION},
)


def _table(item: Predictions, keep_logits: bool) -> pa.Table:
    count = len(item.labels)
    logits = item.logits
    p = F.softmax(logits.double(), dim=1)
    possible = int((logits > -torch.inf).any(dim=0).sum())
    # Stable: of equal logits the class that comes first, as in the metric top1.
    order = logits.argsort(dim=1, descending=True, stable=True)[:, : min(TOP, possible)]
    prediction = order[:, :1]
    columns = [
        pa.array([item.split] * count, pa.dictionary(pa.int32(), pa.string())),
        pa.array(item.ids, pa.string()),
        pa.array(item.units, pa.string()),
        pa.array(item.labels.numpy(), pa.int32()),
        pa.array(prediction[:, 0].numpy(), pa.int32()),
        pa.array(p.gather(1, item.labels[:, None])[:, 0].numpy(), pa.float32()),
        pa.array(p.gather(1, prediction)[:, 0].numpy(), pa.float32()),
        _lists(order.to(torch.int32), pa.int32()),
        _lists(_half(logits), pa.float16())
        if keep_logits
        else pa.nulls(count, _SCHEMA.field("logits").type),
    ]
    return pa.Table.from_arrays(columns, schema=_SCHEMA)


def _lists(rows: Tensor, kind: pa.DataType) -> pa.ListArray:
    """[N, k] as N lists of k values."""
    count, width = rows.shape
    offsets = np.arange(count + 1, dtype=np.int32) * width
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(rows.numpy().reshape(-1), kind))


def _half(logits: Tensor) -> Tensor:
    """In fp16; a logit beyond its range stays finite, since -inf says that a class cannot occur."""
    top = torch.finfo(torch.float16).max
    return torch.where(logits.isfinite(), logits.clamp(-top, top), logits).half()

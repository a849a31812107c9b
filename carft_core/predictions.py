"""How predictions are kept: one parquet file for each evaluated model of a run."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional as F

from carft_core.errors import RequestError
from carft_core.files import atomic_file

SCHEMA_VERSION = "1"
LOGITS_LIMIT = 50_000_000
"""Bytes of fp16 logits per split up to which `auto` keeps them."""
KeptLogits = Literal["auto", "always", "never"]
TOP = 5


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a classifier says of each item of a split, in the split's order, on the CPU."""

    split: str
    """The split's metric name: `id/val`, `id/test`, `id/test_<part>`, `ood/<name>`."""
    ids: tuple[str, ...]
    units: tuple[str, ...]
    labels: Tensor
    """[N] int64."""
    logits: Tensor
    """[N, C] float32; -inf for classes that cannot occur in the split."""
    features: Tensor
    """[N, d] float32 unit-norm image features; never written to disk."""
    groups: tuple[str, ...] | None = None
    """What each item belongs to, where the split has groups; not written either."""


def write_predictions(
    path: Path, predictions: Sequence[Predictions], logits: KeptLogits = "auto"
) -> None:
    """Keep predictions as parquet, atomically; `logits` as in `predictions_file`."""
    shapes = {item.split: _shape(item) for item in predictions}
    with predictions_file(path, shapes, logits) as keep:
        for item in predictions:
            keep(item)


@contextlib.contextmanager
def predictions_file(
    path: Path, shapes: Mapping[str, tuple[int, int]], logits: KeptLogits = "auto"
) -> Iterator[Callable[[Predictions], None]]:
    """Keep predictions as parquet, split by split; the columns are described in docs/metrics.md.

    `shapes` are those of the logits [N, C] of every split to come, by name. What the block is given
    takes the predictions of one after another, in any order; the file has the order of `shapes`.
    Nothing of a split stays in memory, and the file is put in place at the end of the block.
    `logits` says whether full logits are kept as well; `auto`: of splits below LOGITS_LIMIT.

    Raises ValueError for predictions that are not in `shapes` as they are, or that do not come.
    """
    kept = {name: _keeps_logits(shape, logits) for name, shape in shapes.items()}
    names = [name for name in _SCHEMA.names if name != "logits" or any(kept.values())]
    schema = pa.schema([_SCHEMA.field(name) for name in names], metadata=_SCHEMA.metadata)
    waiting = list(shapes)
    early: dict[str, IO[bytes]] = {}
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(atomic_file(path))
        writer = stack.enter_context(pq.ParquetWriter(file, schema, compression="zstd"))

        def keep(item: Predictions) -> None:
            name, shape = item.split, _shape(item)
            if name not in waiting or name in early or shape != shapes[name]:
                raise ValueError(f"{name} {shape} is not among what is to come: {waiting}")
            table = _table(item, kept[name], list(shapes)).select(names)
            if name != waiting[0]:
                early[name] = stack.enter_context(_spooled(table, path.parent))
                return
            writer.write_table(table)
            waiting.pop(0)
            while waiting and waiting[0] in early:
                with early.pop(waiting.pop(0)) as spool:
                    writer.write_table(pa.ipc.open_stream(spool).read_all())

        yield keep
        if waiting:
            raise ValueError(f"no predictions of {', '.join(waiting)} came")


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


def _shape(item: Predictions) -> tuple[int, int]:
    count, classes = item.logits.shape
    return count, classes


def _keeps_logits(shape: tuple[int, int], logits: KeptLogits) -> bool:
    return logits == "always" or (logits == "auto" and 2 * math.prod(shape) < LOGITS_LIMIT)


def _spooled(table: pa.Table, folder: Path) -> IO[bytes]:
    """The table in a file without a name, which is gone once it is closed or the process ends."""
    spool = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - who asks closes it
    with pa.ipc.new_stream(spool, table.schema) as stream:
        stream.write_table(table)
    spool.seek(0)
    return spool


def _table(item: Predictions, keep_logits: bool, splits: list[str]) -> pa.Table:
    """The rows of a split; all of a file have the same dictionary, `splits`."""
    count = len(item.labels)
    place = np.full(count, splits.index(item.split), np.int32)
    logits = item.logits
    p = F.softmax(logits.double(), dim=1)
    possible = int((logits > -torch.inf).any(dim=0).sum())
    # Stable: of equal logits the class that comes first, as in the metric top1.
    order = logits.argsort(dim=1, descending=True, stable=True)[:, : min(TOP, possible)]
    prediction = order[:, :1]
    columns = [
        pa.DictionaryArray.from_arrays(place, pa.array(splits, pa.string())),
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

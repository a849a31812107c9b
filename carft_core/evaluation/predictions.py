"""How predictions are kept: one parquet file for each evaluated model of a run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional as F

from carft_sweep.carft_core.files import atomic_file

SCHEMA_VERSION = "1"
CLASS_NAMES = "carft.class_names"
"""The key, in a file's metadata, of the classes' names: a JSON list in the order of labels."""
LOGITS_LIMIT = 50_000_000
"""Bytes of fp16 logits per split up to which `auto` keeps them."""
KeptLogits = Literal["auto", "always", "never"]
TOP = 5
REPEATED = ["split", "unit"]
"""Columns whose values come again and again: for other columns a dictionary and statistics cost
much time and save nothing."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a classifier says of each item of a split, in the split's order, on one device."""

    split: str
    """The split's metric name: `id/val`, `id/test`, `id/test_<part>`, `ood/<name>`."""
    ids: Sequence[str]
    units: Sequence[str]
    labels: Tensor
    """[N] int64."""
    logits: Tensor
    """[N, C] float32; -inf for classes that cannot occur in the split."""
    features: Tensor
    """[N, d], of which the logits are computed; not written to disk."""
    groups: Sequence[str] | None = None
    """The name of each item's group, as in `Split.groups`; not written to disk."""

    def take(self, rows: Tensor) -> Predictions:
        """Return the items at `rows` [M], in that order."""
        places = rows.tolist()
        return Predictions(
            split=self.split,
            ids=[self.ids[place] for place in places],
            units=[self.units[place] for place in places],
            labels=self.labels[rows],
            logits=self.logits[rows],
            features=self.features[rows],
            groups=None if self.groups is None else [self.groups[place] for place in places],
        )


@contextlib.contextmanager
def predictions_file(
    path: Path, splits: Sequence[str], logits: KeptLogits = "auto", class_names: Sequence[str] = ()
) -> Iterator[Callable[[Predictions], None]]:
    """Write predictions as parquet, split by split; docs/metrics.md describes the columns.

    `splits` names every split that may come. Yields a function that writes the predictions of a
    split; nothing of a split stays in memory, and the file is moved to `path` at the end of the
    block. `logits` says whether full logits are written as well; `auto`: of splits below
    LOGITS_LIMIT; the column is null for other splits. `class_names` are in the file's metadata, so
    that readers can name a label without the data.
    """
    metadata = {**_SCHEMA.metadata, CLASS_NAMES: json.dumps(list(class_names))}
    schema = _SCHEMA.with_metadata(metadata)
    with (
        atomic_file(path) as file,
        pq.ParquetWriter(
            file, schema, compression="zstd", use_dictionary=REPEATED, write_statistics=REPEATED
        ) as writer,
    ):

        def write(item: Predictions) -> None:
            small = 2 * item.logits.numel() < LOGITS_LIMIT
            keeps_logits = logits == "always" or (logits == "auto" and small)
            writer.write_table(_table(item, keeps_logits, list(splits)))

        yield write


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


def _table(item: Predictions, keep_logits: bool, splits: list[str]) -> pa.Table:
    """Return a split's predictions as rows, with its name encoded by its place in `splits`."""
    count = len(item.labels)
    place = np.full(count, splits.index(item.split), np.int32)
    logits = item.logits
    possible = int((logits > -torch.inf).any(dim=0).sum())
    order = greatest(logits, min(TOP, possible))
    p_label, confidence = _probabilities(logits, item.labels[:, None], order[:, :1])
    order = order.cpu()
    columns = [
        pa.DictionaryArray.from_arrays(place, pa.array(splits, pa.string())),
        pa.array(item.ids, pa.string()),
        pa.array(item.units, pa.string()),
        pa.array(item.labels.cpu().numpy(), pa.int32()),
        pa.array(order[:, 0].numpy(), pa.int32()),
        pa.array(p_label.numpy(), pa.float32()),
        pa.array(confidence.numpy(), pa.float32()),
        _lists(order.to(torch.int32), pa.int32()),
        _lists(_half(logits).cpu(), pa.float16())
        if keep_logits
        else pa.nulls(count, _SCHEMA.field("logits").type),
    ]
    return pa.Table.from_arrays(columns, schema=_SCHEMA)


def _probabilities(logits: Tensor, *classes: Tensor) -> list[Tensor]:
    """Return on the CPU the probabilities [N] of some classes [N, 1] each, from logits [N, C]."""
    p = F.softmax(logits if logits.device.type == "mps" else logits.double(), dim=1)
    return [p.gather(1, indices)[:, 0].cpu() for indices in classes]


def greatest(logits: Tensor, count: int) -> Tensor:
    """Return [N, count] int64, the classes of the greatest logits [N, C]; of equal logits the lower
    class first. Sorts one integer key for each logit: the order of its bits as a float, then of the
    classes. Works in place, since each [N, C] of a large split is large in memory."""
    bits = (logits.float() + 0.0).contiguous().view(torch.int32)  # + 0.0 makes -0.0 equal 0.0
    keys = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    keys <<= 32
    keys -= torch.arange(logits.shape[1], device=logits.device)
    return keys.topk(count, dim=1).indices


def _lists(rows: Tensor, kind: pa.DataType) -> pa.ListArray:
    """Return rows [N, k] as an Arrow array of N lists of k values."""
    count, width = rows.shape
    offsets = np.arange(count + 1, dtype=np.int32) * width
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(rows.numpy().reshape(-1), kind))


def _half(logits: Tensor) -> Tensor:
    """Return logits in fp16; large logits stay finite, as -inf marks impossible classes."""
    top = torch.finfo(torch.float16).max
    return torch.where(logits.isfinite(), logits.clamp(-top, top), logits).half()

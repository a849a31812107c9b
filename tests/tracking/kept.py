"""Run folders with made-up predictions and histories, as the training core writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from numpy.typing import NDArray

from carft_sweep.tracking.comparison.predictions import predictions_path
from carft_sweep.tracking.comparison.runs import RunRecord

SPLITS = {"id/val": 40, "id/test": 120, "ood/outline": 90, "ood/flat_emoji": 60, "ood/pixel": 60}
CLASSES = 30
Logits = Mapping[str, tuple[NDArray[np.float64], NDArray[np.int64]]]
"""By split: logits [N, C] and labels [N]."""


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities [N, C]."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    confidences: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return confidences


def logits(accuracy: float, seed: int) -> Logits:
    """Of a model that is roughly so accurate."""
    rng = np.random.default_rng(seed)
    by_split = {}
    for split, images in SPLITS.items():
        labels = np.arange(images) % CLASSES
        drawn = rng.normal(size=(images, CLASSES))
        drawn[np.arange(images), labels] += 6 * accuracy * rng.random(images)
        by_split[split] = (drawn, labels)
    return by_split


def keep_predictions(
    folder: Path,
    merge: str | None,
    predictions: Logits,
    class_names: Sequence[str] = (),
    units: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> None:
    """Write `predictions.parquet` as docs/metrics.md has it; without `units` each image is one."""
    tables, of_split = [], pa.dictionary(pa.int32(), pa.string())
    for split, (values, labels) in predictions.items():
        images = [f"{split}-{number}" for number in range(len(labels))]
        confidence = softmax(values).max(axis=1).astype(np.float32)
        columns = {
            "split": pa.array([split] * len(labels), of_split),
            "id": images,
            "unit": list(units.get(split, images)),
            "label": pa.array(labels, pa.int32()),
            "prediction": pa.array(values.argmax(axis=1), pa.int32()),
            "confidence": pa.array(confidence, pa.float32()),
        }
        tables.append(pa.table(columns))
    path = predictions_path(folder, merge)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"carft.class_names": json.dumps(list(class_names))}
    parquet.write_table(pa.concat_tables(tables).replace_schema_metadata(metadata), path)


def keep_history(folder: Path, losses: list[float], accuracies: list[float]) -> None:
    """Write `history.json`: a loss for each epoch, and an accuracy before the first one too."""
    epochs = []
    for epoch, accuracy in enumerate(accuracies):
        metrics = {"id/val/top1": accuracy}
        if epoch:
            metrics |= {"train/loss": losses[epoch - 1], "system/images_per_s": 100.0 + epoch}
        seconds = 3.5 if epoch else 0.0
        epochs.append({"epoch": epoch, "metrics": metrics, "seconds": seconds})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "history.json").write_text(json.dumps(epochs))


def with_folder(run: RunRecord, home: Path) -> RunRecord:
    """The same run, with everything kept in a folder of its own."""
    folder, seed = home / run.digest, run.seed or 0
    accuracy = run.metrics.get("ood/mean/top1", 0.3)
    for merge in (None, *run.merges):
        keep_predictions(folder, merge, logits(accuracy, crc32(f"{run.digest} {merge}".encode())))
    if run.seed is not None:
        end = run.metrics.get("id/val/top1", 0.4)
        keep_history(folder, [1.8, 1.2, 1.0 + 0.01 * seed], [0.5, 0.55, 0.58, end])
    return replace(run, folder=folder)

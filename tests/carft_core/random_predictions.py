"""Predictions of nobody, for tests of what is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from carft_sweep.carft_core.evaluation.predictions import KeptLogits, Predictions, predictions_file

CLASSES = 6


def random_predictions(
    name: str = "id/test", items: int = 7, classes: int = CLASSES, possible: int | None = None
) -> Predictions:
    generator = torch.Generator().manual_seed(items * 100 + classes)
    logits = 10 * torch.randn(items, classes, generator=generator)
    logits[:, classes if possible is None else possible :] = -torch.inf
    return Predictions(
        split=name,
        ids=tuple(f"{name}/{index}.png" for index in range(items)),
        units=tuple(f"unit {index // 2}" for index in range(items)),
        labels=torch.randint(possible or classes, (items,), generator=generator),
        logits=logits,
        features=torch.randn(items, 8, generator=generator),
    )


def write_predictions(
    path: Path,
    predictions: Sequence[Predictions],
    logits: KeptLogits = "auto",
    class_names: Sequence[str] = (),
) -> None:
    """Write the predictions of some splits, in their order."""
    names = [item.split for item in predictions]
    with predictions_file(path, names, logits, class_names) as write:
        for item in predictions:
            write(item)

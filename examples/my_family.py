"""My family: what it is, in one claim."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from carft_sweep import (
    FAMILIES,
    DataConfig,
    Family,
    FamilyData,
    RequestError,
    Source,
    Split,
    Transform,
)


@dataclass(frozen=True)
class Pictures(Source):
    """Pictures in memory: pixels [N, 3, H, W] uint8."""

    pixels: Tensor

    def views(
        self, rows: Sequence[int], *, transform: Transform, seed: int | None, epoch: int
    ) -> Tensor:
        """The picture itself; in training, its mirror image half of the time."""
        pixels = self.pixels[list(rows)]
        if seed is not None:
            flip = torch.tensor([mirrored(seed, epoch, row) for row in rows])
            pixels = torch.where(flip[:, None, None, None], pixels.flip(-1), pixels)
        return torch.nn.functional.interpolate(pixels, size=transform.size)


def mirrored(seed: int, epoch: int, row: int) -> bool:
    """A coin for each view that depends on nothing else."""
    return hashlib.sha256(f"{seed}/{epoch}/{row}".encode()).digest()[0] < 128


def open_my_family(config: DataConfig) -> FamilyData:
    """Raises RequestError when the files are not there."""
    root = Path(config.root or "data/my_family")
    content = hashlib.sha256()
    splits = {}
    for name in ("train", "test", "sketch"):
        file = root / f"{name}.npz"
        if not file.is_file():
            raise RequestError(f"my_family looks for {file}; set data.root to where its files are")
        with np.load(file, allow_pickle=False) as arrays:
            pixels, labels = arrays["pixels"], arrays["labels"]
        content.update(name.encode() + pixels.tobytes() + labels.tobytes())
        splits[name] = Split(
            ids=tuple(f"{name}/{row}" for row in range(len(labels))),
            labels=torch.from_numpy(labels).long(),
            source=Pictures(torch.from_numpy(pixels)),
        )
    return FamilyData(
        class_names=("cat", "dog"),
        train=splits["train"],
        val=None,
        test=splits["test"],
        shifts={"sketch": splits["sketch"]},
        digest=content.hexdigest(),
    )


MY_FAMILY = FAMILIES.register(
    Family(
        name="my_family",
        summary="What it shows, in one line",
        open=open_my_family,
        defaults={"optim.epochs": 5, "optim.batch_size": 128},
        domains=("photo", "sketch"),
    )
)

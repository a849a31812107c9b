"""A family of three domains without images, for sweeps on the toy core."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from carft_core.data import Family, FamilyData, Split, Transform
from carft_core.data.base import DataConfig

DOMAINS = ("art", "photo", "sketch")


class Nothing(Split):
    """Two items of two classes that nobody looks at."""

    def __init__(self, name: str) -> None:
        self.ids = self.units = (f"{name}/0", f"{name}/1")
        self.labels = torch.tensor([0, 1])

    def views(
        self, indices: Sequence[int], *, transform: Transform, seed: int | None, epoch: int
    ) -> Tensor:
        del indices, transform, seed, epoch
        raise AssertionError("the toy core looks at no image")


def open_toy_domains(config: DataConfig) -> FamilyData:
    """Every domain but the one that is held out trains; the split is that of `split_seed`."""
    held_out = str(config.test_domain)
    return FamilyData(
        class_names=("cat", "dog"),
        train=Nothing("train"),
        val=Nothing("val"),
        test=None,
        shifts={held_out: Nothing(held_out)},
        extras={f"{held_out}_out": Nothing(f"{held_out}_out")},
        digest=hashlib.sha256(f"{held_out} {config.split_number}".encode()).hexdigest(),
    )


TOY_DOMAINS = Family(
    name="toy_domains", summary="Three domains without images", open=open_toy_domains
)

"""A family of three domains without images, for sweeps on the toy core."""

from __future__ import annotations

import hashlib

import torch

from carft_sweep.carft_core.data import Family, FamilyData, Source, Split
from carft_sweep.carft_core.data.base import DataConfig

DOMAINS = ("art", "photo", "sketch")


def nothing(name: str) -> Split:
    """Two items of two classes that nobody looks at."""
    return Split(ids=(f"{name}/0", f"{name}/1"), labels=torch.tensor([0, 1]), source=Source())


def open_toy_domains(config: DataConfig) -> FamilyData:
    """Every domain but the one that is held out trains; the split is that of `split_seed`."""
    held_out = str(config.test_domain)
    return FamilyData(
        class_names=("cat", "dog"),
        train=nothing("train"),
        val=nothing("val"),
        test=None,
        shifts={held_out: nothing(held_out)},
        extras={f"{held_out}_out": nothing(f"{held_out}_out")},
        digest=hashlib.sha256(f"{held_out} {config.split_number}".encode()).hexdigest(),
    )


TOY_DOMAINS = Family(
    name="toy_domains", summary="Three domains without images", open=open_toy_domains
)

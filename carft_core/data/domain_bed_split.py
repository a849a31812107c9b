"""How DomainBed divides a domain: which of its images train, and which are kept back."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np


class Parts(NamedTuple):
    """The places of a domain's images in their order on disk, in the order that DomainBed draws."""

    train: tuple[int, ...]
    """The greater part, DomainBed's `in`."""
    kept: tuple[int, ...]
    """The smaller part, its `out`."""


def divided(count: int, fraction: float, *, trial_seed: int, environment: int) -> Parts:
    """The `count` images of a domain divided; `int(count * fraction)` of them are kept back.

    `environment` is the domain's place in DomainBed's order. Equal to the order of
    `split_dataset` in `domainbed/lib/misc.py` as `domainbed/scripts/train.py` calls it for a
    domain that trains; the stream of `RandomState` is frozen.
    """
    order = np.arange(count)
    np.random.RandomState(seed_hash(trial_seed, environment)).shuffle(order)
    places = tuple(order.tolist())
    kept = int(count * fraction)
    return Parts(places[kept:], places[:kept])


def seed_hash(*of: object) -> int:
    """A seed below 2**31, of anything that has a text. Source: `domainbed/lib/misc.py`."""
    return int(hashlib.md5(str(of).encode(), usedforsecurity=False).hexdigest(), 16) % 2**31

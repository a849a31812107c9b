"""A domain is divided as DomainBed divides it, to the index."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from carft_sweep.carft_core.data.families.domainbed import divided, seed_hash

IMAGES = 50


def by_description(count: int, fraction: float, trial_seed: int, environment: int) -> list[int]:
    """What is kept back, as DomainBed's paper and code describe it, written down anew."""
    text = f"({trial_seed}, {environment})"
    seed = int(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest(), 16) % 2**31
    keys = list(range(count))
    np.random.RandomState(seed).shuffle(keys)
    return keys[: int(count * fraction)]


# facebookresearch/DomainBed at b93c22a, its `split_dataset` and `seed_hash` executed: 50 images.
OUT = {
    (0, 0): [8, 0, 5, 32, 6, 45, 27, 11, 26, 40],
    (0, 1): [39, 3, 20, 12, 41, 11, 49, 40, 26, 42],
    (0, 2): [49, 30, 29, 40, 18, 35, 28, 47, 14, 8],
    (0, 3): [25, 41, 11, 10, 34, 13, 43, 0, 14, 27],
    (1, 0): [25, 47, 12, 8, 16, 7, 19, 34, 23, 40],
    (1, 1): [19, 2, 35, 31, 16, 17, 45, 6, 21, 41],
}
IN_0_0 = [
    *(34, 2, 7, 43, 1, 13, 3, 30, 20, 28, 44, 41, 25, 48, 16, 23, 42, 38, 4, 18),
    *(37, 46, 10, 15, 33, 35, 36, 39, 17, 9, 19, 21, 47, 49, 29, 14, 24, 31, 22, 12),
]


@pytest.mark.parametrize(("trial_seed", "environment"), OUT)
def test_a_domain_is_divided_as_domainbed_divides_it(trial_seed: int, environment: int) -> None:
    parts = divided(IMAGES, 0.2, trial_seed=trial_seed, environment=environment)
    assert list(parts.kept) == OUT[trial_seed, environment]
    assert sorted(parts.kept + parts.train) == list(range(IMAGES))
    if (trial_seed, environment) == (0, 0):
        assert list(parts.train) == IN_0_0


def test_seeds_are_hashed_as_domainbed_hashes_them() -> None:
    assert (seed_hash(0, 0), seed_hash(2, 3)) == (894182419, 1709828778)
    assert seed_hash(1, "batch_size") == 1689080019


@pytest.mark.parametrize("count", [2, 9, 50, 1001])
@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.07])
def test_the_rule_is_the_same_when_it_is_written_down_anew(count: int, fraction: float) -> None:
    for trial_seed, environment in ((0, 0), (3, 5), (123456, 2)):
        parts = divided(count, fraction, trial_seed=trial_seed, environment=environment)
        assert list(parts.kept) == by_description(count, fraction, trial_seed, environment)

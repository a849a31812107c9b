"""A view depends on its drawing and its key, and on nothing else."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from carft_sweep.carft_core.data.families.icon_shift import (
    render_views,
    uniforms,
    view_keys,
    view_parameters,
)

COUNT = 24


@pytest.fixture(scope="module")
def drawings() -> Tensor:
    """A disc, a bar and a corner, in turn, in red."""
    pixels = torch.zeros(COUNT, 48, 48, 4, dtype=torch.uint8)
    pixels[..., 0] = 255
    y, x = torch.meshgrid(torch.arange(48), torch.arange(48), indexing="ij")
    masks = [(x - 24) ** 2 + (y - 24) ** 2 < 300, abs(x - 24) < 3, (x < 24) & (y < 24)]
    for index in range(COUNT):
        pixels[index, ..., 3] = masks[index % 3].to(torch.uint8) * 255
    return pixels


def test_global_random_state_is_neither_used_nor_moved(drawings: Tensor) -> None:
    keys, monochrome = view_keys(0, "train", 0, range(COUNT)), torch.arange(COUNT) % 2 == 0
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = render_views(drawings, monochrome, keys, 32)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first, render_views(drawings, monochrome, keys, 32))


def test_keys_are_the_same_whoever_asks_and_others_for_each_seed_split_epoch_and_index() -> None:
    whole = view_keys(7, "train", 2, range(100))
    assert np.array_equal(whole[40:60], view_keys(7, "train", 2, range(40, 60)))
    assert np.array_equal(whole[[5]], view_keys(7, "train", 2, [5]))
    places = itertools.product((0, 1), ("train", "test"), (0, 1))
    keys = np.concatenate([view_keys(*place, range(500)) for place in places])
    assert len(np.unique(keys)) == len(keys) == 4000


def test_keys_never_change() -> None:
    """Published numbers hang on them: a change here is a new benchmark."""
    keys = view_keys(0, "train", 0, [0, 1])
    assert keys.tolist() == [10190284756966462071, 18177740455115040680]
    assert uniforms(keys, 2)[0].tolist() == pytest.approx([0.7549043893814087, 0.4126448631286621])


def test_uniforms_are_uniform() -> None:
    numbers = uniforms(view_keys(0, "train", 0, range(4000)), 8)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert np.abs(numbers.mean(axis=0) - 0.5).max() < 0.02
    assert np.abs(np.corrcoef(numbers.T) - np.eye(8)).max() < 0.06


def test_ground_and_tint_never_meet() -> None:
    parameters = view_parameters(view_keys(0, "train", 0, range(2000)))
    difference = (parameters.ground - parameters.tint).abs().sum(dim=1)
    assert difference.min() > 0.4


def test_only_one_colour_icons_are_tinted(drawings: Tensor) -> None:
    keys = view_keys(0, "train", 0, range(COUNT))
    coloured = render_views(drawings, torch.zeros(COUNT, dtype=torch.bool), keys, 32)
    tinted = render_views(drawings, torch.ones(COUNT, dtype=torch.bool), keys, 32)
    parameters = view_parameters(keys)
    disc = 0
    assert torch.allclose(coloured[disc, :, 16, 16], torch.tensor([1.0, 0.0, 0.0]), atol=1e-3)
    assert torch.allclose(tinted[disc, :, 16, 16], parameters.tint[disc], atol=1e-3)
    assert torch.allclose(tinted[disc, :, 0, 0], parameters.ground[disc], atol=1e-3)

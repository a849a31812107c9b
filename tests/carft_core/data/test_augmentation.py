"""Training views by name: those of the recipes, each a pure function of its place."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms import functional as F

from carft_sweep.carft_core.data import transforms as own

DOMAINBED, LIPSUM = own.AUGMENTATIONS["domainbed"], own.AUGMENTATIONS["lipsum"]
DRAWING = sorted(own.AUGMENTATIONS.keys() - {"none"})


def transform(augmentation: own.Augmentation, size: int = 24) -> own.Transform:
    return own.Transform(size, (0.5,) * 3, (0.25,) * 3, augmentation=augmentation)


def noise(width: int = 60, height: int = 45, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def numbers(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(own.ATTEMPTS, 4, dtype=torch.float64, generator=generator)


def view(
    augmentation: own.Augmentation, index: int, image: Image.Image | None = None, **more: int
) -> torch.Tensor:
    place = {"seed": 0, "epoch": 1, "index": index} | more
    return own.training_view(image or noise(), transform(augmentation), **place)


BICUBIC = InterpolationMode.BICUBIC
# As the papers' repositories write them.
RECIPES: dict[str, list[Any]] = {
    "wise_ft": [transforms.RandomResizedCrop(24, (0.9, 1.0), interpolation=BICUBIC)],
    "domainbed": [
        transforms.RandomResizedCrop(24, scale=(0.7, 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(0.3, 0.3, 0.3, 0.3),
        transforms.RandomGrayscale(),
    ],
}


def by_seed(index: int, draw: Callable[[], Any]) -> Any:
    """What is drawn where the global generator has the seed of a view."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(own.view_seed(0, 1, index))
        return draw()


@pytest.mark.parametrize("name", RECIPES)
@given(index=st.integers(0, 10**6), width=st.integers(8, 90), height=st.integers(8, 90))
@settings(deadline=None, max_examples=30)
def test_a_view_is_that_of_the_papers_own_recipe_to_the_pixel(
    name: str, index: int, width: int, height: int
) -> None:
    image = noise(width, height)
    theirs = transforms.Compose([*RECIPES[name], transforms.PILToTensor()])
    expected = by_seed(index, lambda: theirs(image))
    assert torch.equal(view(own.AUGMENTATIONS[name], index, image), expected)


def test_lipsums_views_are_its_crop_mirrored_half_of_the_time() -> None:
    image, mirrored = noise(40, 30), 0
    for index in range(400):
        drawn = by_seed(index, lambda: torch.rand(own.ATTEMPTS, 4, dtype=torch.float64))
        box = own.box_by_height(40, 30, drawn, LIPSUM)
        crop = F.pil_to_tensor(F.resized_crop(image, *box, [24, 24], BICUBIC))
        ours = view(LIPSUM, index, image)
        is_mirrored = not torch.equal(ours, crop)
        assert torch.equal(ours.flip(-1) if is_mirrored else ours, crop)
        mirrored += is_mirrored
    assert abs(mirrored - 200) < 50  # binomial, a standard deviation of 10


def test_seeds_of_views_are_far_apart_and_the_same_on_every_machine() -> None:
    assert own.view_seed(0, 1, 2) == 9447251188159676786
    seeds = {own.view_seed(s, e, i) % 2**32 for s in range(3) for e in range(3) for i in range(200)}
    assert len(seeds) == 1800


def test_crops_and_mirror_images_are_spread_as_declared() -> None:
    count, ramp = 3000, np.tile(np.arange(128, dtype=np.uint8)[None, :, None] * 2, (128, 1, 3))
    image = Image.fromarray(ramp)
    only = own.Augmentation(area=(0.25, 0.25), ratio=(1.0, 1.0), flip=0.5)
    middle = torch.stack([view(only, index, image)[0, 12].float() for index in range(count)])
    mirrored = int((middle[:, 0] > middle[:, -1]).sum())
    assert abs(mirrored - count / 2) < 5 * math.sqrt(count / 4)
    # The left edge of a crop of 64 of 128 pixels is even in 0 to 64, that of the ramp in 0 to 128.
    bins = torch.histc(middle.min(dim=1).values / 2, bins=8, min=0, max=65)
    assert (bins - count / 8).abs().max() < 5 * math.sqrt(count / 8)


def test_none_trains_on_the_evaluation_view() -> None:
    plain = transform(own.AUGMENTATIONS["none"])
    views = [own.training_view(noise(), plain, seed=0, epoch=e, index=e) for e in range(3)]
    assert all(torch.equal(view, own.evaluation_view(noise(), plain)) for view in views)


@pytest.mark.parametrize("name", DRAWING)
def test_a_view_depends_on_seed_epoch_and_index_and_on_nothing_else(name: str) -> None:
    # Of 60 x 45 pixels few crops are as wide as 4:3, and many views are the same central one.
    chosen, image = own.AUGMENTATIONS[name], noise(200, 190)
    torch.manual_seed(0)
    first, state = view(chosen, 0, image), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(view(chosen, 0, image), first)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)
    for place in ({"seed": 2}, {"epoch": 2}, {"index": 1}):
        assert not torch.equal(view(chosen, image=image, **{"index": 0, **place}), first)


def test_what_is_not_declared_is_not_done() -> None:
    (crop,) = own._recipe(own.Augmentation(), 24).transforms
    assert isinstance(crop, v2.RandomResizedCrop)


@given(st.integers(2, 300), st.integers(2, 300), st.integers(0, 10**6))
@example(2000, 100, 0)  # the widest crop is 133 x 100: 6.65 %
@settings(deadline=None)
def test_lipsums_crop_lies_inside_and_shows_a_tenth_or_is_the_central_square(
    width: int, height: int, seed: int
) -> None:
    box = own.box_by_height(width, height, numbers(seed), LIPSUM)
    top, left, h, w = box
    assert 0 <= top <= height - h
    assert 0 <= left <= width - w
    side = int(224 / 256 * min(width, height))
    central = (height - side + 1) // 2, (width - side + 1) // 2, side, side
    assert (width, height) != (2000, 100) or box == central
    if box != central:
        assert 0.1 <= w * h / (width * height) < 1
        # The width is rounded, never the ratio: half a pixel of it.
        assert (w - 0.5) / h <= 4 / 3
        assert (w + 0.5) / h >= 3 / 4

"""Training views by name: the pixels are torchvision's, the draws those of the recipes."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from carft_core.data.transforms import (
    AUGMENTATIONS,
    Augmentation,
    Box,
    Look,
    Transform,
    _uniform,
    draws,
    evaluation_view,
    random_box,
    random_look,
    training_view,
)

COLOURS = ("brightness", "contrast", "saturation", "hue")
DOMAINBED, LIPSUM = AUGMENTATIONS["domainbed"], AUGMENTATIONS["lipsum"]
DRAWING = sorted(AUGMENTATIONS.keys() - {"none"})
WISE_FT_VIEW = [
    [122, 126, 127, 124],
    [133, 133, 129, 128],
    [120, 119, 133, 134],
    [131, 135, 128, 125],
]


def transform(augmentation: Augmentation, size: int = 24) -> Transform:
    return Transform(size, (0.5,) * 3, (0.25,) * 3, augmentation=augmentation)


def noise(width: int = 60, height: int = 45, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def look(index: int, augmentation: Augmentation = DOMAINBED) -> Look:
    return random_look(_uniform(2, 0, 1, index, 10), augmentation)


def torchvisions(image: Image.Image, augmentation: Augmentation, box: Box, drawn: Look) -> Any:
    """By the transforms that the recipes name, which are made to draw what we have drawn."""
    factors = dict(drawn.colours)
    order = torch.tensor([COLOURS.index(name) for name, _ in drawn.colours])
    jitter = (order, *(factors.get(name) for name in COLOURS))
    recipe = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                24,
                scale=augmentation.area,
                interpolation=InterpolationMode(augmentation.interpolation),
            ),
            transforms.RandomHorizontalFlip(float(drawn.flip)),
            transforms.ColorJitter(*(getattr(augmentation, name) for name in COLOURS)),
            transforms.RandomGrayscale(float(drawn.grey)),
            transforms.PILToTensor(),
        ]
    )
    with (
        patch.object(transforms.RandomResizedCrop, "get_params", lambda *_: box),
        patch.object(transforms.ColorJitter, "get_params", lambda *_: jitter),
    ):
        return recipe(image)


@pytest.mark.parametrize("name", DRAWING)
@given(index=st.integers(0, 10**6), width=st.integers(8, 90), height=st.integers(8, 90))
@settings(deadline=None, max_examples=30)
def test_a_view_equals_torchvisions_to_the_pixel(
    name: str, index: int, width: int, height: int
) -> None:
    augmentation, image = AUGMENTATIONS[name], noise(width, height)
    ours = training_view(image, transform(augmentation), seed=0, epoch=1, index=index)
    box = random_box(width, height, draws(0, 1, index), augmentation)
    assert torch.equal(ours, torchvisions(image, augmentation, box, look(index, augmentation)))


def test_wise_fts_views_are_the_same_in_every_version() -> None:
    """Kept results rest on them. Made by the version that knew no other augmentation."""
    view = training_view(
        noise(50, 70), transform(AUGMENTATIONS["wise_ft"], size=4), seed=3, epoch=2, index=1
    )
    assert view[0].tolist() == WISE_FT_VIEW


def test_flyp_uses_what_wise_ft_uses() -> None:
    assert AUGMENTATIONS["flyp"] == AUGMENTATIONS["wise_ft"] == Augmentation()


def test_none_trains_on_the_evaluation_view() -> None:
    plain = transform(AUGMENTATIONS["none"])
    views = [training_view(noise(), plain, seed=0, epoch=e, index=e) for e in range(3)]
    assert all(torch.equal(view, evaluation_view(noise(), plain)) for view in views)


@pytest.mark.parametrize("name", DRAWING)
def test_a_view_depends_on_seed_epoch_and_index_and_on_nothing_else(name: str) -> None:
    chosen = transform(AUGMENTATIONS[name])

    def view(seed: int, epoch: int, index: int) -> torch.Tensor:
        return training_view(noise(), chosen, seed=seed, epoch=epoch, index=index)

    torch.manual_seed(0)
    first, state = view(1, 1, 0), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(view(1, 1, 0), first)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)
    others = [view(2, 1, 0), view(1, 2, 0), view(1, 1, 1)]
    assert not any(torch.equal(other, first) for other in others)


def test_domainbeds_colours_are_drawn_evenly_and_in_every_order() -> None:
    count = 2400
    drawn = [look(index) for index in range(count)]
    orders = Counter(tuple(name for name, _ in one.colours) for one in drawn)
    # Binomial(2400, 1/24) has a standard deviation of 9.8; five of them.
    assert len(orders) == 24
    assert all(abs(times - 100) < 49 for times in orders.values())
    for name in COLOURS:
        values = torch.tensor([dict(one.colours)[name] for one in drawn])
        low, high = (-0.3, 0.3) if name == "hue" else (0.7, 1.3)
        assert low <= values.min()
        assert values.max() < high
        bins = torch.histc(values, bins=6, min=low, max=high)
        # Each bin expects 400 with a standard deviation of 18.
        assert (bins - 400).abs().max() < 92


def test_mirror_images_and_grey_ones_come_as_often_as_declared() -> None:
    count = 4000
    drawn = [look(index) for index in range(count)]
    for share, times in [
        (0.5, sum(one.flip for one in drawn)),
        (0.1, sum(one.grey for one in drawn)),
        (0.05, sum(one.flip and one.grey for one in drawn)),
    ]:
        assert abs(times - count * share) < 5 * math.sqrt(count * share * (1 - share))


def test_what_is_not_declared_is_not_done() -> None:
    assert {look(index, Augmentation()) for index in range(200)} == {Look(False, (), False)}


def test_a_factor_never_falls_below_nothing() -> None:
    """As torchvision's: a brightness of 2 draws from 0 to 3."""
    strong = Augmentation(brightness=2.0)
    values = [dict(look(index, strong).colours)["brightness"] for index in range(2000)]
    assert 0 <= min(values) < 0.01
    assert 2.99 < max(values) < 3


@given(st.integers(2, 300), st.integers(2, 300), st.integers(0, 10**6))
@settings(deadline=None)
def test_lipsums_crop_lies_inside_and_shows_a_tenth(width: int, height: int, seed: int) -> None:
    box = random_box(width, height, draws(seed, 1, 0), LIPSUM)
    assert 0 <= box.top <= height - box.height
    assert 0 <= box.left <= width - box.width
    side = int(224 / 256 * min(width, height))
    central = Box((height - side + 1) // 2, (width - side + 1) // 2, side, side)
    if box != central:
        assert 0.1 <= box.width * box.height / (width * height) < 1
        # The width is rounded, never the ratio: half a pixel of it.
        assert (box.width - 0.5) / box.height <= 4 / 3
        assert (box.width + 0.5) / box.height >= 3 / 4


def test_lipsums_heights_are_drawn_evenly() -> None:
    """TensorFlow draws the height, torchvision the area: small crops are more common here."""
    square = Augmentation(crop="height", area=(0.25, 1.0), ratio=(1.0, 1.0))
    heights = torch.tensor(
        [random_box(99, 99, draws(0, 1, i), square).height for i in range(5000)]
    ).float()
    # 50, 51, ..., 98, and the central crop, 86, where the whole image was drawn.
    bins = torch.tensor([(heights == height).sum() for height in range(50, 99) if height != 86])
    assert heights.min() == 50
    assert (bins - 100).abs().max() < 50
    assert abs(int((heights == 86).sum()) - 200) < 70


def test_where_no_crop_shows_enough_lipsum_takes_the_central_square() -> None:
    # The widest crop of 2000 x 100 is 133 x 100: 6.65 %.
    assert random_box(2000, 100, draws(0, 1, 0), LIPSUM) == Box(7, 957, 87, 87)

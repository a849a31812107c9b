"""Made JPEGs of the sizes and statistics of ImageNet's photographs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZES = {(500, 375): 50, (500, 333): 18, (375, 500): 13, (333, 500): 6, (500, 500): 4}
SIZES |= {(640, 480): 4, (300, 225): 3, (1024, 768): 1, (200, 150): 1}
"""Widths and heights with their percentage, about those of ImageNet-1k."""
QUALITY = 90


def make(
    folder: Path,
    count: int,
    sizes: Mapping[tuple[int, int], int] = SIZES,
    *,
    tests: int = 2,
) -> None:
    """An image_folder tree of photographs' statistics: noise whose amplitude falls as 1/f."""
    rng = np.random.default_rng(0)
    shares = np.array([*sizes.values()]) / sum(sizes.values())
    for split, images in (("train", count), ("test", tests)):
        for number in range(images):
            width, height = [*sizes][rng.choice(len(sizes), p=shares)]
            file = folder / split / f"class_{number % 2}" / f"{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            _photograph(width, height, rng).save(file, quality=QUALITY)


def _photograph(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    down, across = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    falling = 1 / np.maximum(np.hypot(down, across), 1 / max(width, height))
    channels: list[Any] = []
    for colour in range(3):
        spectrum = np.fft.rfft2(rng.standard_normal((height, width))) * falling
        plane = np.fft.irfft2(spectrum, (height, width))
        plane = plane / plane.std() if colour == 0 else channels[0] + 0.4 * plane / plane.std()
        channels.append(plane)
    pixels = 120 + 50 * np.stack(channels, axis=-1)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))

"""Image files that no camera makes: folders of coloured noise, a header that claims too much."""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def claimed_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header says that it has so many pixels."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "PNG")
    content = bytearray(file.getvalue())
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def noise_folder(root: Path, counts: Mapping[str, int], colours: Mapping[str, list[int]]) -> None:
    """Lay out an image folder: by split so many images of each class, of its colour in noise."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for name, colour in colours.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.array(colour) + rng.integers(-55, 55, (36, 40, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")

"""DomainBed's image sets in its folders, with tiny pictures."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

from carft_sweep.carft_core.data.families.domainbed import FOLDERS, class_folders


def pictures(count: int = 5) -> list[bytes]:
    """JPEG files of noise."""
    files = []
    for seed in range(count):
        noise = np.random.default_rng(seed).integers(0, 256, (30, 36, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(noise).save(out, "JPEG")
        files.append(out.getvalue())
    return files


def make(root: Path, family: str, *, per_domain: int | None = None, per_class: int = 3) -> Path:
    """So many images in each domain, spread over the classes; else so many of each class.

    Files are links to few, so that a large set is there in a moment.
    """
    kinds = [root / f".{number}.jpg" for number in range(5)]
    for file, content in zip(kinds, pictures(len(kinds)), strict=True):
        file.write_bytes(content)
    classes = class_folders(family)
    for place, folder in enumerate(FOLDERS[family].values()):
        domain = root / folder.names[0]
        count = len(classes) * per_class if per_domain is None else per_domain
        for name in classes:
            (domain / name).mkdir(parents=True)
        for number in range(count):
            # Numbers without leading zeros: `10` comes before `2`, as torchvision sorts them.
            file = domain / classes[number % len(classes)] / f"{number}.jpg"
            os.link(kinds[(place + number) % len(kinds)], file)
    return root

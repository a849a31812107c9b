"""DomainBed's image sets in its folders, with tiny pictures."""

from __future__ import annotations

import os
from pathlib import Path

from carft_sweep.carft_core.data.families.domainbed import FOLDERS, class_folders
from tests.imagenet_tree import pictures


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

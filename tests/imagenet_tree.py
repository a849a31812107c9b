"""ImageNet and its shifts in their makers' layouts, with a tiny picture or more of each class."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

LISTS = Path(__file__).parents[1] / "carft_core" / "data" / "classes" / "imagenet"
WNIDS = tuple((LISTS / "wnids.txt").read_text().split())
_LINES = map(str.split, (LISTS / "objectnet.txt").read_text().splitlines())
OBJECTS = {folder: [int(index) for index in indices] for folder, *indices in _LINES}
V2 = "imagenetv2-matched-frequency-format-val"
OBJECTNET = "objectnet-1.0/images"
PARTS = ("imagenet/train", "imagenet/val", V2, "imagenet-r", "imagenet-a", "sketch", OBJECTNET)


def pictures(count: int = 8) -> list[bytes]:
    files = []
    for seed in range(count):
        noise = np.random.default_rng(seed).integers(0, 256, (36, 40, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(noise).save(out, "JPEG", quality=60)
        files.append(out.getvalue())
    return files


def make(root: Path, *, per_class: int = 3) -> Path:
    """Train has so many images of a class, everything else one; ObjectNet one more object."""
    kinds = pictures()

    def fill(part: str, folders: Iterable[str], images: int, suffix: str = "JPEG") -> None:
        for place, folder in enumerate(folders):
            (root / part / folder).mkdir(parents=True)
            for number in range(images):
                name = f"{folder}_{number}.{suffix}"
                (root / part / folder / name).write_bytes(kinds[(place + number) % len(kinds)])

    fill("imagenet/train", WNIDS, per_class)
    fill("imagenet/val", WNIDS, 1)
    fill(V2, map(str, range(1000)), 1, "jpeg")
    for part, listing in (("imagenet-r", "r.txt"), ("imagenet-a", "a.txt")):
        fill(part, (LISTS / listing).read_text().split(), 1, "jpg")
    fill("sketch", WNIDS, 1)
    fill(OBJECTNET, [*OBJECTS, "air_freshener"], 1, "png")
    return root


def linked(root: Path, place: Path, own: Collection[str] = ()) -> Path:
    """A data root at `place` that shares all folders of another, but has its own copies of some."""
    for part in PARTS:
        link = place / part
        link.parent.mkdir(exist_ok=True)
        if part in own:
            shutil.copytree(root / part, link)
        else:
            link.symlink_to(root / part)
    return place


def sweep(root: Path, model: Path, **changes: object) -> str:
    parameters = {"algorithm.kl_weight": {"values": [1.0]}}
    trial = {
        **{"model": {"name": str(model)}, "data": {"family": "imagenet", "root": str(root)}},
        "prompts": {"classes": "class_only", "contexts": "class_only"},
        **{"algorithm": "car_ft", "device": "cpu"},
    }
    return json.dumps({"name": "shifts", "parameters": parameters, "trial": trial, **changes})

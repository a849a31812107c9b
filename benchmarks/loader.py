"""How many images a second a core loads, beside torchvision's plain ImageFolder and DataLoader.

    python benchmarks/loader.py [--images 1000] [--repeats 5] [--workers 2] [--json] [--keep FOLDER]

Makes JPEGs of ImageNet's sizes, then loads them with both in turn, in the views that fine-tuning
trains on and is evaluated on. A core's time is the processor time of this process and its workers;
beside it stands the wall clock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode

from carft_core.data import Transform
from carft_core.data.base import DataConfig
from carft_core.data.image_folder import IMAGE_FOLDER
from carft_core.data.loader import Loader, Passes
from carft_core.data.transforms import AUGMENTATIONS

SIZES = {(500, 375): 50, (500, 333): 18, (375, 500): 13, (333, 500): 6, (500, 500): 4}
SIZES |= {(640, 480): 4, (300, 225): 3, (1024, 768): 1, (200, 150): 1}
"""Widths and heights with their percentage, about those of ImageNet-1k."""
QUALITY = 90
BATCH = 64
CLIP = Transform(224, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
BICUBIC = InterpolationMode.BICUBIC
THEIRS: Mapping[str, tuple[Any, ...]] = {
    "wise_ft": (transforms.RandomResizedCrop(224, scale=(0.9, 1.0), interpolation=BICUBIC),),
    "domainbed": (
        transforms.RandomResizedCrop(224, scale=(0.7, 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(0.3, 0.3, 0.3, 0.3),
        transforms.RandomGrayscale(),
    ),
    "evaluation": (transforms.Resize(224, BICUBIC), transforms.CenterCrop(224)),
}
"""torchvision's own transforms, as the recipes write them down."""


class Spent(NamedTuple):
    """Seconds of one pass over the images."""

    processor: float
    wall: float


def main() -> int:
    """Make the images, load them in turn, tell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.add_argument("--keep", type=Path, help="make the images here, or use those that are")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with _folder(chosen.keep) as folder:
        if not (folder / "train").exists():
            make(folder, chosen.images)
        rows = [
            measure(folder, view, workers, chosen.repeats)
            for workers in (0, chosen.workers)
            for view in THEIRS
        ]
        files = [file.stat().st_size for file in folder.glob("train/*/*.jpg")]
    machine = (
        f"{os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"
    )
    told = {"images": len(files), "kilobytes": round(statistics.mean(files) / 1000), "rows": rows}
    told |= {"machine": machine, "repeats": chosen.repeats}
    sys.stdout.write(f"{json.dumps(told, indent=1)}\n" if chosen.json else _table(told))
    return 0


def make(folder: Path, count: int) -> None:
    """An image_folder tree of photographs' statistics: noise whose amplitude falls as 1/f."""
    rng = np.random.default_rng(0)
    shares = np.array([*SIZES.values()]) / sum(SIZES.values())
    for split, images in (("train", count), ("test", 2)):
        for number in range(images):
            width, height = [*SIZES][rng.choice(len(SIZES), p=shares)]
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


def measure(folder: Path, view: str, workers: int, repeats: int) -> dict[str, Any]:
    """Images a second of both, in turn, so that what else the machine does meets both alike."""
    loaders: dict[str, Callable[[int], Iterator[Any]]] = {
        "ours": _ours(folder, view, workers),
        "torchvision": _theirs(folder, view, workers),
    }
    spent: dict[str, list[Spent]] = {name: [] for name in loaders}
    count = 0
    for repeat in range(repeats + 1):
        for name, load in loaders.items():
            seconds, count = _timed(load, repeat)
            if repeat > 0:  # the first pass fills the system's cache of files
                spent[name].append(seconds)
    row: dict[str, Any] = {"view": view, "workers": workers}
    for kind in Spent._fields:
        speeds = {n: count / min(getattr(s, kind) for s in all_) for n, all_ in spent.items()}
        row[kind] = {name: round(speed, 1) for name, speed in speeds.items()}
        row[kind]["ratio"] = round(speeds["ours"] / speeds["torchvision"], 3)
    return row


def _ours(folder: Path, view: str, workers: int) -> Callable[[int], Iterator[Any]]:
    split = IMAGE_FOLDER.open(DataConfig(family="image_folder", root=str(folder))).train
    transform = CLIP
    if view != "evaluation":
        transform = Transform(CLIP.size, CLIP.mean, CLIP.std, augmentation=AUGMENTATIONS[view])
    seed = None if view == "evaluation" else 0
    plan = Passes(len(split), BATCH, seed)

    def load(epoch: int) -> Iterator[Any]:
        steps = range(epoch * plan.steps, (epoch + 1) * plan.steps)
        # A loader for each pass: the time of workers counts once they have ended.
        with Loader(split, transform=transform, plan=plan, seed=seed, workers=workers) as loader:
            for batch in loader.steps(steps):
                yield transform.normalise(batch.images), batch.labels

    return load


def _theirs(folder: Path, view: str, workers: int) -> Callable[[int], Iterator[Any]]:
    recipe = (*THEIRS[view], transforms.ToTensor(), transforms.Normalize(CLIP.mean, CLIP.std))
    images = ImageFolder(str(folder / "train"), transforms.Compose(recipe))
    loader: DataLoader[Any] = DataLoader(
        images, batch_size=BATCH, shuffle=view != "evaluation", num_workers=workers
    )
    return lambda _: iter(loader)


def _timed(load: Callable[[int], Iterator[Any]], epoch: int) -> tuple[Spent, int]:
    began, wall = os.times(), time.perf_counter()
    count = sum(len(batch[1]) for batch in load(epoch))
    ended, seconds = os.times(), time.perf_counter() - wall
    return Spent(sum(ended[:4]) - sum(began[:4]), seconds), count


def _table(told: Mapping[str, Any]) -> str:
    lines = [
        f"{told['images']} JPEGs of {told['kilobytes']} kB, quality {QUALITY}; {told['machine']}; "
        f"the best of {told['repeats']} passes",
        "| view | workers | a core's second: ours | torchvision | ratio | a second: ours | "
        "torchvision | ratio |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in told["rows"]:
        numbers = [
            f"{row[kind][name]:.{2 if name == 'ratio' else 0}f}"
            for kind in Spent._fields
            for name in ("ours", "torchvision", "ratio")
        ]
        lines.append(f"| {row['view']} | {row['workers']} | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        yield kept
        return
    with tempfile.TemporaryDirectory(prefix="carft-loader-") as scratch:
        yield Path(scratch)


if __name__ == "__main__":
    sys.exit(main())

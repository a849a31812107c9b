"""Loading photographs, beside torchvision's plain ImageFolder and DataLoader on the same files."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode

from carft_sweep.carft_core.data import Transform
from carft_sweep.carft_core.data.base import DataConfig
from carft_sweep.carft_core.data.image_folder import IMAGE_FOLDER
from carft_sweep.carft_core.data.loader import Batches, Loader, Passes
from carft_sweep.carft_core.data.transforms import AUGMENTATIONS
from carft_sweep.sweeps.bench.measurement import Effort, Measurement, take_turns

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


IMAGES, QUICK_IMAGES = 600, 60
LARGE = (2048, 1536)


def measure_data(effort: Effort) -> Iterator[Measurement]:
    """Measure a pass over a tree of JPEGs beside torchvision's ImageFolder and DataLoader, in the
    views that training and evaluation see.
    """
    count = QUICK_IMAGES if effort.quick else IMAGES
    with tempfile.TemporaryDirectory(prefix="carft-bench-") as scratch:
        folder = Path(scratch)
        make(folder, count)
        for workers in (0, os.cpu_count() or 1):
            for view in THEIRS:
                loaders = {
                    "torchvision": _theirs(folder, view, workers),
                    "ours": load_ours(folder, view, workers),
                }
                turns = {name: count_passes(load, count) for name, load in loaders.items()}
                seconds = take_turns(effort.rounds, turns)
                yield Measurement(
                    f"{count} JPEGs, view {view}, {workers} workers",
                    "torchvision",
                    seconds["torchvision"],
                    seconds["ours"],
                )
    yield _measure_reduced(effort, max(2, count // 10))


def _measure_reduced(effort: Effort, count: int) -> Measurement:
    """Measure large photographs that are decoded to the size that is needed."""
    with tempfile.TemporaryDirectory(prefix="carft-bench-") as scratch:
        folder = Path(scratch)
        make(folder, count, {LARGE: 100})
        sides = {
            decode: count_passes(
                load_ours(folder, "evaluation", 0, reduced=decode == "reduced"), count
            )
            for decode in ("full", "reduced")
        }
        seconds = take_turns(effort.rounds, sides)
    name = "{} JPEGs of {} x {}, decode reduced".format(count, *LARGE)
    return Measurement(name, "decode full", seconds["full"], seconds["reduced"])


def count_passes(load: Callable[[int], Iterator[Any]], count: int) -> Callable[[], None]:
    """Return what goes through the images once more each time, in views of another epoch."""
    epochs = itertools.count()

    def go_through() -> None:
        if sum(len(batch[1]) for batch in load(next(epochs))) != count:
            raise RuntimeError("a pass has left images out")

    return go_through


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


def load_ours(
    folder: Path, view: str, workers: int, *, reduced: bool = False
) -> Callable[[int], Iterator[Any]]:
    """Return what loads the training images of a tree, given the number of a pass."""
    split = IMAGE_FOLDER.open(DataConfig(family="image_folder", root=str(folder))).train
    transform = replace(CLIP, reduced=reduced)
    if view != "evaluation":
        transform = replace(transform, augmentation=AUGMENTATIONS[view])
    seed = None if view == "evaluation" else 0
    plan = Passes(len(split), BATCH, seed)
    batches = Batches("train", plan, seed)

    def load(epoch: int) -> Iterator[Any]:
        steps = range(epoch * plan.steps, (epoch + 1) * plan.steps)
        # A loader for each pass: the time of workers counts once they have ended.
        with Loader({"train": split}, transform=transform, workers=workers) as loader:
            for batch in loader.steps(batches, steps):
                yield transform.normalise(batch.images), batch.labels

    return load


def torchvision_recipe(view: str) -> list[Any]:
    """Return torchvision's transforms from an image to the tensor that a tower takes."""
    return [*THEIRS[view], transforms.ToTensor(), transforms.Normalize(CLIP.mean, CLIP.std)]


def _theirs(folder: Path, view: str, workers: int) -> Callable[[int], Iterator[Any]]:
    images = ImageFolder(str(folder / "train"), transforms.Compose(torchvision_recipe(view)))
    loader: DataLoader[Any] = DataLoader(
        images, batch_size=BATCH, shuffle=view != "evaluation", num_workers=workers
    )
    return lambda _: iter(loader)

"""Tar shards and class folders through the loader, beside webdataset on the same shards.

Measured only where webdataset is installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torchvision import transforms

from carft_sweep.sweeps.bench.data import (
    BATCH,
    IMAGES,
    QUICK_IMAGES,
    count_passes,
    load_ours,
    make,
    torchvision_recipe,
)
from carft_sweep.sweeps.bench.measurement import Effort, Measurement, take_turns

WEBDATASET = "webdataset"
VIEW = "evaluation"
LEAST_SHARDS = 8


def measure_shards(effort: Effort) -> Iterator[Measurement]:
    """Measure a pass over JPEGs in tar shards, and in class folders, in the evaluation view.

    webdataset divides shards among its workers, so there are at least two for each of them.
    """
    if importlib.util.find_spec(WEBDATASET) is None:
        return
    count = QUICK_IMAGES if effort.quick else IMAGES
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="carft-bench-") as scratch:
        folders, shards = Path(scratch) / "folders", Path(scratch) / "shards"
        make(folders, count)
        pack(folders, shards, max(LEAST_SHARDS, 2 * cores))
        for workers in (0, cores):
            sides = {
                WEBDATASET: load_webdataset(shards, workers),
                "tar shards": load_ours(shards, VIEW, workers),
                "folders": load_ours(folders, VIEW, workers),
            }
            turns = {name: count_passes(load, count) for name, load in sides.items()}
            seconds = take_turns(effort.rounds, turns)
            for place in ("tar shards", "folders"):
                yield Measurement(
                    f"{count} JPEGs in {place}, {workers} workers",
                    f"{WEBDATASET}, tar shards",
                    seconds[WEBDATASET],
                    seconds[place],
                )


def pack(folders: Path, place: Path, number: int) -> None:
    """Put the training images of an image_folder tree into so many shards, as webdataset has them.

    The test images stay in folders.
    """
    classes = sorted(folder.name for folder in (folders / "train").iterdir())
    files = sorted((folders / "train").glob("*/*"), key=lambda file: (len(file.name), file.name))
    shutil.copytree(folders / "test", place / "test")
    (place / "train").mkdir()
    names = {str(label): name for label, name in enumerate(classes)}
    for folder in (place / "test").iterdir():
        folder.rename(folder.with_name(str(classes.index(folder.name))))
    (place / "classes.json").write_text(json.dumps(names), encoding="utf-8")
    for shard in range(min(number, len(files))):
        with tarfile.open(place / "train" / f"{shard:04}.tar", "w") as tar:
            for file in files[shard::number]:
                label = str(classes.index(file.parent.name))
                for suffix, content in ((".jpg", file.read_bytes()), (".cls", label.encode())):
                    member = tarfile.TarInfo(file.stem + suffix)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def load_webdataset(place: Path, workers: int) -> Callable[[int], Iterator[Any]]:
    """Return what loads the training images with webdataset's pipeline, shard after shard."""
    library: Any = importlib.import_module(WEBDATASET)
    files = sorted(map(str, (place / "train").glob("*.tar")))
    view = transforms.Compose(torchvision_recipe(VIEW))
    images = (
        library.WebDataset(files, shardshuffle=False, empty_check=False)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(view, int)
        .batched(BATCH)
    )
    loader = library.WebLoader(images, batch_size=None, num_workers=workers)
    return lambda _: iter(loader)

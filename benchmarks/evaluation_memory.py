"""How much memory it takes to measure a model, by the number of shifts.

    python benchmarks/evaluation_memory.py [--shifts 5 40] [--images 2000]

Random images of 1000 classes and a classifier of one layer, measured with the context probe and
with kept predictions, in a fresh process for each number of shifts.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from carft_sweep.carft_core.clip import ImageClassifier
from carft_sweep.carft_core.config import TrialConfig, trial_config
from carft_sweep.carft_core.data import Source, Split, Transform
from carft_sweep.carft_core.evaluate import measure
from carft_sweep.carft_core.prepare import Prepared, prepared

CLASSES, WIDTH, PIXELS = 1000, 512, 8


class Noise(Source):
    """Images of noise, a pure function of the row."""

    def views(
        self, rows: Sequence[int], *, transform: Transform, seed: int | None, epoch: int
    ) -> Tensor:
        """Views [B, 3, PIXELS, PIXELS] uint8."""
        del transform, seed, epoch
        generator = torch.Generator().manual_seed(rows[0])
        shape = (len(rows), 3, PIXELS, PIXELS)
        return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def noise_task(config: TrialConfig, shifts: int, images: int) -> Prepared:
    """A task of so many shifts beside `id/val` and `id/test`."""
    stand, labels = prepared(config), torch.arange(images) % CLASSES
    split = Split(tuple(f"image {row}" for row in range(images)), labels, Noise())
    named = {f"shift-{number}": split for number in range(shifts)}
    measured = {"id/val": split, "id/test": split, **{f"ood/{name}": split for name in named}}
    tower = nn.Sequential(nn.Flatten(), nn.Linear(3 * PIXELS**2, WIDTH))
    names = tuple(f"class {number}" for number in range(CLASSES))
    teacher = replace(
        stand.teacher,
        class_names=names,
        splits={"train": split, **measured},
        digests={name: f"noise of {name}" for name in measured},
        w_cls=torch.randn(CLASSES, WIDTH),
        w_ctx=torch.randn(80, WIDTH),
        classifier=ImageClassifier(tower, nn.Linear(WIDTH, CLASSES, bias=False)),
    )
    data = replace(stand.data, class_names=names, val=split, test=split, shifts=named)
    return replace(stand, data=data, teacher=teacher)


def measure_once(shifts: int, images: int) -> None:
    """Measure a model that is not the zero-shot model, and print the most memory that it took."""
    plain = {"data": {"family": "icon_shift_dev"}, "algorithm": "zero_shot", "device": "cpu"}
    config = trial_config(plain)
    stand = noise_task(config, shifts, images)
    before = _peak_mb()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CARFT_CACHE"] = folder
        files = {"unmerged": Path(folder) / "predictions.parquet"}
        measure({"unmerged": stand.teacher.new_classifier}, stand, config, files)
    sys.stdout.write(
        f"{shifts} shifts: {_peak_mb() - before:.0f} MB above the {before:.0f} before\n"
    )


def _peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    """Measure in a process for each number of shifts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shifts", type=int, nargs="+", default=[5, 40])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        measure_once(given.shifts[0], given.images)
        return
    shared = ["--images", str(given.images), "--here"]
    for shifts in given.shifts:
        subprocess.run([sys.executable, __file__, "--shifts", str(shifts), *shared], check=True)


if __name__ == "__main__":
    main()

"""How long a folder of many images takes to open: the first time, and every later time.

    python benchmarks/listing.py FOLDER [--images 100000] [--classes 1000]

Makes an ImageNet `train` of tiny files in FOLDER unless one is there, and opens it as a run does,
in fresh processes: listed from the disk, then from the cache; and then carves `val` from it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from carft_sweep.carft_core.data.imagenet import wnids

OPEN = """
import sys, time
from pathlib import Path
import torch
import pyarrow as pa
from carft_sweep.carft_core.data.base import Files, Split
from carft_sweep.carft_core.data.folders import read_manifest
from carft_sweep.carft_core.data.splits import carve
from carft_sweep.carft_core.data.images import read_plain
start = time.perf_counter()
found = read_manifest(Path(sys.argv[1]))
listed = time.perf_counter()
counts = torch.tensor([*found.counts.values()])
labels = torch.repeat_interleave(torch.arange(len(counts)), counts)
source = Files(Path(sys.argv[1]), pa.array(found.paths), read_plain)
split = Split(found.paths, labels, source)
carve(split, val_fraction=0.02, split_seed=0)
carved = time.perf_counter()
print(f"{len(found.paths):,} images: listed in {listed - start:.2f} s", end=", ")
print(f"carved in {carved - listed:.2f} s")
"""


def make(train: Path, images: int, classes: int) -> None:
    """So many files of a few bytes, evenly over the classes."""
    for place, wnid in enumerate(wnids()[:classes]):
        (train / wnid).mkdir(parents=True)
        for number in range(place, images, classes):
            (train / wnid / f"{wnid}_{number}.JPEG").write_bytes(b"x" * (1 + number % 100))


def main() -> None:
    """Make, then open three times."""
    parser = argparse.ArgumentParser(description="How long many images take to open.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=1000)
    given = parser.parse_args()
    train = given.folder / "imagenet" / "train"
    if not train.exists():
        make(train, given.images, given.classes)
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(3):
            done = subprocess.run(
                [sys.executable, "-c", OPEN, str(train)],
                env={"CARFT_CACHE": cache, "PYTHONPATH": ":".join(sys.path)},
                capture_output=True,
                text=True,
                check=True,
            )
            sys.stdout.write(done.stdout)
        (file,) = Path(cache).glob("manifests/*")
        sys.stdout.write(f"the cache takes {file.stat().st_size / 2**20:.1f} MiB\n")


if __name__ == "__main__":
    main()

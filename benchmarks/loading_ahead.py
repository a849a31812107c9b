"""What does it gain that workers load ahead from epoch to epoch and from split to split?

    python -m benchmarks.loading_ahead [--workers 16] [--train 1600] [--tests 1000] [--epochs 6]

Method. The product's loader goes through a run's parts: training epochs with `id/val` behind each,
then all splits that are evaluated. Decoding and computing are simulated by waiting (4 ms an image,
0.2 s a training step, 0.05 s a batch that is evaluated), as beside a GPU, so cores and load do
not matter. Once the loader knows what comes, and once it does not.

How to read it. Seconds of training and of evaluation. Where a part has fewer batches than there are
workers, the others wait, unless they load the next part meanwhile.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from carft_sweep.carft_core.data.base import Source, Split
from carft_sweep.carft_core.data.loader import Batches, Loader, Part, Passes
from carft_sweep.carft_core.data.transforms import Transform

IMAGE, TRAINING_STEP, EVALUATED_BATCH = 0.004, 0.2, 0.05
"""Seconds."""
BATCH, EVALUATION_BATCH, SHIFTS = 512, 256, 6
TINY = Transform(size=2, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class Slow(Source):
    """Images that take as long as decoding does, and no processor."""

    def views(
        self, rows: Sequence[int], *, transform: Transform, seed: int | None, epoch: int
    ) -> Tensor:
        """Black ones."""
        del seed, epoch
        time.sleep(IMAGE * len(rows))
        return torch.zeros(len(rows), 3, transform.size, transform.size, dtype=torch.uint8)


def split_of(count: int) -> Split:
    """One of so many images."""
    ids = tuple(map(str, range(count)))
    return Split(ids=ids, labels=torch.zeros(count, dtype=torch.int64), source=Slow())


def go_through(loader: Loader, parts: Sequence[Part], *, ahead: bool) -> float:
    """The seconds that parts take."""
    began = time.perf_counter()
    if ahead:
        loader.expect(parts)
    for batches, steps in parts:
        for _ in loader.steps(batches, steps):
            time.sleep(EVALUATED_BATCH if batches.seed is None else TRAINING_STEP)
    return time.perf_counter() - began


def measure(workers: int, train: int, tests: int, epochs: int, *, ahead: bool) -> list[float]:
    """The seconds of training and of evaluation."""
    names = ["id/val", "id/test", *(f"ood/{number}" for number in range(SHIFTS))]
    splits = {"train": split_of(train), "id/val": split_of(train // 4)}
    splits |= {name: split_of(tests) for name in names[1:]}
    evaluated: dict[str, Part] = {}
    for name in names:
        passes = Passes(len(splits[name]), EVALUATION_BATCH)
        evaluated[name] = Batches(name, passes, None), range(passes.steps)
    plan = Passes(train, BATCH, 0)
    training: list[Part] = []
    for epoch in range(epochs):
        steps = range(epoch * plan.steps, (epoch + 1) * plan.steps)
        training += [(Batches("train", plan, 0), steps), evaluated["id/val"]]
    with Loader(splits, transform=TINY, workers=workers) as loader:
        return [go_through(loader, it, ahead=ahead) for it in (training, [*evaluated.values()])]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in {"workers": 16, "train": 1600, "tests": 1000, "epochs": 6}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = vars(parser.parse_args())
    sys.stdout.write("| | training, s | evaluation, s |\n|---|---|---|\n")
    for what, ahead in {"part by part": False, "ahead": True}.items():
        training, evaluation = measure(**options, ahead=ahead)
        sys.stdout.write(f"| {what} | {training:.1f} | {evaluation:.1f} |\n")


if __name__ == "__main__":
    main()

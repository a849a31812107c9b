"""How much longer does the evaluation of a trained run take than a bare loop over its batches?

    python -m benchmarks.floor.evaluation [--pairs 3] [--epochs 1] [--threads N] [--json]

Method. A run of `fine_tune` is trained once. Then it is evaluated on every split of IconShift for
WiSE-FT at 11 alphas (0, 0.1, ..., 1): by the product, which is asked with `train()` for the trained
folder with these merges and therefore claims the folder and calls `finish`; and by a loop with the
batches outside and the models inside. Both take turns in one process.

On both sides, inside the time: rendering every image of every split (the product's own views, so
that both decode the same; the loop renders each once), 10 forward passes (alpha 1 is the unmerged
model; the zero-shot model at alpha 0 is known to the process from before), interpolating the
weights, top-1, NLL, ECE, Brier and the context probe in float64.
Inside for the product only: opening the folder and its identity, reading the tuned weights from
disk, writing 12 evaluations, and with `keep.predictions` 12 files of predictions.
Outside on both sides: opening model, data, text features; training; the zero-shot predictions.

How to read it. The ratio is the median over pairs of product / bare loop, without and with kept
predictions; the target is at most 1.1 for the product's default (with predictions). `rendering` is
what one pass over all batches without any model takes, and is part of every figure.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from carft_sweep.carft_core.train import epochs, train
from carft_sweep.sweeps.bench.bare import Bare
from carft_sweep.sweeps.bench.measurement import describe_machine, median_and_range, ratios
from carft_sweep.sweeps.bench.preload import evaluation_splits, preload, recipe_config

TARGET = 1.1
ALPHAS = [round(0.1 * step, 1) for step in range(11)]
SEED = 0
Timed = Callable[[], dict[str, Any]]


class Sides:
    """What is timed: each method prepares one side and returns the function to time."""

    def __init__(self, scratch: Path, length: int) -> None:
        self.scratch, self.optim = scratch, {"epochs": length}
        self.plain = recipe_config("fine_tune", optim=self.optim, merges=[])
        # Trained and not yet finished: no evaluation is there that a later one could reuse.
        self.trained = scratch / "trained"
        for _ in epochs(self.plain, SEED, workdir=self.trained):
            pass
        zero_shot = recipe_config("zero_shot", optim=self.optim, merges=[])
        train(zero_shot, SEED, workdir=scratch / "zero_shot")
        self.loop = Bare(preload(self.plain, SEED))
        self.tuned = _tuned(self.trained)

    def product(self, *, predictions: bool) -> Timed:
        """In a fresh copy of the trained folder."""
        folder = Path(tempfile.mkdtemp(dir=self.scratch)) / "run"
        shutil.copytree(self.trained, folder)
        merges = [{"name": "wise_ft", "alphas": ALPHAS}]
        keep = {"predictions": predictions}
        config = recipe_config("fine_tune", optim=self.optim, merges=merges, keep=keep)

        def run() -> dict[str, Any]:
            result = train(config, SEED, workdir=folder)
            assert result is not None
            return {label: item["metrics"] for label, item in result.merges.items()}

        return run

    def bare(self) -> Timed:
        """Batches outside, models inside."""
        return lambda: self.loop.evaluate(self.tuned, ALPHAS, evaluation_splits(self.plain))

    def rendering(self) -> Timed:
        """The batches alone."""
        return lambda: {name: list(of) for name, of in evaluation_splits(self.plain).items()}


def measure(sides: Sides, pairs: int) -> dict[str, Any]:
    """Seconds of each side, and the ratios."""
    makers: dict[str, Callable[[], Timed]] = {
        "product": lambda: sides.product(predictions=False),
        "product with predictions": lambda: sides.product(predictions=True),
        "bare loop": sides.bare,
        "rendering": sides.rendering,
    }
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    metrics: dict[str, dict[str, Any]] = {}
    for pair in range(pairs):
        for name in makers if pair % 2 == 0 else reversed(makers):
            run = makers[name]()
            began = time.perf_counter()
            metrics[name] = run()
            seconds[name].append(time.perf_counter() - began)
    return {
        "seconds": seconds,
        "ratio": {
            name: ratios(seconds[name], seconds["bare loop"])
            for name in ("product", "product with predictions")
        },
        "agreement": max(
            abs(value - metrics["bare loop"][label][name])
            for label, of_label in metrics["product"].items()
            for name, value in of_label.items()
            if name.endswith("top1") and name in metrics["bare loop"][label]
        ),
        "threads": torch.get_num_threads(),
    }


def _tuned(trained: Path) -> dict[str, torch.Tensor]:
    """The weights in a trained folder, by the bare loop's names."""
    (file,) = trained.rglob("last.safetensors")
    return {name.replace("head.weight", "head"): value for name, value in load_file(file).items()}


def report(figures: Mapping[str, Any]) -> str:
    """The figures as lines."""
    lines = [f"{len(ALPHAS)} alphas, {figures['threads']} threads, target {TARGET}:"]
    for name, seconds in figures["seconds"].items():
        line = f"  {name:25} {median_and_range(seconds)} s"
        if name in figures["ratio"]:
            line += f", ratio {median_and_range(figures['ratio'][name], 3)}"
        lines.append(line)
    lines.append(f"  agreement within {figures['agreement']:.4f} of top-1")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1, help="of the training beforehand")
    parser.add_argument("--threads", type=int, help="of torch; by default its own choice")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    machine = describe_machine()
    with tempfile.TemporaryDirectory(prefix="carft-floor-") as scratch:
        figures = measure(Sides(Path(scratch), options.epochs), options.pairs)
    if options.json:
        sys.stdout.write(json.dumps({"machine": machine, **figures}, indent=1) + "\n")
        return
    sys.stdout.write(f"{machine}\n{options.pairs} pairs\n{report(figures)}")


if __name__ == "__main__":
    main()

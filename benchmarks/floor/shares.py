"""What is a training step made of, and what could runs that share a batch save?

    python -m benchmarks.floor.shares [--steps 60] [--threads 1] [--photographs N]

Method. Three runs of the built-in model with the shipped defaults stand side by side in one
process: `fine_tune`, `car_ft` whose teacher computes (CARFT_BANK_GB=0), and `car_ft` out of
a bank that an earlier run has filled. Each takes every step in turn, on the same loaded
batch, in an order that changes from step to step. Loading (no worker processes), the teacher's
forward pass, and reading from and writing to the bank are measured beside, batch by batch. Seconds
are those of the processor, in this process. The data is IconShift, drawn in memory, or with
`--photographs` as many JPEGs of ImageNet's sizes.

How to read it. Medians over steps, and over steps of the ratio. `lockstep` is what runs side by
side in one process could save of a run's training, with the bank, if each batch was loaded, and its
features read, once for all of them: (n - 1) / n of loading and reading, by calculation.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from carft_sweep.carft_core.bank import VARIABLE
from carft_sweep.carft_core.config import TrialConfig, trial_config
from carft_sweep.carft_core.data.loader import Loaded
from carft_sweep.carft_core.prepare import prepared
from carft_sweep.carft_core.run import RunFolder
from carft_sweep.carft_core.train import Run, set_mode
from carft_sweep.sweeps.bench.data import make
from carft_sweep.sweeps.bench.measurement import describe_machine, median_and_range, ratios

RUNS = (2, 4, 15)
"""How many runs side by side the saving is told of."""


def configs(folder: Path, photographs: int) -> Iterator[TrialConfig]:
    """The runs, by algorithm."""
    data: dict[str, Any] = {}
    if photographs:
        make(folder / "photographs", photographs)
        data = {"family": "image_folder", "root": str(folder / "photographs")}
    for name in ("fine_tune", "car_ft", "car_ft"):
        yield trial_config(
            {"algorithm": name, "data": data, "device": "cpu", "workers": 0, "optim": {"epochs": 5}}
        )


def opened(config: TrialConfig, folder: Path, gigabytes: str) -> Run:
    """A run before its first step, with or without the bank."""
    os.environ[VARIABLE] = gigabytes
    run = Run(config, 0, RunFolder(folder), prepared(config))
    set_mode(run.model, train=True, batch_norm=config.optim.batch_norm)
    run.feature_bank.read(0, torch.arange(0))  # opened while the variable holds
    return run


def spent(action: Callable[..., Any], *arguments: object) -> tuple[float, Any]:
    """Processor seconds of a call, and what it returned."""
    began = time.process_time()
    result = action(*arguments)
    return time.process_time() - began, result


def measure(folder: Path, steps: int, photographs: int) -> dict[str, list[float]]:
    """Seconds of each part, step by step."""
    plain, computing, banked = (
        opened(config, folder / str(number), gigabytes)
        for number, (config, gigabytes) in enumerate(
            zip(configs(folder, photographs), ("0", "0", "1"), strict=True)
        )
    )
    runs = {"fine_tune": plain, "car_ft, computed": computing, "car_ft, bank": banked}
    rows = []
    with plain.teacher.loader as loader:
        batches = loader.steps(plain.batches, range(steps))
        for number in range(steps):
            row: dict[str, float] = {}
            row["loading"], loaded = spent(next, batches)
            views = plain._batch(loaded).images
            row["teacher"], features = spent(plain.teacher.image_features, views)
            row["writing"], _ = spent(banked.feature_bank.write, number, loaded.index, features)
            row["reading"], _ = spent(banked.feature_bank.read, number, loaded.index)
            turn = number % len(runs)
            for name in [*runs][turn:] + [*runs][:turn]:
                row[name], _ = spent(step, runs[name], loaded)
            rows.append(row)
    names = ("loading", "teacher", "writing", "reading", *runs)
    return {name: [row[name] for row in rows[1:]] for name in names}  # the first one warms up


def step(run: Run, loaded: Loaded) -> None:
    """One of the optimiser's."""
    run._update(run._batch(loaded))


def report(seconds: dict[str, list[float]]) -> str:
    """The figures as a table."""
    lines = [f"{'':20} {'ms a step':24} of fine_tune's step"]
    for name, values in seconds.items():
        milliseconds = median_and_range([1000 * value for value in values], 1)
        ratio = statistics.median(ratios(values, seconds["fine_tune"]))
        lines.append(f"{name:20} {milliseconds:24} {ratio:.3f}")
    loading, reading, step = (
        statistics.median(seconds[name]) for name in ("loading", "reading", "car_ft, bank")
    )
    share = (loading + reading) / (loading + step)
    savings = (f"{count} runs {100 * share * (count - 1) / count:.1f} %" for count in RUNS)
    lines.append(f"lockstep would save of training, with the bank: {', '.join(savings)}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--photographs", type=int, default=0, help="JPEGs, instead of IconShift")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="carft-shares-")))
        os.environ["CARFT_CACHE"] = str(folder / "cache")
        seconds = measure(folder, options.steps, options.photographs)
    sys.stdout.write(f"{describe_machine()}\n{report(seconds)}")


if __name__ == "__main__":
    main()

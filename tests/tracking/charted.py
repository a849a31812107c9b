"""Sweeps made up for the charts: one that has full_table, and one of two thousand runs."""

from __future__ import annotations

import math
import random
from itertools import product
from pathlib import Path

from carft_sweep.tracking.charts.data import ChartData
from carft_sweep.tracking.comparison.compare import compare
from carft_sweep.tracking.comparison.runs import RunRecord
from tests.tracking.kept import with_folder
from tests.tracking.made_up import KL, SHIFTS, bent, metrics, run, zero_shot

LR = "optim.lr"


def context(moved: float) -> dict[str, float]:
    """The context probe of a model that has moved so far."""
    splits = ("id/val", "id/test", *(f"ood/{shift}" for shift in SHIFTS))
    probe = {f"context/{split}/kl": moved for split in splits}
    return probe | {f"context/{split}/entropy": 1.5 + moved / 3 for split in splits}


def grid_runs(seeds: int = 3) -> list[RunRecord]:
    """CAR-FT on a grid of two parameters and FLYP as a user's own algorithm, beside baselines."""
    wobble = [0.0, 0.006, -0.004, 0.003, -0.002][:seeds]
    runs = [zero_shot(digest="zero")]
    for lr, test, ood in ((1e-5, 0.63, 0.35), (1e-4, 0.65, 0.34)):
        for seed, w in enumerate(wobble):
            at, height = test + w, ood - w / 2
            measured = metrics(at, height, **context(0.5 + w))
            changes = {"params": {LR: lr}, "merges": bent(at, height)}
            runs.append(run("fine_tune", seed, measured, digest=f"ft-{lr}-{seed}", **changes))
    for trial, (kl, lr) in enumerate(product((0.0, 0.1, 1.0, 10.0), (1e-5, 1e-4, 1e-3))):
        for seed, w in enumerate(wobble):
            test = 0.64 + 0.01 * math.log10(1e4 * lr + 1) - 0.002 * kl + w
            ood = 0.345 + 0.004 * math.log1p(10 * kl) - 20 * lr * 0.3 - w / 3
            changes = {"params": {KL: kl, LR: lr}, "trial": trial, "merges": bent(test, ood)}
            measured = metrics(test, ood, **context(0.4 / (1 + kl) + w))
            failed = kl == 10.0 and lr == 1e-3 and seed == 1
            lost = {"merges": {}, "state": "failed", "metrics": {}} if failed else {}
            runs.append(run("car_ft", seed, measured, **{**changes, **lost}))
    for seed, w in enumerate(wobble):
        measured = metrics(0.645 - w, 0.351 + w, **context(0.3))
        runs.append(run("flyp", seed, measured, trial=12, params={LR: 1e-4}))
    runs.append(run("car_ft", 0, None, trial=13, params={KL: 3.0, LR: 1e-2}, state="pruned"))
    return runs


def full(home: Path, seeds: int = 3) -> ChartData:
    """Of that grid, with all its folders: every chart has something to show of it."""
    records = [with_folder(record, home) for record in grid_runs(seeds)]
    return ChartData(compare(records, sweep="full"))


def searched(trials: int, seed: int = 0) -> ChartData:
    """A search over eight parameters of three kinds with one run a trial, and no folders."""
    rng = random.Random(seed)
    runs = [zero_shot(), run("fine_tune", 0, metrics(0.65, 0.34), merges=bent(0.65, 0.34))]
    for trial in range(trials):
        kl, lr = 10 ** rng.uniform(-2, 1), 10 ** rng.uniform(-6, -3)
        params = {
            KL: kl,
            LR: lr,
            "optim.weight_decay": rng.uniform(0, 0.3),
            "optim.label_smoothing": rng.uniform(0, 0.2),
            "optim.epochs": rng.choice([5, 10, 20]),
            "optim.warmup": rng.uniform(0, 0.2),
            "prompts.contexts": rng.choice(["simple", "openai", "icon_shift"]),
            "optim.batch_norm": rng.choice(["frozen", "train"]),
        }
        good = -((math.log10(lr) + 4.5) ** 2) / 40
        test = 0.63 + good + rng.gauss(0, 0.01)
        ood = 0.35 + good + 0.01 * math.log10(kl + 1) + rng.gauss(0, 0.01)
        measured = metrics(test, ood, val=test - 0.01)
        runs.append(run("car_ft", 0, measured, trial=trial, params=params, merges=bent(test, ood)))
    return ChartData(compare(runs, sweep="searched"))

"""Made-up runs over the domains of a benchmark, and DomainBed's selection written once more."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from carft_sweep.tracking.comparison.runs import RunRecord
from tests.tracking.made_up import run

FIELD = "data.test_domain"
DOMAINS = ("art", "cartoon", "photo", "sketch")
GROUPS = "id/val/mean_group_top1"
OUT = "ood/{task}_out/top1"


def domain_run(
    algorithm: str,
    domain: str,
    seed: int | None,
    trial: int | None,
    *,
    merges: Mapping[str, Mapping[str, float]] | None = None,
    **accuracies: float,
) -> RunRecord:
    """A finished run with `domain` held out; the trial number stands for the setting."""
    params = {FIELD: domain} | ({} if trial is None else {"optim.weight_decay": trial})
    digest, own = f"{algorithm}-{domain}-{trial}-{seed}", measured(domain, **accuracies)
    more: dict[str, Any] = {"digest": digest, "trial": trial, "merges": merges or {}}
    return run(algorithm, seed, own, params=params, **more)


def measured(domain: str, *, val: float, ood: float, out: float = 0.0) -> dict[str, float]:
    """What a run reports; as in DomainBed there is no ID test."""
    return {
        "id/val/top1": val,
        GROUPS: val,
        f"ood/{domain}/top1": ood,
        f"ood/{domain}_out/top1": out,
        "ood/mean/top1": ood,
    }


def random_runs(rng: np.random.Generator, *, settings: int, seeds: int) -> list[RunRecord]:
    """Accuracies on a grid of 25 images, so that ties are common."""
    runs = []
    for algorithm in ("fine_tune", "car_ft"):
        for setting, domain, seed in itertools.product(range(settings), DOMAINS, range(seeds)):
            val, ood, out = (rng.integers(10, 25, size=3) / 25).tolist()
            made = (algorithm, domain, seed, setting)
            runs.append(domain_run(*made, val=val, ood=ood, out=out))
    return runs


@dataclass(frozen=True)
class Table:
    """DomainBed's numbers of one algorithm."""

    per_domain: Mapping[str, tuple[float, float]]
    average: tuple[float, float]


def domainbed(records: Sequence[RunRecord], algorithm: str, method: str) -> Table:
    """`collect_results.py` for one algorithm: IID or oracle; percent, mean and error."""
    runs = [run for run in records if run.algorithm == algorithm]
    seeds = sorted({run.seed for run in runs if run.seed is not None})
    accuracies = {
        (domain, seed): selected(runs, domain, seed, method) for domain in DOMAINS for seed in seeds
    }
    per_domain = {
        domain: format_mean([accuracies[domain, seed] for seed in seeds]) for domain in DOMAINS
    }
    averages = [float(np.mean([accuracies[domain, seed] for domain in DOMAINS])) for seed in seeds]
    return Table(per_domain, format_mean(averages))


def selected(records: Sequence[RunRecord], domain: str, seed: int, method: str) -> float:
    """The test accuracy of the hyperparameters with the best validation accuracy."""
    of_hparams: dict[int, tuple[float, float]] = {}
    for record in records:
        if (record.seed, record.params[FIELD]) == (seed, domain) and record.trial is not None:
            val = record.metrics[GROUPS if method == "IID" else f"ood/{domain}_out/top1"]
            of_hparams[record.trial] = (val, record.metrics[f"ood/{domain}/top1"])
    # Sorting is stable and then turned round: of equal ones the largest hparams_seed is first.
    order = sorted(sorted(of_hparams), key=lambda number: round(of_hparams[number][0], 9))
    return of_hparams[order[::-1][0]][1]


def format_mean(data: Sequence[float]) -> tuple[float, float]:
    """`collect_results.format_mean`."""
    return 100 * float(np.mean(list(data))), 100 * float(np.std(list(data) / np.sqrt(len(data))))

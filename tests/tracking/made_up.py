"""Runs with plain made-up numbers, for the tests of the comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from carft_sweep.tracking.comparison.runs import RunRecord

ZERO_SHOT_OOD = 0.38
SHIFTS = {"outline": 0.16, "flat_emoji": -0.04, "pixel": -0.12}
"""How far each shift lies from their mean."""
KL = "algorithm.kl_weight"
T = TypeVar("T")


def known(value: T | None) -> T:
    """A value that must be there."""
    assert value is not None
    return value


def metrics(
    test: float, ood: float | None, *, val: float | None = None, **more: float
) -> dict[str, float]:
    """What a finished run reports; without `ood` the family has no shifts."""
    measured = {"id/val/top1": test if val is None else val, "id/test/top1": test}
    if ood is not None:
        measured |= {f"ood/{name}/top1": ood + offset for name, offset in SHIFTS.items()}
        measured |= {
            "ood/mean/top1": ood,
            "gap/top1": test - ood,
            "gain/ood/top1": ood - ZERO_SHOT_OOD,
        }
    return measured | more


def run(
    algorithm: str, seed: int | None, measured: Mapping[str, float] | None = None, **changes: Any
) -> RunRecord:
    """A run; without metrics a failed one. A trial if it has a trial number."""
    trial = changes.get("trial")
    fields: dict[str, Any] = {
        "algorithm": algorithm,
        "params": {},
        "seed": seed,
        "digest": f"{algorithm}-{trial}-{seed}",
        "state": "failed" if measured is None else "done",
        "role": "baseline" if trial is None else "trial",
        "metrics": measured or {},
    }
    return RunRecord(**(fields | changes))


def zero_shot(test: float = 0.55, ood: float | None = ZERO_SHOT_OOD, **changes: Any) -> RunRecord:
    """The one run without a seed."""
    return run("zero_shot", None, metrics(test, ood), **changes)


def arm(
    algorithm: str,
    tests: Sequence[float],
    oods: Sequence[float],
    *,
    vals: Sequence[float] | None = None,
    **changes: Any,
) -> list[RunRecord]:
    """One run per seed 0, 1, ..."""
    chosen = tests if vals is None else vals
    return [
        run(algorithm, seed, metrics(test, ood, val=val), **changes)
        for seed, (test, ood, val) in enumerate(zip(tests, oods, chosen, strict=True))
    ]


def bent(test: float, ood: float) -> dict[str, dict[str, float]]:
    """WiSE-FT models between zero-shot (0.55, 0.38) and a tuned model, on a curve bent upwards."""
    merges = {}
    for alpha in (0.25, 0.5, 0.75):
        at = 0.55 + (test - 0.55) * (1.6 * alpha - 0.6 * alpha**2)
        height = ZERO_SHOT_OOD + (ood - ZERO_SHOT_OOD) * alpha + 0.08 * alpha * (1 - alpha)
        merges[f"wise_ft@{alpha:g}"] = metrics(at, height)
    return merges


def kl_sweep(seeds: int = 5) -> list[RunRecord]:
    """Zero-shot, fine-tuning, and CAR-FT at four weights, each seed a little apart."""
    wobble = [0.0, 0.004, -0.003, 0.002, -0.001, 0.003][:seeds]
    runs = [zero_shot()]
    for seed, w in enumerate(wobble):
        measured = metrics(0.65 + w, 0.34 - w / 2)
        runs.append(run("fine_tune", seed, measured, merges=bent(0.65 + w, 0.34 - w / 2)))
    settings = [(0.1, 0.651, 0.344), (0.3, 0.652, 0.35), (1.0, 0.655, 0.357), (3.0, 0.64, 0.36)]
    for trial, (weight, test, ood) in enumerate(settings):
        for seed, w in enumerate(wobble):
            at, height = test + w / 2, ood + w * (0.2 if seed % 2 else -0.1)
            more: dict[str, Any] = {"params": {KL: weight}, "merges": bent(at, height)}
            runs.append(run("car_ft", seed, metrics(at, height), trial=trial, **more))
    return runs

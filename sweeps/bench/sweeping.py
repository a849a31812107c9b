"""A whole sweep beside its runs in one process, and beside Ray Tune as its documentation shows it.

The sweep is run through the command line, from its start to its exit.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from carft_sweep.carft_core.config import trial_config
from carft_sweep.carft_core.train import Decision, EpochReport, train
from carft_sweep.sweeps.bench.data import IMAGES, QUICK_IMAGES, make
from carft_sweep.sweeps.bench.measurement import Effort, Measurement, take_turns
from carft_sweep.sweeps.bench.photographs import PUBLISHED, trial_on

Tell = Callable[[Mapping[str, float]], None]
SEEDS, QUICK_SEEDS = (0, 1), (0,)
QUICK: Mapping[str, Any] = {
    "data": {"family": "icon_shift", "train_fraction": 0.25, "shifts": ["pixel"]},
    "optim": {"epochs": 1},
}
ONE_PROCESS = "its runs in one process"
RUNS = """
import json, sys
from carft_sweep.sweeps.bench.sweeping import train_in_trial
for trial, seed in json.loads(sys.argv[1]):
    train_in_trial(trial, seed, lambda metrics: None)
"""
STOCK = "Ray Tune, OptunaSearch, MLflow's callback"
STOCK_PUBLISHED = f"{STOCK}, {PUBLISHED}"
OURS, THEIRS = "sweeping:train_in_trial", "photographs:train_as_published"
"""What a trial of Ray Tune's calls, of this package's modules."""
TUNE = """
import importlib, json, sys
import ray
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.search.optuna import OptunaSearch

def run(chosen):
    module, _, function = chosen["call"].partition(":")
    call = getattr(importlib.import_module(f"carft_sweep.sweeps.bench.{module}"), function)
    call(*chosen["runs"][chosen["run"]], lambda metrics: tune.report(dict(metrics)))
    tune.report({"id/val/top1": 0.0})

runs, place, call = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
mlflow = f"sqlite:///{place}/mlflow.db"
ray.init(address="local", include_dashboard=False)
numbers = list(range(len(runs)))
results = tune.Tuner(
    tune.with_resources(run, {"cpu": 1}),
    param_space={"run": tune.choice(numbers), "runs": runs, "call": call},
    tune_config=tune.TuneConfig(
        metric="id/val/top1",
        mode="max",
        num_samples=len(runs),
        search_alg=OptunaSearch(points_to_evaluate=[{"run": number} for number in numbers]),
    ),
    run_config=tune.RunConfig(
        storage_path=place,
        callbacks=[MLflowLoggerCallback(tracking_uri=mlflow, experiment_name="bench")],
    ),
).fit()
sys.exit(results.num_errors)
"""


def measure_sweeps(effort: Effort) -> Iterator[Measurement]:
    """Measure a sweep from its start to its exit, each time in a new home."""
    spec = sweep_file(quick=effort.quick)
    runs = json.dumps([*_runs(spec)])
    ways: dict[str, Mapping[str, Any]] = {
        "engine local, one run at a time": {"engine": "local", "parallel": 1},
        "engine local": {"engine": "local"},
    }
    has_ray = importlib.util.find_spec("ray") is not None
    if has_ray:
        ways["engine ray, a Ray of its own"] = {"engine": "ray"}
    sides: dict[str, Callable[[], float | None]] = {
        ONE_PROCESS: lambda: _seconds([sys.executable, "-c", RUNS, runs])
    }
    for name, way in ways.items():
        sides[name] = (lambda changed: lambda: _sweep(changed))({**spec, **way})
    if has_ray:
        sides[STOCK] = lambda: _stock(runs, OURS)
    seconds = take_turns(effort.rounds, sides)
    for floor in (ONE_PROCESS, STOCK):
        for name in ways if floor in sides else ():
            yield Measurement(f"sweep, {name}", floor, seconds[floor], seconds[name])
    if has_ray:
        yield _measure_on_photographs(effort)


def _measure_on_photographs(effort: Effort) -> Measurement:
    """Measure a sweep on JPEGs beside one that somebody with wise-ft's loop and Ray Tune has. Ours
    has an empty cache each time.
    """
    count = QUICK_IMAGES if effort.quick else IMAGES
    with tempfile.TemporaryDirectory(prefix="carft-bench-") as scratch:
        folder = Path(scratch) / "photographs"
        make(folder, count, tests=count)
        spec = sweep_file(quick=effort.quick)
        algorithm = spec["trial"]["algorithm"]
        spec["trial"] = {**trial_on(folder), "algorithm": algorithm}
        runs = json.dumps([*_runs(spec)])
        sides = {
            STOCK_PUBLISHED: lambda: _stock(runs, THEIRS),
            "ours": lambda: _sweep({**spec, "engine": "local"}, has_cache=False),
        }
        seconds = take_turns(effort.rounds, sides)
    name = f"sweep on {count} JPEGs, engine local"
    return Measurement(name, STOCK_PUBLISHED, seconds[STOCK_PUBLISHED], seconds["ours"])


def train_in_trial(trial: Mapping[str, Any], seed: int, tell: Tell) -> None:
    """Do a run of a sweep by `train`; `tell` is called with the metrics of each epoch."""

    def report(epoch: EpochReport) -> Decision:
        tell(epoch.metrics)
        return Decision.CONTINUE

    with tempfile.TemporaryDirectory(prefix="carft-bench-") as folder:
        train(trial_config(trial), seed, report=report, workdir=Path(folder))


def sweep_file(*, quick: bool) -> dict[str, Any]:
    """Return the sweep file as plain data."""
    trial: dict[str, Any] = {
        "model": {"name": "builtin"},
        "data": {"family": "icon_shift"},
        "algorithm": {"name": "car_ft"},
        "merges": [{"name": "wise_ft", "alphas": [0.0, 0.5, 1.0]}],
    }
    return {
        "name": "bench",
        "method": "grid",
        "metric": {"name": "id/val/top1", "goal": "maximize"},
        "parameters": {"algorithm.kl_weight": {"values": [1, 3]}},
        "seeds": [*(QUICK_SEEDS if quick else SEEDS)],
        "baselines": ["zero_shot", "fine_tune"],
        "trial": {**trial, **QUICK} if quick else trial,
    }


def _runs(spec: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the trial and the seed of every run of the sweep."""
    weights = spec["parameters"]["algorithm.kl_weight"]["values"]
    trained = [{"name": "fine_tune"}, *({"name": "car_ft", "kl_weight": it} for it in weights)]
    yield {**spec["trial"], "algorithm": {"name": "zero_shot"}}, 0
    for algorithm in trained:
        for seed in spec["seeds"]:
            yield {**spec["trial"], "algorithm": algorithm}, seed


def _sweep(spec: Mapping[str, Any], *, has_cache: bool = True) -> float:
    with tempfile.TemporaryDirectory(prefix="carft-bench-") as folder:
        file = Path(folder) / "bench.yaml"
        file.write_text(json.dumps(spec), encoding="utf-8")
        home = str(Path(folder) / "home")
        command = [sys.executable, "-m", "carft_sweep", "run", str(file), "--home", home]
        return _seconds(command, **({} if has_cache else {"CARFT_CACHE": f"{folder}/cache"}))


def _stock(runs: str, call: str) -> float:
    with tempfile.TemporaryDirectory(prefix="carft-bench-") as folder:
        return _seconds([sys.executable, "-c", TUNE, runs, folder, call])


def _seconds(command: list[str], **changed: str) -> float:
    """Seconds of a command, with these variables of its environment changed. Raises RuntimeError
    with what it printed where it fails.
    """
    environ = {**os.environ, **changed}
    environ.pop("RAY_ADDRESS", None)
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} exited with {done.returncode}: {done.stderr}")
    return seconds

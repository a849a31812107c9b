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

from benchmarks.floor.measurement import Effort, Measurement, take_turns
from carft_sweep.carft_core.config.trial import trial_config
from carft_sweep.carft_core.runs.result import EpochReport
from carft_sweep.carft_core.training.loop import Decision, train

Tell = Callable[[Mapping[str, float]], None]
SEEDS, QUICK_SEEDS = (0, 1), (0,)
QUICK: Mapping[str, Any] = {
    "data": {"family": "icon_shift", "train_fraction": 0.25, "shifts": ["pixel"]},
    "optim": {"epochs": 1},
}
ONE_PROCESS = "its runs in one process"
RUNS = """
import json, sys
from benchmarks.floor.sweeping import train_in_trial
for trial, seed in json.loads(sys.argv[1]):
    train_in_trial(trial, seed, lambda metrics: None)
"""
STOCK = "Ray Tune, OptunaSearch, MLflow's callback"
TUNE = """
import json, sys
import ray
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.search.optuna import OptunaSearch
from benchmarks.floor.sweeping import train_in_trial

def run(chosen):
    train_in_trial(*chosen["runs"][chosen["run"]], lambda metrics: tune.report(dict(metrics)))
    tune.report({"id/val/top1": 0.0})

runs, place = json.loads(sys.argv[1]), sys.argv[2]
mlflow = f"sqlite:///{place}/mlflow.db"
ray.init(address="local", include_dashboard=False)
numbers = list(range(len(runs)))
results = tune.Tuner(
    tune.with_resources(run, {"cpu": 1}),
    param_space={"run": tune.choice(numbers), "runs": runs},
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
        sides[STOCK] = lambda: _stock(runs)
    seconds = take_turns(effort.rounds, sides)
    for floor in (ONE_PROCESS, STOCK):
        for name in ways if floor in sides else ():
            yield Measurement(f"sweep, {name}", floor, seconds[floor], seconds[name])


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


def _sweep(spec: Mapping[str, Any]) -> float:
    with tempfile.TemporaryDirectory(prefix="carft-bench-") as folder:
        file = Path(folder) / "bench.yaml"
        file.write_text(json.dumps(spec), encoding="utf-8")
        home = str(Path(folder) / "home")
        command = [sys.executable, "-m", "carft_sweep", "run", str(file), "--home", home]
        return _seconds(command)


def _stock(runs: str) -> float:
    with tempfile.TemporaryDirectory(prefix="carft-bench-") as folder:
        return _seconds([sys.executable, "-c", TUNE, runs, folder])


def _seconds(command: list[str]) -> float:
    """Return the seconds of a command. Raises RuntimeError with what it printed where it fails."""
    environ = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} exited with {done.returncode}: {done.stderr}")
    return seconds

"""Where does the time of a run go, and that of a whole sweep?

    python -m benchmarks.profiles [--photographs] [--algorithm car_ft] [--again] [--json]
    python -m benchmarks.profiles --sweep local|ray [--json]

One run of the shipped recipe `kl_weight` by `train()` on one thread, behind the zero-shot baseline,
under cProfile, which counts processor time; it makes small functions look slower than they are.
`--again`: behind an earlier run with the same seed, so that the bank has what runs share.

`--sweep`: the seconds on the clock from the start of the command to its exit, of a sweep of four
short runs (that of `benchmarks.floor --suite sweep --quick`). They are those of the driver's main
thread under cProfile; when runs are at work is read from their folders.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.floor.measurement import describe_machine
from benchmarks.floor.preload import recipe_config
from benchmarks.floor.sweeping import sweep_file
from benchmarks.photographs import make
from carft_sweep.carft_core.config import TrialConfig, trial_config
from carft_sweep.carft_core.train import train

Times = Mapping[tuple[str, str], float]
"""Seconds of functions, by (folder/file, name)."""
PHOTOGRAPHS = 600
WEIGHT = {"car_ft": {"kl_weight": 1.0}}


def main() -> None:
    """Profile and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photographs", action="store_true")
    parser.add_argument("--algorithm", default="fine_tune")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--sweep", choices=["local", "ray"])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="carft-profile-") as scratch:
        os.environ["CARFT_CACHE"] = f"{scratch}/cache"  # as a first run finds it
        if options.sweep is None:
            parts = profile_run(options, Path(scratch))
        else:
            parts = profile_sweep(options.sweep, Path(scratch))
    if options.json:
        sys.stdout.write(json.dumps({"machine": describe_machine(), "seconds": parts}) + "\n")
        return
    total = sum(parts.values())
    rows = [f"| {part} | {of:.1f} | {100 * of / total:.0f} % |" for part, of in parts.items()]
    head = ["| part | seconds | of all |", "|---|---|---|"]
    sys.stdout.write("\n".join([describe_machine(), *head, *rows, f"{total:.1f} s in all"]) + "\n")


def profile_run(options: argparse.Namespace, scratch: Path) -> dict[str, float]:
    """Profile one run; the processor seconds of its parts."""
    torch.set_num_threads(1)
    folder = scratch / "photographs"
    if options.photographs:
        make(folder, PHOTOGRAPHS, tests=PHOTOGRAPHS)
    train(config_of("zero_shot", folder), 0, workdir=scratch / "zero_shot")
    config = config_of(options.algorithm, folder)
    if options.again:
        train(config, 0, workdir=scratch / "before")
    profile = cProfile.Profile(timer=time.process_time)
    result = profile.runcall(train, config, 0, workdir=scratch / "run")
    assert result is not None
    return shares(times_of(profile))


def profile_sweep(engine: str, scratch: Path) -> dict[str, float]:
    """Profile a command that runs a sweep; the seconds of its parts on the clock."""
    home, sweep, profile = (scratch / name for name in ("home", "sweep.yaml", "sweep.prof"))
    sweep.write_text(json.dumps({**sweep_file(quick=True), "engine": engine}))
    command = ["-m", "cProfile", "-o", str(profile), "-m", "carft_sweep", "run", str(sweep)]
    environ = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    began = time.time()
    subprocess.run(
        [sys.executable, *command, "--home", str(home)],
        env=environ,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    ended, profiled = time.time(), profile.stat().st_mtime
    parts = shares_of_sweep(times_of(str(profile)), engine, read_work(home))
    return {
        "Python and imports, to the read sweep file": profiled - began - sum(parts.values()),
        **parts,
        "Python's exit": ended - profiled,
    }


class Work(NamedTuple):
    """When workers had runs, in seconds."""

    first_wait: float
    """From the first run's claim by the driver to the moment when its worker took it up."""
    at_work: float
    """In which at least one run was at work in a worker."""


def read_work(home: Path) -> Work:
    """Read from the files of a home's runs when they were at work.

    A worker begins with a file of the run's config; the driver writes when it has ended.
    """
    states = {file: json.loads(file.read_text()) for file in home.glob("runs/*/run.json")}
    spans = [
        (file.with_name("config.json").stat().st_mtime, state["ended"])
        for file, state in states.items()
    ]
    at_work, until = 0.0, 0.0
    for began, ended in sorted(spans):
        at_work += max(0.0, ended - max(began, until))
        until = max(until, ended)
    claimed = min(state["created"] for state in states.values())
    return Work(min(began for began, _ in spans) - claimed, at_work)


def config_of(algorithm: str, photographs: Path) -> TrialConfig:
    """The run: of the recipe, or the same on photographs."""
    if not photographs.exists():
        return recipe_config(algorithm)
    fields: dict[str, Any] = recipe_config(algorithm).as_dict()
    fields["data"] = {"family": "image_folder", "root": str(photographs)}
    fields["algorithm"] = {"name": algorithm, **WEIGHT.get(algorithm, {})}
    return trial_config(fields)


def times_of(profile: cProfile.Profile | str) -> Times:
    """Seconds of each function with all that it calls, of a profile or the file of one."""
    seconds: dict[tuple[str, str], float] = {}
    stats: Any = pstats.Stats(profile)
    for (file, _, name), (_, _, _, cumulative, _) in stats.stats.items():
        key = ("/".join(Path(file).parts[-2:]), name)
        seconds[key] = seconds.get(key, 0.0) + cumulative
    return seconds


def shares(times: Times) -> dict[str, float]:
    """Seconds of the parts of a run, which add up to the whole."""

    def of(file: str, name: str) -> float:
        return times.get((file, name), 0.0)

    whole = of("carft_core/train.py", "train")
    training = of("carft_core/train.py", "_train_epoch")
    backward = times.get(("~", "<method 'run_backward' of 'torch._C._EngineBase' objects>"), 0.0)
    step, closure = of("carft_core/train.py", "_update"), of("carft_core/train.py", "closure")
    encode, views = of("carft_core/teacher.py", "encode"), of("carft_core/teacher.py", "views")
    return {
        "training, backward": backward,
        "training, forward and the rest of the loss": closure - backward,
        "training, optimiser and clipping": step - closure,
        "training, loading": training - step,
        "evaluation, forward": encode - views,
        "evaluation, loading": views,
        "evaluation, metrics and predictions": of("carft_core/evaluate.py", "measure")
        + of("carft_core/train.py", "_validate")
        - encode,
        "opening, merging, checkpoints, files": whole
        - training
        - of("carft_core/evaluate.py", "measure")
        - of("carft_core/train.py", "_validate"),
    }


def shares_of_sweep(times: Times, engine: str, work: Work) -> dict[str, float]:
    """Seconds of the parts of a sweep between the read sweep file and Python's exit."""

    def of(file: str, *names: str) -> float:
        return sum(times.get((file, name), 0.0) for name in names)

    file = {"local": "engines/local.py", "ray": "engines/ray_tune.py"}[engine]
    session, api = "scheduler/session.py", "sweeps/api.py"
    start = of("engines/factory.py", "make_engine") + of(file, "start")
    store = of("store/mlflow_store.py", "open_store") + of(api, "_preflight")
    letting_go = of(file, "close")
    running, end = of(session, "_run"), of(session, "_end")
    files, model = of("results/ending.py", "make"), of(api, "_keep_model")
    sending = of(session, "flush") + of(session, "close")
    deciding = of("scheduler/driver.py", "next_job", "finished", "stopped", "failed")
    parts = {
        "start of the engine" if engine == "local" else "start of Ray": start,
        "opening MLflow's store": store,
        "planning": of(session, "open_generation") + of("scheduler/driver.py", "begin"),
        "waiting for the first worker": work.first_wait,
        "runs at work": work.at_work,
        "proposing, and recording how runs ended": deciding,
        "between runs": max(0.0, running - work.first_wait - work.at_work - deciding),
        "comparing, tables": end - files,
        "waiting for the page and the model's files, which a worker makes": files,
        "waiting for what is sent to MLflow": sending,
        "keeping the model in MLflow": model,
        "ending workers" if engine == "local" else "ending workers and Ray": letting_go,
    }
    return {**parts, "the rest": of(api, "perform") - sum(parts.values())}


if __name__ == "__main__":
    main()

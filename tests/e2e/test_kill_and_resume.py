"""A sweep that is killed at any instant and run again ends as if nobody had touched it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
WEIGHTS = (0.1, 0.3, 1.0, 3.0)
EPOCHS = 6
RUNS = len(WEIGHTS) + 1


def write_images(root: Path) -> None:
    """An image_folder tree of two classes: coloured noise."""
    rng = np.random.default_rng(0)
    for folder, count in {"train": 12, "test": 4, "shifts/dark": 4}.items():
        for name, colour in {"red": (200, 60, 60), "blue": (60, 60, 200)}.items():
            place = root / folder / name
            place.mkdir(parents=True)
            for index in range(count):
                pixels = np.array(colour) + rng.integers(-55, 55, (36, 36, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{index}.png")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, tiny_clip_files: Path) -> Path:
    """A sweep file: four trials of one seed and the zero-shot model, on a tiny CLIP."""
    folder = tmp_path_factory.mktemp("sweep")
    write_images(folder / "images")
    spec = {
        "name": "killed",
        "method": "grid",
        "parameters": {"algorithm.kl_weight": {"values": list(WEIGHTS)}},
        "seeds": [0],
        "retries": 5,
        "baselines": ["zero_shot"],
        "trial": {
            "model": {"name": str(tiny_clip_files)},
            "data": {
                "family": "image_folder",
                "root": str(folder / "images"),
                "val_fraction": 0.25,
            },
            "prompts": {"classes": "simple", "contexts": "simple"},
            "algorithm": {"name": "car_ft"},
            "optim": {"lr": 0.0003, "epochs": EPOCHS, "batch_size": 4},
            "merges": [{"name": "wise_ft", "alphas": [0.5]}],
            "device": "cpu",
        },
    }
    path = folder / "killed.yaml"
    path.write_text(json.dumps(spec))
    return path


def start(sweep: Path, home: Path) -> subprocess.Popen[str]:
    environ = {**os.environ, "CARFT_HOME": str(home), "OMP_NUM_THREADS": "1"}
    environ.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.Popen(
        [sys.executable, "-m", "sweeps", "run", str(sweep)],
        cwd=ROOT,
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def worker_of(driver: int) -> int | None:
    """The worker process of a driver."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            command = (stat.parent / "cmdline").read_bytes()
        except OSError:  # it has ended meanwhile
            continue
        if parent == driver and b"sweeps.engines.worker" in command:
            return int(stat.parent.name)
    return None


def kill_once(sweep: Path, home: Path, victim: str, chance: random.Random) -> None:
    """Run until a random report and a random moment after it, then kill; wait for the end."""
    process = start(sweep, home)
    assert process.stderr is not None
    left = chance.randrange(2, 2 * EPOCHS)
    killed = False
    for line in process.stderr:
        left -= "epoch" in line
        if left <= 0 and not killed:
            time.sleep(chance.random() * 0.5)
            target = process.pid if victim == "driver" else worker_of(process.pid)
            if target is not None:
                os.kill(target, signal.SIGKILL)
            killed = True
            if victim == "driver":
                break
    process.stderr.close()
    process.wait(timeout=120)


def finish(sweep: Path, home: Path) -> None:
    process = start(sweep, home)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said


def shown(home: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "sweeps", "show", "killed", "--json", "--home", str(home)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def outcomes(home: Path) -> dict[float, Any]:
    """KL weight to the trial's value and to every metric of its run."""
    return {
        trial["params"]["algorithm.kl_weight"]: (trial["value"], trial["runs"][0]["metrics"])
        for trial in shown(home)["trials"]
    }


@pytest.fixture(scope="module")
def undisturbed(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[float, Any]:
    home = tmp_path_factory.mktemp("undisturbed")
    finish(sweep, home)
    return outcomes(home)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the worker in /proc")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2))])
def test_killed_three_times_it_ends_with_the_same_values_and_nothing_twice(
    sweep: Path, tmp_path: Path, undisturbed: dict[float, Any], seed: int
) -> None:
    chance = random.Random(seed)
    victims = ["driver", "worker", "driver"]
    chance.shuffle(victims)
    for victim in victims:
        kill_once(sweep, tmp_path, victim, chance)
    finish(sweep, tmp_path)
    assert outcomes(tmp_path) == undisturbed

    study = optuna.load_study(study_name="killed", storage=f"sqlite:///{tmp_path / 'optuna.db'}")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * len(WEIGHTS)
    runs = [r for of in shown(tmp_path)["trials"] for r in of["runs"]]
    assert [run["state"] for run in runs] == ["done"] * len(WEIGHTS)
    assert_tracked_once(tmp_path, {run["digest"] for run in runs})


def assert_tracked_once(home: Path, digests: set[str]) -> None:
    """In MLflow: one parent, one child for each run, all finished, each epoch once."""
    # Not mlflow in this process: it holds on to its first store.
    script = (
        "import json, sys\n"
        "from mlflow import MlflowClient\n"
        "client = MlflowClient(sys.argv[1])\n"
        "experiment = client.get_experiment_by_name('carft-sweep').experiment_id\n"
        "runs = client.search_runs([experiment])\n"
        "steps = {r.info.run_id: [m.step for m in client.get_metric_history(r.info.run_id,"
        " 'train/loss')] for r in runs}\n"
        "print(json.dumps([[r.data.tags, r.info.status, steps[r.info.run_id]] for r in runs]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, f"sqlite:///{home / 'mlflow.db'}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    runs = json.loads(done.stdout.splitlines()[-1])
    assert len(runs) == RUNS + 1
    assert {status for _, status, _ in runs} == {"FINISHED"}
    trained = {tags["carft.run"]: steps for tags, _, steps in runs if "carft.trial" in tags}
    assert set(trained) == digests
    assert all(sorted(steps) == list(range(1, EPOCHS + 1)) for steps in trained.values())
